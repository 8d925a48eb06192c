"""From a definition to a lock."""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from tegu.definition import ARCHITECTURES
from tegu.errors import LockError, SolveError, TeguError, UsageError
from tegu.packages.local import LocalPackage, bring_in, write_index
from tegu.packages.lock import LOCAL, Lock, LockedPackage, LockedRepository
from tegu.packages.tools import tools_for

if TYPE_CHECKING:
    from tegu.definition.models import Definition
    from tegu.packages.index import SuiteIndex
    from tegu.packages.solve import Answer, Question, SolverRepository
    from tegu.store import Store

__all__ = ["make_lock", "provide_local", "stale", "system_packages"]

log = logging.getLogger(__name__)

_VANISHED = "vanished"


def system_packages(definition: Definition) -> list[str]:
    """Return the packages that a definition asks for by name, local ones left out."""
    names = list(definition.packages.install)
    if definition.kernel.package is not None:
        names.append(definition.kernel.package)
    return list(dict.fromkeys(names))


def stale(lock: Lock, definition: Definition) -> str | None:
    """Say in what way `lock` does not belong to `definition`; None when it does."""
    from tegu.definition import section_digests

    if lock.architecture != definition.system.architecture:
        return f"it is for {lock.architecture}, the definition for {definition.system.architecture}"
    if lock.definition != section_digests(definition)["packages"]:
        return "the definition's packages or sources have changed since it was made"
    there = {p.name for p in lock.tools}
    missing = [name for name in tools_for(definition) if name not in there]
    if missing:
        return f"it lacks the tools {', '.join(missing)}"
    return None


def make_lock(
    definition: Definition,
    store: Store,
    *,
    previous: Lock | None = None,
    update: bool | Sequence[str] = False,
    offline: bool = False,
    tools: Sequence[str] | None = None,
) -> Lock:
    """Return the lock of `definition`.

    Versions of `previous` are kept where they still satisfy the definition; `update` renews all
    (True) or those named. When nothing changes the result equals `previous`. With `offline` only
    indexes that the store has are used. Raises SolveError, FetchError, VerifyError.
    """
    from tegu.definition import section_digests

    digest = section_digests(definition)["packages"]
    wanted_tools = tuple(tools_for(definition) if tools is None else tools)
    local = _local(definition, store)
    if previous is not None and previous.architecture != definition.system.architecture:
        previous = None
    if previous is not None and not update and _same(previous, digest, wanted_tools, local):
        return previous
    return _Making(definition, store, digest, wanted_tools, local, previous, update, offline).lock()


def provide_local(definition: Definition, lock: Lock, store: Store) -> None:
    """Bring the local packages of `lock` into the store where they are missing.

    For a lock that came from another machine. Raises LockError when what is here is not what was
    locked.
    """
    wanted = {p.sha256: p for p in lock.system if p.repository == LOCAL}
    if all(store.blob(sha256) is not None for sha256 in wanted):
        return
    here = {p.name: p for p in _local(definition, store)}
    for sha256, package in wanted.items():
        if store.blob(sha256) is None:
            found = here.get(package.name)
            what = f"version {found.version} with other content" if found else "nothing"
            raise LockError(
                f"the lock wants the local package {package.filename}, here is {what}",
                hint="run `tegu lock`: it takes the one that is here",
            )


def _local(definition: Definition, store: Store) -> list[LocalPackage]:
    architecture = ARCHITECTURES[definition.system.architecture].debian
    found = [bring_in(path, store, architecture) for path in definition.packages.local]
    if definition.packages.tegu:
        from tegu.packages.tegu_deb import host_half

        found.append(host_half(store))
    names: set[str] = set()
    for package in found:
        if package.name in names:
            raise SolveError(f"packages.local: {package.name} is there twice")
        names.add(package.name)
    return found


def _same(previous: Lock, digest: str, tools: Sequence[str], local: Sequence[LocalPackage]) -> bool:
    there = {p.name for p in previous.tools}
    locked = {p.sha256 for p in previous.system if p.repository == LOCAL}
    return (
        previous.definition == digest
        and all(name in there for name in tools)
        and locked == {p.sha256 for p in local}
    )


