"""The patch queue: what we change in the kernel, each patch with where it comes from and why.

A queue is a directory with a file `series` (one file name per line, as quilt's). The head of each
patch is RFC 822 fields, then free text, then `---` and the diff:

    Subject: what it does, in one line
    Origin: ours, or a URL
    Upstream: the commit (40 hex digits), or why there is none
    Reason: why we carry it
    Test: what shows that it works
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from tegu.errors import BuildError, DefinitionError
from tegu.process import require, run

__all__ = ["Patch", "apply_patch", "read_queue", "read_series"]

FIELDS = ("Subject", "Origin", "Upstream", "Reason", "Test")
_COMMIT = re.compile(r"[0-9a-f]{40}")
_FILE = re.compile(r"^(?:checking|patching) file '?(.+?)'?(?: \(.*\))?$")
_FAILED = re.compile(r"^Hunk #(\d+) FAILED at (\d+)")
_MISSING = re.compile(r"^can't find file to patch|^No file to patch")


@dataclass(frozen=True, slots=True)
class Patch:
    """A patch of our queue: its file, and the fields of its head."""

    path: Path
    subject: str
    origin: str
    upstream: str
    reason: str
    test: str

    @property
    def commit(self) -> str | None:
        """The upstream commit that it is, None when it is ours."""
        match = _COMMIT.search(self.upstream)
        return match[0] if match else None


def read_series(path: Path) -> list[str]:
    """Return the patches that a series file names, in order (quilt(1): options are ignored)."""
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except OSError as e:
        raise DefinitionError(f"cannot read {path}: {e.strerror}") from e
    names = []
    for line in lines:
        words = line.partition("#")[0].split()
        if words:
            names.append(words[0])
    return names


def read_queue(directory: Path) -> list[Patch]:
    """Read a queue; raises DefinitionError for a patch that is missing or lacks a field.

    A file of the directory that the series does not name is refused: it would be forgotten.
    """
    names = read_series(directory / "series")
    patches = [_read(directory / name) for name in names]
    spare = sorted(p.name for p in directory.glob("*.patch") if p.name not in names)
    if spare:
        raise DefinitionError(
            f"{directory / spare[0]}: the series does not name this patch",
            hint="add it to the series, or remove the file",
        )
    return patches


def _read(path: Path) -> Patch:
    try:
        text = path.read_text(encoding="utf-8")
    except OSError as e:
        raise DefinitionError(f"{path.parent / 'series'}: {path.name}: {e.strerror}") from e
    except UnicodeDecodeError as e:
        raise DefinitionError(f"{path}: not UTF-8 text") from e
    fields = dict(_fields(text))
    for name in FIELDS:
        if not fields.get(name):
            raise DefinitionError(
                f"{path}: the patch has no field {name}",
                hint=f"its head needs {', '.join(FIELDS)}",
            )
    return Patch(path, *(fields[name] for name in FIELDS))


def _fields(text: str) -> Iterator[tuple[str, str]]:
    key, value = "", ""
    for line in text.splitlines():
        if line[:1] in (" ", "\t") and key:
            value += " " + line.strip()
            continue
        if key:
            yield key, value
        name, colon, rest = line.partition(":")
        if not colon or not re.fullmatch(r"[A-Za-z-]+", name):
            return
        key, value = name, rest.strip()
    if key:
        yield key, value


def apply_patch(path: Path, tree: Path) -> None:
    """Apply the patch at `path` to `tree`, without fuzz: as written or not at all.

    Raises BuildError that names the file and the hunk. The tree is unchanged then.
    """
    program = require("patch", package="patch")
    options = ["--batch", "--forward", "-p1", "--fuzz=0", "--reject-file=-", "--input", str(path)]
    plain = {**os.environ, "LC_ALL": "C"}
    trial = run([program, *options, "--dry-run"], cwd=tree, check=False, timeout=120, env=plain)
    if trial.returncode != 0:
        raise BuildError(*_why(path, trial.stdout + trial.stderr))
    run(
        [program, *options, "--silent", "--no-backup-if-mismatch"],
        cwd=tree,
        timeout=120,
        env=plain,
    )


def _why(path: Path, output: str) -> tuple[str]:
    file = "?"
    for line in output.splitlines():
        if match := _FILE.match(line):
            file = match[1]
        elif match := _FAILED.match(line):
            return (f"{path.name} does not apply: {file}: hunk {match[1]} at line {match[2]}",)
        elif "previously applied" in line:
            return (
                f"{path.name} does not apply: {file}: the change is there already (upstream "
                "took it?)",
            )
        elif _MISSING.match(line):
            named = re.search(r"^\|\+\+\+ (?:b/)?(\S+)", output, re.MULTILINE)
            return (
                f"{path.name} does not apply: {named[1] if named else 'a file'} is not in the tree",
            )
    lines = output.strip().splitlines() or ["no message"]
    return (f"{path.name} does not apply: {lines[-1]}",)
