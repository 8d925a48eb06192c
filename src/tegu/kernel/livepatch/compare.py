"""What a patch changed: two objects of one source file, compared piece by piece.

A function has changed when its bytes, what it refers to, or the rows of the exception, alternative
and jump label tables about it are others. Line numbers of warnings stand in a table of their own
and do not count. What a live patch cannot change is refused with its reason
(Documentation/livepatch/livepatch.rst, "Limitations").
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass

from tegu.errors import UnsupportedError
from tegu.kernel.livepatch.pieces import (
    Constant,
    Entry,
    Outside,
    Piece,
    Ref,
    Taken,
    is_exit,
    is_init,
)

__all__ = ["Change", "compare", "is_copied"]

# Data that gcc and macros make for one place in the code, without state that matters: a patched
# function gets its own. Flags of "once" are among them: a message may come once more.
_COPIED = re.compile(
    r"(?:CSWTCH|__func__|__FUNCTION__|__PRETTY_FUNCTION__|__already_done|__already_printed"
    r"|__warned|__msg|___ratelimit_once|__UNIQUE_ID_ddebug\d*|descriptor)(?:\.\d+)*$"
)
_NUMBER = re.compile(r"(?:\.\d+)+$|(?<=^__UNIQUE_ID_)(\D*)\d+(?:\.\d+)*$")
# The rows that say where a warning was: address, file, line (16 bits), flags (asm-generic/bug.h).
_BUG_TABLE, _BUG_LINE = "__bug_table", slice(8, 10)
# They follow the code, or tell the tools of the build what to make of it.
_UNCOMPARED = ("__mcount_loc", ".discard.")


@dataclass(frozen=True)
class Change:
    """What one patched object has that the original has not.

    `functions` are replaced, by the names of both; `added` are new functions, or such as ftrace
    cannot redirect: what calls them is replaced. `originals` maps the names of the patched object's
    data to those of the original, where it is the same variable.
    """

    original: Taken
    patched: Taken
    functions: tuple[str, ...]
    added: tuple[str, ...]
    originals: dict[str, str]


def is_copied(piece: Piece) -> bool:
    """Whether a patched function takes a copy of the data instead of the running kernel's."""
    if piece.section.name == "__dyndbg":
        return True
    if piece.start == piece.end and not piece.is_text:
        # No content, no state: the class of a lock, where locking is not checked (lockdep).
        return True
    return piece.symbol is None or bool(_COPIED.match(piece.name))


def compare(original: Taken, patched: Taken) -> Change:
    """Compare the objects of one source file before and after a patch.

    Raises UnsupportedError for a change that cannot be made while the kernel runs.
    """
    source = original.source
    if original.exports != patched.exports:
        names = ", ".join(sorted(original.exports ^ patched.exports))
        raise UnsupportedError(f"{source}: the patch changes what is exported to modules: {names}")
    originals = _correlate(original, patched)
    theirs = {name: name for name in original.pieces}
    before, after = _Signer(theirs), _Signer(originals)
    changed: set[str] = set()
    added: list[str] = []
    for piece in patched.functions:
        old = original.pieces.get(piece.name)
        if old is None or not old.is_text:
            if is_init(piece.section):
                raise UnsupportedError(
                    f"{source}: the patch adds {piece.name}, which would run at boot only",
                    hint="a live patch cannot change what the kernel did when it started",
                )
            added.append(piece.name)
        elif before.function(old) != after.function(piece):
            # The unlikely part of a function goes with it.
            changed.add(piece.parent)
    changed &= original.pieces.keys() & patched.pieces.keys()
    carried = _carry(source, original, changed)
    added += carried
    _refuse_data(source, original, patched, originals, before, after)
    order = [p.name for p in patched.functions]
    return Change(
        original,
        patched,
        tuple(n for n in order if n in changed),
        tuple(n for n in added if not n.endswith(".cold")),
        originals,
    )


def _carry(source: str, original: Taken, changed: set[str]) -> list[str]:
    """Take functions without an ftrace entry out of `changed`, and put in what calls them.

    (The kernel's `inline` means notrace, too; gcc may still make a function of it.) Raises
    UnsupportedError for a function that nothing can replace.
    """
    carried: list[str] = []
    todo = sorted(changed)
    while todo:
        name = todo.pop()
        piece = original.pieces[name]
        if is_init(piece.section) or is_exit(piece.section):
            raise UnsupportedError(
                f"{source}: the patch changes {name}, which the kernel runs once and throws away",
                hint="a live patch cannot change what the kernel did when it started",
            )
        if _has_entry(piece):
            continue
        callers = _callers(piece, original)
        if not callers:
            raise UnsupportedError(
                f"{source}: the patch changes {name}, which has no ftrace entry (notrace, noinstr "
                "or assembly)",
                hint="change the functions that call it instead",
            )
        changed.discard(name)
        carried.append(name)
        for caller in callers - changed - set(carried):
            changed.add(caller)
            todo.append(caller)
    return carried


def _has_entry(piece: Piece) -> bool:
    """Whether the function begins with the call that ftrace redirects (gcc's -mfentry)."""
    return any(
        isinstance(r.target, Outside) and r.target.name == "__fentry__" and r.offset < 16
        for r in piece.refs
    )


def _callers(piece: Piece, original: Taken) -> set[str]:
    """Return the functions that call a static function; empty when others may reach it."""
    if piece.is_global or not piece.section.name.startswith(".text."):
        return set()
    callers = set()
    for user in original.pieces.values():
        for ref in _all_refs(user):
            if ref.target is not piece or (ref in user.refs and user.parent == piece.parent):
                continue
            if ref in user.refs and ref.branch:
                callers.add(user.parent)
            elif ref in user.refs:
                return set()
    return callers