@dataclass
class _Making:
    definition: Definition
    store: Store
    digest: str
    tools: Sequence[str]
    local: Sequence[LocalPackage]
    previous: Lock | None
    update: bool | Sequence[str]
    offline: bool

    def lock(self) -> Lock:
        from tegu.packages.index import load_indexes
        from tegu.packages.solve import solve
        from tegu.packages.sources import BASE_PRIORITY, sources_of

        architecture = ARCHITECTURES[self.definition.system.architecture].debian
        keep = {
            "system": self._keep(self.previous.system if self.previous else ()),
            "tools": self._keep(self.previous.tools if self.previous else ()),
        }
        self._check_update()
        sources = sources_of(self.definition)
        indexes = load_indexes(sources, self.store, architecture, offline=self.offline)
        repositories = _repositories(indexes)
        if self.local:
            repositories.append(write_index([p.stanza for p in self.local], self.store))
        questions = self._questions(keep)
        answers = solve(questions, repositories, architecture)
        if any(a.vanished for a in answers):
            stanzas = self._recall(answers)
            if stanzas:
                repositories.append(
                    write_index(stanzas, self.store, repository=_VANISHED, priority=BASE_PRIORITY)
                )
                answers = solve(questions, repositories, architecture)
        for answer, question in zip(answers, questions, strict=True):
            for name in answer.unlocked:
                log.warning(
                    "%s: %s %s could not be kept", question.title, name, question.keep[name]
                )
        return self._assemble(indexes, *answers)

    def _keep(self, packages: Sequence[LockedPackage]) -> dict[str, str]:
        if self.update is True:
            return {}
        renewed = set(self.update or ())
        return {
            p.name: p.version for p in packages if p.name not in renewed and p.repository != LOCAL
        }

    def _check_update(self) -> None:
        if isinstance(self.update, bool):
            return
        locked = self.previous.system + self.previous.tools if self.previous else ()
        names = {p.name for p in locked}
        for name in self.update:
            if name not in names:
                import difflib

                near = difflib.get_close_matches(name, names, n=3)
                raise UsageError(
                    f"--update: {name} is not in the lock",
                    hint=f"did you mean {', '.join(near)}?" if near else None,
                )

    def _questions(self, keep: dict[str, dict[str, str]]) -> list[Question]:
        from tegu.packages.solve import Question

        packages = self.definition.packages
        return [
            Question(
                title="system",
                install=[*system_packages(self.definition), *(p.name for p in self.local)],
                base="required",
                recommends=packages.recommends,
                exclude=packages.exclude,
                pin=packages.pin,
                keep=keep["system"],
            ),
            # Nothing declares that it needs an essential package, so the tools get them as well.
            Question(
                title="tools",
                install=self.tools,
                base="essential",
                pin=packages.pin,
                keep=keep["tools"],
            ),
        ]

    def _recall(self, answers: Sequence[Answer]) -> list[str]:
        """Return index entries of locked packages that have left the indexes.

        What they depend on is in the package itself: in the store, or still on the mirror.
        """
        from tegu.packages.deb import open_deb
        from tegu.packages.fetch import fetch_all
        from tegu.packages.local import stanza

        assert self.previous is not None
        names = {name for answer in answers for name in answer.vanished}
        found = {}
        for package in (*self.previous.system, *self.previous.tools):
            if package.name not in names or package.sha256 in found or package.repository == LOCAL:
                continue
            try:
                if not self.offline:
                    fetch_all([package], self.previous, self.store)
            except TeguError as e:
                log.warning("%s %s is gone: %s", package.name, package.version, e.message)
                continue
            if path := self.store.blob(package.sha256):
                with open_deb(path) as deb:
                    found[package.sha256] = stanza(
                        deb.fields, package.filename, package.size, package.sha256
                    )
        return list(found.values())

    def _assemble(self, indexes: Sequence[SuiteIndex], system: Answer, tools: Answer) -> Lock:
        old = self.previous
        packages = {"system": self._locked(system), "tools": self._locked(tools)}
        requested = {*system_packages(self.definition), *(p.name for p in self.local)}
        lock = Lock(
            definition=self.digest,
            architecture=self.definition.system.architecture,
            timestamp=max(index.release.date for index in indexes),
            repositories=tuple(
                LockedRepository(
                    id=index.source.id,
                    uri=index.source.uri,
                    suite=index.source.suite,
                    components=index.source.components,
                    inrelease_sha256=index.inrelease_sha256,
                    date=index.release.date,
                )
                for index in indexes
            ),
            requested=tuple(sorted(requested)),
            **packages,
        )
        if old is not None and _places(lock) == _places(old) and _remote(lock) == _remote(old):
            # Nothing came from a mirror that was not locked before: it is as old as it was.
            return dataclasses.replace(lock, timestamp=old.timestamp, repositories=old.repositories)
        if old is not None and self.update is not True:
            # The date goes into every file that a build makes. Moving it with each package would
            # change them all; it moves when the whole lock is renewed.
            return dataclasses.replace(lock, timestamp=old.timestamp)
        return lock

    def _locked(self, answer: Answer) -> tuple[LockedPackage, ...]:
        before = {
            (p.name, p.version): p
            for p in ((*self.previous.system, *self.previous.tools) if self.previous else ())
        }
        packages = []
        for fields in answer.packages:
            if fields["repository"] == _VANISHED:
                packages.append(before[fields["Package"], fields["Version"]])
            else:
                packages.append(_package(fields))
        return tuple(sorted(packages, key=lambda p: (p.name, p.architecture)))


def _remote(lock: Lock) -> list[list[LockedPackage]]:
    return [[p for p in part if p.repository != LOCAL] for part in (lock.system, lock.tools)]


def _places(lock: Lock) -> list[tuple[str, str, str, tuple[str, ...]]]:
    return [(r.id, r.uri, r.suite, r.components) for r in lock.repositories]


def _repositories(indexes: Sequence[SuiteIndex]) -> list[SolverRepository]:
    from tegu.packages.solve import SolverRepository

    return [
        SolverRepository(
            id=index.source.id,
            packages=file.path,
            priority=index.source.priority,
            base=index.source.base,
        )
        for index in indexes
        for file in index.files
    ]


def _package(fields: dict[str, str]) -> LockedPackage:
    source, _, version = fields.get("Source", "").partition(" ")
    return LockedPackage(
        name=fields["Package"],
        version=fields["Version"],
        architecture=fields["Architecture"],
        size=int(fields["Size"]),
        sha256=fields["SHA256"],
        filename=fields["Filename"].removeprefix("./"),
        repository=fields["repository"],
        source=source or fields["Package"],
        source_version=version.strip("() ") or fields["Version"],
        section=fields.get("Section", ""),
        priority=fields.get("Priority", "optional"),
        essential=fields.get("Essential", "no") == "yes",
        installed_size=int(fields.get("Installed-Size", "0") or 0),
    )
