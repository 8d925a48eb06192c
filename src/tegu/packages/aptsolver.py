"""The fallback where libsolv's Python binding is missing: apt's solver, in a world of its own.

apt gets private directories, an empty dpkg status and the verified indexes as local repositories,
and only simulates (apt-get(8), `-s`). Slower than libsolv, and its explanations are its own words.
"""

from __future__ import annotations

import difflib
import os
import re
import shutil
import tempfile
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tegu.errors import SolveError, TeguError, UnsupportedError
from tegu.packages.explain import explain
from tegu.process import Completed, run

if TYPE_CHECKING:
    from tegu.packages.solve import Answer, Question, SolverRepository

__all__ = ["solve_with_apt"]

_INSTALLED = re.compile(r"^Inst (\S+?)(?::\S+)? \((\S+) .*?\[(\S+)\]\)", re.MULTILINE)
_HEAD = re.compile(rb"Package: *(\S+)")
_CONFIG = """
Dir "{root}";
Dir::State "{root}/state";
Dir::State::lists "{root}/lists";
Dir::State::status "{root}/state/status";
Dir::Cache "{root}/cache";
Dir::Etc "{root}/etc";
Dir::Etc::sourcelist "{root}/etc/sources.list";
Dir::Etc::sourceparts "-";
Dir::Etc::preferencesparts "-";
Dir::Etc::trustedparts "-";
APT::Architecture "{architecture}";
#clear APT::Architectures;
APT::Architectures {{ "{architecture}"; }};
APT::Sandbox::User "";
Acquire::Languages "none";
"""


def solve_with_apt(
    questions: Sequence[Question], repositories: Sequence[SolverRepository], architecture: str
) -> list[Answer]:
    """Like `tegu.packages.solve.solve`; raises UnsupportedError when there is no apt either."""
    if shutil.which("apt-get") is None:
        raise UnsupportedError(
            "there is no package solver on this machine", hint="install the package python3-solv"
        )
    with tempfile.TemporaryDirectory(prefix="tegu-apt-") as root:
        world = _World(Path(root), repositories, architecture)
        return [world.answer(question) for question in questions]


