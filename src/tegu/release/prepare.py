"""A release put together: lock, images, repository snapshot, bills of material, advisories, notes.

All of it lies below `work/NUMBER` until it is published, and the manifest says what it is.
"""

from __future__ import annotations

import hashlib
import json
import shutil
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tegu.errors import ReleaseError
from tegu.release.cve import (
    Examination,
    SecurityData,
    Statement,
    examine,
    make_advisories,
    packages_of_lock,
    to_osv,
    to_oval,
    to_updateinfo,
)
from tegu.release.manifest import File, Manifest, ReportNote, Snapshot
from tegu.release.notes import write_notes
from tegu.release.numbers import Number
from tegu.release.sbom import cyclonedx, spdx
from tegu.release.workshop import Workshop

if TYPE_CHECKING:
    from tegu.packages import Lock
    from tegu.store import Store

__all__ = ["Ingredients", "prepare"]

Say = Callable[[str], None]


@dataclass(frozen=True, slots=True)
class Ingredients:
    """What a release is made of.

    `profiles` are those of the definition ("" for its own choice). `repository` and `channel` name
    the package repository that is frozen. `reports` are JSON files of `tegu test`, `figures` values
    by name, `security` and `statements` what is known of vulnerabilities.
    """

    definition: Path
    profiles: tuple[str, ...] = ("",)
    repository: Path | None = None
    channel: str = "stable"
    reports: tuple[Path, ...] = ()
    figures: Mapping[str, float] = field(default_factory=dict)
    security: SecurityData | None = None
    statements: tuple[Statement, ...] = ()
    known_issues: tuple[str, ...] = ()


def prepare(
    shop: Workshop,
    number: Number,
    made_of: Ingredients,
    store: Store,
    *,
    say: Say = lambda _: None,
) -> Manifest:
    """Put the release `number` together and return its manifest. The caller holds the lock.

    Images and locks come from the store where they are there. Raises ReleaseError when the release
    is published already or would go backwards, and what building and the repository raise.
    """
    published = shop.published()
    if number in published:
        raise ReleaseError(f"{number} is published: a release never changes its content")
    previous = _previous(shop, number)
    (shop.root / "work").mkdir(exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=f".{number}.", dir=shop.root / "work") as scratch:
        work = Path(scratch) / "release"
        (work / "files").mkdir(parents=True)
        making = _Making(shop, number, made_of, store, work, previous, say)
        manifest = making.manifest()
        manifest.write(work / "manifest.json")
        final = shop.work(number)
        if final.exists():
            final.rename(Path(scratch) / "before")
        work.rename(final)
    return manifest


def _previous(shop: Workshop, number: Number) -> Manifest | None:
    """Return the release to compare with: the newest published one below `number`."""
    older = [n for n in shop.published() if n < number]
    return shop.manifest(older[-1]) if older else None