def _correlate(original: Taken, patched: Taken) -> dict[str, str]:
    """Match the data of both objects: static variables of functions have numbers that shift."""
    result: dict[str, str] = {}
    users_before, users_after = _users(original), _users(patched)
    groups: dict[str, tuple[list[Piece], list[Piece]]] = defaultdict(lambda: ([], []))
    for side, taken in enumerate((original, patched)):
        for piece in taken.pieces.values():
            if not piece.is_text and piece.symbol is not None:
                groups[_base(piece.name)][side].append(piece)
    for olds, news in groups.values():
        left = {p.name: p for p in olds}
        for new in news:
            old = left.get(new.name)
            alone = len(olds) == len(news) == 1
            if old is not None and (
                not _numbered(new.name)
                or users_before.get(old.name) == users_after.get(new.name)
                or alone
            ):
                result[new.name] = old.name
                del left[old.name]
        rest = [p for p in news if p.name not in result]
        for new in rest:
            users = users_after.get(new.name, frozenset())
            same = [o for o in left.values() if users_before.get(o.name, frozenset()) == users]
            rivals = [n for n in rest if users_after.get(n.name, frozenset()) == users]
            if len(same) == 1 and len(rivals) == 1:
                result[new.name] = same[0].name
                del left[same[0].name]
        rest = [p for p in rest if p.name not in result]
        if rest and left and not all(is_copied(p) for p in rest):
            names = ", ".join(p.name for p in rest)
            raise UnsupportedError(
                f"{patched.source}: cannot tell which of the static variables {names} is new",
                hint="give the new one a name of its own",
            )
    return result


def _base(name: str) -> str:
    return _NUMBER.sub("", name) or name


def _numbered(name: str) -> bool:
    return _base(name) != name


def _users(taken: Taken) -> dict[str, frozenset[str]]:
    """Return by piece the functions that refer to it."""
    users: dict[str, set[str]] = defaultdict(set)
    for piece in taken.pieces.values():
        for ref in _all_refs(piece):
            if isinstance(ref.target, Piece):
                users[ref.target.name].add(piece.parent)
    return {name: frozenset(names) for name, names in users.items()}


def _all_refs(piece: Piece) -> Iterable[Ref]:
    yield from piece.refs
    for entry in piece.entries:
        yield from entry.refs
        if entry.replacement is not None:
            yield from entry.replacement.refs


class _Signer:
    """Says what a piece is, in words that do not depend on where things lie."""

    def __init__(self, originals: dict[str, str]) -> None:
        self.originals = originals

    def function(self, piece: Piece) -> object:
        entries = [
            self._entry(e) for e in piece.entries if not e.section.name.startswith(_UNCOMPARED)
        ]
        return (piece.content, self._refs(piece.refs), sorted(entries, key=repr))

    def data(self, piece: Piece) -> object:
        return (piece.content, self._refs(piece.refs))

    def _refs(self, refs: list[Ref]) -> object:
        return [(r.offset, r.kind, r.delta, self._target(r.target)) for r in refs]

    def _target(self, target: Piece | Constant | Outside) -> object:
        if isinstance(target, Outside):
            return ("outside", target.name)
        if isinstance(target, Constant):
            return ("constant", target.data)
        if target.is_text:
            return ("function", target.name)
        if is_copied(target):
            return ("copy", _base(target.name), target.content if not target.refs else b"")
        return ("data", self.originals.get(target.name, f"new {target.name}"))

    def _entry(self, entry: Entry) -> object:
        data = bytearray(entry.data)
        if entry.section.name == _BUG_TABLE:
            data[_BUG_LINE] = bytes(2)
        code = entry.replacement
        refs = [r for r in entry.refs if r.target is not code]
        return (
            entry.section.name,
            bytes(data),
            self._refs(refs),
            None if code is None else (code.content, self._refs(code.refs)),
        )


def _refuse_data(
    source: str,
    original: Taken,
    patched: Taken,
    originals: dict[str, str],
    before: _Signer,
    after: _Signer,
) -> None:
    """Refuse changed variables; a variable that is gone, or new and used by none, is no matter."""
    for piece in patched.pieces.values():
        if piece.is_text or (is_copied(piece) and piece.symbol is not None):
            continue
        if piece.symbol is None:
            first = original.pieces.get(piece.name)
            if _registers(piece.section.name) and (
                first is None or before.data(first) != after.data(piece)
            ):
                raise UnsupportedError(
                    f"{source}: the patch changes what is registered at boot "
                    f"({piece.section.name})",
                    hint="a live patch cannot change what the kernel did when it started",
                )
            continue
        name = originals.get(piece.name)
        if name is None:
            if piece.section.name.startswith((".init.", "__param", "__tracepoints", "_ftrace")):
                raise UnsupportedError(
                    f"{source}: the patch adds {piece.name} to {piece.section.name}, which the "
                    "kernel reads at boot"
                )
            continue
        old = original.pieces[name]
        if len(old.content) != len(piece.content):
            raise UnsupportedError(
                f"{source}: the patch changes the size of {name} from {len(old.content)} to "
                f"{len(piece.content)} bytes",
                hint="the kernel uses the one that is there; keep its layout, or use a shadow "
                "variable (klp_shadow_alloc)",
            )
        if before.data(old) != after.data(piece):
            raise UnsupportedError(
                f"{source}: the patch changes the initial value of {name}",
                hint="the kernel has initialised it long ago; change the functions that use it",
            )


def _registers(section: str) -> bool:
    return section.startswith((".initcall", ".con_initcall", "__ksymtab", ".init"))
