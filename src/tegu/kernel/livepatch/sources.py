"""Which source files a patch concerns: those it changes, and those that read its headers."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Collection
from pathlib import Path, PurePosixPath

from tegu.errors import UnsupportedError, UsageError

__all__ = ["files_of", "units"]

_OLD = re.compile(r"^--- (\S+)", re.MULTILINE)
_NEW = re.compile(r"^\+\+\+ (\S+)", re.MULTILINE)
_INCLUDE = re.compile(r'^\s*#\s*include\s*[<"]([^>"]+)[>"]', re.MULTILINE)
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
    .c files that include it, directly or by others; UnsupportedError when that cannot be known or
    they are very many.
    """
    result = {f for f in files if f.endswith(".c")}
    headers = [f for f in files if f.endswith(".h")]
    if built is not None:
        for name in sorted(result):
            if name not in built:
                raise UnsupportedError(
                    f"{name} is not in this kernel: its configuration does not compile it"
                )
    if headers and built is None:
        raise UnsupportedError(
            f"the patch changes {headers[0]}, and what the kernel compiled with it is not known",
            hint="build the kernel with `tegu kernel build` on this machine: the store then knows",
        )
    if headers and built is not None:
        found = _including(headers, tree, built)
        if len(found) > _MOST:
            raise UnsupportedError(
                f"{len(found)} source files read {', '.join(headers)}: too many to compare",
                hint="change the functions in .c files instead",
            )
        result |= found
    return sorted(result)


def _including(headers: Collection[str], tree: Path, built: Collection[str]) -> set[str]:
    """Return the .c files of `built` that lead to a header, by the names in their #include lines.

    An include that could mean several files is taken to mean all of them: a file too many costs a
    compilation, one too few would leave old code in the kernel.
    """
    users: dict[str, set[str]] = defaultdict(set)
    for name in built:
        path = tree / name
        if path.is_file():
            for included in _INCLUDE.findall(path.read_text(errors="replace")):
                users[included.rpartition("/")[2]].add(name)
    found: set[str] = set()
    todo = list(headers)
    if _EVERYWHERE & set(headers):
        return {f for f in built if f.endswith(".c")}
    while todo:
        name = todo.pop()
        tail = name.rpartition("/")[2]
        for user in users.get(tail, ()):
            if user in _EVERYWHERE:
                return {f for f in built if f.endswith(".c")}
            if user not in found and _may_mean(user, name, tree):
                found.add(user)
                todo.append(user)
    return {f for f in found if f.endswith(".c")}


def _may_mean(user: str, header: str, tree: Path) -> bool:
    text = (tree / user).read_text(errors="replace")
    # "../x.h" and the like may be any file of that name; what has directories must end with them.
    # Kbuild makes asm/x.h for asm-generic/x.h where the architecture has none of its own.
    spelled = header.replace("/asm-generic/", "/asm/")
    return any(
        f"/{header}".endswith(f"/{included}")
        or f"/{spelled}".endswith(f"/{included}")
        or "." in included.split("/")[0]
        for included in _INCLUDE.findall(text)
        if included.rpartition("/")[2] == header.rpartition("/")[2]
    )