@dataclass
class _Making:
    shop: Workshop
    number: Number
    made_of: Ingredients
    store: Store
    work: Path
    previous: Manifest | None
    say: Say
    files: list[File] = field(default_factory=list)
    locks: dict[str, Lock] = field(default_factory=dict)
    figures: dict[str, float] = field(default_factory=dict)

    def manifest(self) -> Manifest:
        system = "tegu"
        for profile in self.made_of.profiles:
            system = self._profile(profile)
        first = next(iter(self.locks.values()))
        date = (
            f"{datetime.fromtimestamp(max(k.timestamp for k in self.locks.values()), UTC):%Y-%m-%d}"
        )
        snapshot = self._snapshot()
        self.figures.update(self.made_of.figures)
        examined = self._examined()
        manifest = Manifest(
            number=str(self.number),
            date=date,
            previous=self.previous.number if self.previous else None,
            files=(),
            locks={name: lock.digest() for name, lock in self.locks.items()},
            snapshot=snapshot,
            reports=tuple(_note_of(path) for path in self.made_of.reports),
            figures=dict(sorted(self.figures.items())),
            cves=None if examined is None else _summary(examined),
            known_issues=self.made_of.known_issues,
        )
        advisories = self._advisories(first, examined)
        old = self._old_locks()
        notes = write_notes(manifest, self.previous, self.locks, old, advisories, system)
        for name, text in notes.items():
            self._put(name, "notes", text)
        return replace(manifest, files=tuple(sorted(self.files, key=lambda f: f.path)))

    def _profile(self, profile: str) -> str:
        from tegu.image import build_locked, export, lock_for

        shown = profile or "default"
        self.say(f"building {shown}")
        definition, lock = lock_for(
            self.made_of.definition,
            profile=profile or None,
            lock_path=None,
            locked=False,
            store=self.store,
        )
        if definition.system.version != str(self.number):
            raise ReleaseError(
                f"{self.made_of.definition} is of version {definition.system.version}, "
                f"the release is {self.number}",
                hint="system.version of the definition is what machines will say they run",
            )
        self.locks[shown] = lock
        built = build_locked(definition, lock, self.store, subject=self.made_of.definition)
        place = self.work / "files" / "images" / shown
        place.mkdir(parents=True)
        for path in export(built.images, self.store, place):
            if path.is_dir():  # a slot, an OCI layout: all that is in it
                for inner in sorted(p for p in path.rglob("*") if p.is_file()):
                    self._note(inner, "image", profile)
                continue
            kind = "image-manifest" if path.suffix == ".json" else "image"
            self._note(path, kind, profile)
            if kind == "image":
                self.figures[f"image bytes {shown}"] = path.stat().st_size
        lock_file = self.work / "files" / f"{shown}.lock"
        lock.write(lock_file)
        self._note(lock_file, "lock", profile)
        self.figures[f"packages {shown}"] = len(lock.system)
        self.say(f"bills of material of {shown}")
        name = definition.system.name
        self._put(f"{shown}.cdx.json", "sbom", cyclonedx(lock, name, str(self.number)), profile)
        self._put(f"{shown}.spdx.json", "sbom", spdx(lock, name, str(self.number)), profile)
        return name

    def _put(self, name: str, kind: str, text: str, profile: str = "") -> None:
        path = self.work / "files" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
        self._note(path, kind, profile)

    def _note(self, path: Path, kind: str, profile: str) -> None:
        with path.open("rb") as f:
            digest = hashlib.file_digest(f, "sha256").hexdigest()
        relative = path.relative_to(self.work / "files").as_posix()
        self.files.append(File(relative, kind, path.stat().st_size, digest, profile))

    def _snapshot(self) -> Snapshot | None:
        """Freeze the channel under the release's number; a release prepared again keeps it."""
        if self.made_of.repository is None:
            return None
        from tegu.packages.repo import Repository, publish, take_snapshot

        name = str(self.number)
        with Repository(self.made_of.repository) as repo, repo.locked():
            there = repo.catalogue.collection(name)
            wanted = {i.sha256 for i in repo.catalogue.members(self.made_of.channel)}
            if there is not None:
                frozen = {i.sha256 for i in repo.catalogue.members(name)}
                if frozen != wanted:
                    raise ReleaseError(
                        f"the repository has a snapshot {name} of other packages",
                        hint="a snapshot never changes: give the release another number",
                    )
            else:
                self.say(f"freezing {self.made_of.channel} as {name}")
                take_snapshot(repo, self.made_of.channel, name)
            publish(repo, [name])
            signed = (repo.public / "dists" / name / "InRelease").read_bytes()
            digest = hashlib.sha256(signed).hexdigest()
            return Snapshot(name, self.made_of.channel, len(wanted), digest)

    def _examined(self) -> Examination | None:
        if self.made_of.security is None:
            return None
        packages = {p for lock in self.locks.values() for p in packages_of_lock(lock)}
        ordered = sorted(packages, key=lambda p: (p.name, p.version))
        return examine(ordered, self.made_of.security, self.made_of.statements)

    def _old_locks(self) -> dict[str, Lock]:
        from tegu.packages import Lock

        if self.previous is None:
            return {}
        place = self.shop.work(Number.parse(self.previous.number)) / "files"
        return {
            name: Lock.read(place / f"{name}.lock")
            for name in self.previous.locks
            if (place / f"{name}.lock").is_file()
        }

    def _advisories(self, lock: Lock, examined: Examination | None) -> list[Any]:
        """Make advisories for what this release mends of what the one before had."""
        old = self._old_locks()
        if self.made_of.security is None or not old or examined is None:
            return []
        packages = {p for one in old.values() for p in packages_of_lock(one)}
        before = examine(packages, self.made_of.security, self.made_of.statements)
        year = 2000 + self.number.year
        made = make_advisories(
            before, lock, year=year, first=self._next_advisory(year), date=lock.timestamp
        )
        if made:
            for one in made:
                self._put(f"advisories/{one.id.replace(':', '-')}.json", "advisories", to_osv(one))
            text = to_updateinfo(made, str(self.number))
            self._put("advisories/updateinfo.xml", "advisories", text)
            self._put("advisories/oval.xml", "advisories", to_oval(made, date=lock.timestamp))
        return made

    def _next_advisory(self, year: int) -> int:
        used = [
            int(f.path.rpartition("-")[2].removesuffix(".json"))
            for n in self.shop.published()
            for f in self.shop.manifest(n).files
            if f.path.startswith(f"advisories/TEGU-{year}-")
        ]
        return max(used, default=0) + 1


def _summary(examined: Examination) -> dict[str, Any]:
    return {
        "date": examined.date,
        "packages": examined.packages,
        "sources": examined.sources,
        "findings": [asdict(f) for f in examined.findings],
    }


def _note_of(path: Path) -> ReportNote:
    from tegu.lab.results import read_report

    report = read_report(path)
    bad = report.count("failed") + report.count("error")
    steps = sum(len(m.steps) for m in report.machines)
    return ReportNote(report.plan, report.passed, steps, bad, Path(report.subject).name)


def read_figures(path: Path) -> dict[str, float]:
    """Read a JSON object of figures by name; ReleaseError when it is none."""
    try:
        raw: Any = json.loads(path.read_text())
        found = {str(k): float(v) for k, v in raw.items() if not isinstance(v, bool)}
    except OSError as e:
        raise ReleaseError(f"{path}: {e.strerror}") from e
    except (ValueError, TypeError, AttributeError) as e:
        raise ReleaseError(f"{path}: an object of numbers by name is needed: {e}") from e
    return found


def clean(shop: Workshop, number: Number) -> None:
    """Forget a release that was prepared and never published."""
    if number in shop.published():
        raise ReleaseError(f"{number} is published: it stays")
    shutil.rmtree(shop.work(number))
