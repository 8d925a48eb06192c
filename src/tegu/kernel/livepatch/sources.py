"""Which source files a patch concerns: those it changes, and those that read its headers."""

from __future__ import annotations

import posixpath
import re
from collections import defaultdict
from collections.abc import Collection
from pathlib import Path, PurePosixPath

from tegu.errors import UnsupportedError, UsageError

__all__ = ["files_of", "units"]

_OLD = re.compile(r"^--- (\S+)", re.MULTILINE)
_NEW = re.compile(r"^\+\+\+ (\S+)", re.MULTILINE)
_INCLUDE = re.compile(r'^\s*#\s*include\s*([<"])([^>"]+)[>"]', re.MULTILINE)
_MOST = 64
# The compiler reads them before every file (LINUXINCLUDE in the kernel's Makefile).
_EVERYWHERE = {f"include/linux/{n}.h" for n in ("compiler-version", "compiler_types", "kconfig")}


def files_of(patch: Path) -> list[str]:
    """Return the files that a patch (-p1) changes.

    Raises UsageError when there is none, UnsupportedError for files that come, go, or are no C.
    """
    try:
        text = patch.read_text(errors="replace")
    except OSError as e:
        raise UsageError(f"cannot read {patch}: {e.strerror}") from e
    old, new = _OLD.findall(text), _NEW.findall(text)
    if not new or len(old) != len(new):
        raise UsageError(f"{patch.name} is no patch (diff -u, with a/ and b/ before the names)")
    found = []
    for before, after in zip(old, new, strict=True):
        if "/dev/null" in (before, after):
            verb = "adds" if before == "/dev/null" else "removes"
            name = after if verb == "adds" else before
            raise UnsupportedError(
                f"{patch.name} {verb} {name.partition('/')[2]}: a live patch replaces functions of "
                "files that the kernel was built from",
                hint="put new code into one of them",
            )
        name = after.partition("/")[2]
        if ".." in PurePosixPath(name).parts or name.startswith("/") or not name:
            raise UsageError(f"{patch.name}: the name {after!r} leads out of the tree")
        if not name.endswith((".c", ".h")):
            raise UnsupportedError(f"{patch.name} changes {name}, which is not C")
        if name not in found:
            found.append(name)
    return found


def units(files: Collection[str], tree: Path, built: Collection[str] | None) -> list[str]:
    """Return the .c files to compile because `files` change, sorted.

    `built` has all files that the kernel's build read (None: unknown). For a header these are the
    .c files that include it, directly or by others, and so for a .c file that another includes;
    UnsupportedError when that cannot be known or they are very many.
    """
    headers = [f for f in files if f.endswith(".h")]
    if built is None:
        if headers:
            raise UnsupportedError(
                f"the patch changes {headers[0]}, and what the kernel compiled with it is not "
                "known",
                hint="build the kernel with `tegu kernel build` on this machine: the store then "
                "knows",
            )
        return sorted(files)
    for name in sorted(files):
        if name not in built:
            raise UnsupportedError(
                f"{name} is not in this kernel: its configuration does not compile it"
            )
    if _EVERYWHERE & set(headers):
        raise UnsupportedError(f"all source files read {headers[0]}: too many to compare")
    found = _including(files, tree, built)
    if len(found) > _MOST:
        raise UnsupportedError(
            f"{len(found)} source files read {', '.join(sorted(files))}: too many to compare",
            hint="change the functions in .c files instead",
        )
    return sorted(found)


def _including(files: Collection[str], tree: Path, built: Collection[str]) -> set[str]:
    """Return the .c files of `built` that are compiled because of `files`, by #include lines.

    An include that could mean several files is taken to mean all of them: a file too many costs a
    compilation, one too few would leave old code in the kernel.
    """
    users: dict[str, set[str]] = defaultdict(set)
    for name in built:
        path = tree / name
        if path.is_file():
            for _, included in _INCLUDE.findall(path.read_text(errors="replace")):
                users[posixpath.basename(included)].add(name)
    found = set(files)
    todo = list(files)
    parts: set[str] = set()
    while todo:
        name = todo.pop()
        for user in users.get(posixpath.basename(name), ()):
            if user == name or not _may_mean(user, name, tree):
                continue
            if user in _EVERYWHERE:
                return {f for f in built if f.endswith(".c")}
            if name.endswith(".c"):
                parts.add(name)  # compiled as a part of its user, not by itself
            if user not in found:
                found.add(user)
                todo.append(user)
    return {f for f in found - parts if f.endswith(".c")}


def _may_mean(user: str, header: str, tree: Path) -> bool:
    text = (tree / user).read_text(errors="replace")
    # Kbuild makes asm/x.h for asm-generic/x.h where the architecture has none of its own.
    spelled = header.replace("/asm-generic/", "/asm/")
    for quote, included in _INCLUDE.findall(text):
        if posixpath.basename(included) != posixpath.basename(header):
            continue
        beside = posixpath.normpath(posixpath.join(posixpath.dirname(user), included))
        if quote == '"' and (tree / beside).is_file():
            # The compiler looks beside the file first.
            if beside == header:
                return True
        elif included.startswith("../") or any(
            f"/{name}".endswith(f"/{included}") for name in (header, spelled)
        ):
            return True
    return False