class _World:
    def __init__(
        self, root: Path, repositories: Sequence[SolverRepository], architecture: str
    ) -> None:
        self.root = root
        self.repositories = repositories
        for name in ("state", "lists/partial", "cache/archives/partial", "etc/apt.conf.d"):
            (root / name).mkdir(parents=True)
        (root / "state/status").touch()
        (root / "apt.conf").write_text(_CONFIG.format(root=root, architecture=architecture))
        sources = []
        for number, repository in enumerate(repositories):
            place = root / f"repository-{number}"
            place.mkdir()
            (place / "Packages").symlink_to(repository.packages)
            (place / "Release").write_text(f"Origin: tegu-{number}\n")
            sources.append(f"deb [trusted=yes] file:{place} ./\n")
        (root / "etc/sources.list").write_text("".join(sources))
        self.names: set[str] = set()
        self.base: dict[str, set[str]] = {"essential": set(), "required": set(), "none": set()}
        for repository in repositories:
            self._learn(repository)
        self._apt(["update"], check=True)

    def _learn(self, repository: SolverRepository) -> None:
        for name, stanza in _stanzas(repository.packages):
            self.names.add(name)
            if repository.base and b"\nEssential: yes" in stanza:
                self.base["essential"].add(name)
            if repository.base and b"\nPriority: required" in stanza and name != "apt":
                self.base["required"].add(name)

    def answer(self, question: Question) -> Answer:
        from tegu.packages.solve import Answer

        unknown = [name for name in question.install if name not in self.names]
        if unknown:
            near = {
                name: {"providers": [], "near": difflib.get_close_matches(name, self.names, n=4)}
                for name in unknown
            }
            raise explain(question.title, question.install, (), {"unknown": near})
        names = {*question.install, *self.base["essential"]} if question.base != "none" else set()
        if question.base == "required":
            names |= self.base["required"]
        names = (names | set(question.install)) - set(question.exclude)
        keep = {n: v for n, v in question.keep.items() if n not in question.pin}
        done = self._try(question, names, keep)
        unlocked: list[str] = []
        if done.returncode != 0 and keep:
            done = self._try(question, names, {})
            unlocked = sorted(keep)
        if done.returncode != 0:
            raise SolveError(
                f"no set of packages fits: {_complaint(done)}",
                hint="install the package python3-solv for a better explanation",
            )
        found = {(m[1], m[2], m[3]) for m in _INSTALLED.finditer(done.stdout)}
        packages = list(self._details(found))
        if not unlocked:
            unlocked = sorted(
                p["Package"]
                for p in packages
                if keep.get(p["Package"], p["Version"]) != p["Version"]
            )
        vanished = [name for name in unlocked if not self._there(name, keep.get(name, ""))]
        return Answer(packages, [n for n in unlocked if n not in vanished], vanished)

    def _try(self, question: Question, names: Iterable[str], keep: dict[str, str]) -> Completed:
        rules = [
            f"Package: *\nPin: release o=tegu-{number}\nPin-Priority: {r.priority}\n"
            for number, r in enumerate(self.repositories)
        ]
        rules += [f"Package: {n}\nPin: version {v}\nPin-Priority: 32760\n" for n, v in keep.items()]
        # A pinned name has no other candidate: what does not match is forbidden.
        for name, version in question.pin.items():
            rules.append(f"Package: {name}\nPin: version {version}\nPin-Priority: 32761\n")
        rules += [f"Package: {n}\nPin: release *\nPin-Priority: -1\n" for n in question.exclude]
        (self.root / "etc/preferences").write_text("\n".join(reversed(rules)))
        recommends = "true" if question.recommends else "false"
        options = ["-s", "-o", f"APT::Install-Recommends={recommends}"]
        return self._apt([*options, "install", *sorted(names)], check=False)

    def _apt(self, arguments: Sequence[str], *, check: bool) -> Completed:
        environment = {**os.environ, "APT_CONFIG": str(self.root / "apt.conf"), "LC_ALL": "C.UTF-8"}
        try:
            return run(["apt-get", "-q", *arguments], env=environment, timeout=300, check=check)
        except TeguError as e:
            raise SolveError(f"apt cannot read the indexes: {e.message}") from e

    def _details(self, found: set[tuple[str, str, str]]) -> Iterator[dict[str, str]]:
        wanted = {name for name, _, _ in found}
        left = set(found)
        for repository in sorted(self.repositories, key=lambda r: -r.priority):
            for name, stanza in _stanzas(repository.packages):
                if name not in wanted:
                    continue
                fields = _fields(stanza)
                key = (name, fields.get("Version", ""), fields.get("Architecture", ""))
                if key in left:
                    left.discard(key)
                    yield {**fields, "repository": repository.id}
        if left:
            raise SolveError(f"apt chose packages that no index has: {sorted(left)[0]}")

    def _there(self, name: str, version: str) -> bool:
        return any(
            found == name and _fields(stanza).get("Version") == version
            for repository in self.repositories
            for found, stanza in _stanzas(repository.packages)
        )


def _stanzas(path: Path) -> Iterator[tuple[str, bytes]]:
    for stanza in path.read_bytes().split(b"\n\n"):
        match = _HEAD.match(stanza.lstrip(b"\n"))
        if match is not None:
            yield match[1].decode(), stanza.lstrip(b"\n")


def _fields(stanza: bytes) -> dict[str, str]:
    fields: dict[str, Any] = {}
    for line in stanza.decode(errors="replace").splitlines():
        key, colon, value = line.partition(":")
        if colon and line[0] not in " \t":
            fields[key] = value.strip()
    return fields


def _complaint(done: Completed) -> str:
    """Return apt's list of unmet dependencies as one line."""
    _, found, rest = done.stdout.partition("unmet dependencies:\n")
    lines = rest.splitlines() if found else done.stderr.splitlines()
    words = " ".join(" ".join(lines[:12]).split())
    return re.sub(r"\bE: ", "", words)[:600] or "apt gives no reason"
