"""How definitions are laid over one another.

Tables merge key by key, deeply; the later value wins. Lists append, without duplicates, in order;
an element `"-x"` takes an inherited `x` out, and `"-*"` takes out all. Lists of tables merge by the
keys that tell their entries apart; there the same "-" goes before the (first) key's value.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from tegu.definition.locate import Location
from tegu.definition.nodes import Branch, Leaf, Node, Place, Row
from tegu.definition.problems import Problem, nearest, shown_path
from tegu.definition.shape import KEYED, MAPS

__all__ = ["merge", "show_location"]

# What a file of the tree is: naming one kind takes the place of an inherited other.
_FILE_KINDS = ("content", "source", "symlink", "directory")
Report = Callable[[Problem], None]


def merge(base: Branch, over: Branch, report: Report, here: Location = ()) -> Branch:
    """Return `over` laid over `base`, both unchanged; what is wrong goes to `report`."""
    merged = Branch(over.place if not base.items else base.place, dict(base.items))
    for key, item in over.items.items():
        location = (*here, key)
        if here in MAPS and key.startswith("-"):
            _take_out_key(merged, key, item, report, location)
            continue
        old = merged.items.get(key)
        if old is not None and type(old) is not type(item):
            what = f"is {_kind(item)} here but {_kind(old)} at {_where(old.place)}"
            report(Problem.at(item.place, show_location(location), what))
        merged.items[key] = _merged(old, item, report, location)
    return merged


def _merged(old: Node | None, item: Node, report: Report, here: Location) -> Node:
    if isinstance(item, Branch):
        base = old if isinstance(old, Branch) else Branch(item.place)
        return merge(base, item, report, here)
    if isinstance(item, Row):
        row = old if isinstance(old, Row) else Row(item.place)
        if here in KEYED:
            return _merge_keyed(row, item, report, here)
        return _merge_list(row, item, report, here)
    return item


def _merge_list(base: Row, over: Row, report: Report, here: Location) -> Row:
    items = list(base.items)
    for item in over.items:
        if not isinstance(item, Leaf):
            items.append(item)
        elif item.value == "-*":
            items.clear()
        elif isinstance(item.value, str) and item.value.startswith("-") and len(item.value) > 1:
            _take_out(items, item, report, here)
        elif not any(_same(item, other) for other in items):
            items.append(item)
    return Row(base.place if base.items else over.place, items)


def _take_out(items: list[Node], item: Leaf, report: Report, here: Location) -> None:
    name = str(item.value)[1:]
    there = [i for i in items if isinstance(i, Leaf) and i.value == name]
    if there:
        items.remove(there[0])
        return
    known = [i.value for i in items if isinstance(i, Leaf) and isinstance(i.value, str)]
    report(_nothing_there(item.place, here, name, known))


def _take_out_key(merged: Branch, key: str, item: Node, report: Report, here: Location) -> None:
    name = key[1:]
    if not (isinstance(item, Leaf) and item.value is True):
        what = "a key with '-' before it takes an inherited one out, and its value is true"
        report(Problem.at(item.place, show_location(here), what))
    elif name == "*":
        merged.items.clear()
    elif merged.items.pop(name, None) is None:
        report(_nothing_there(item.place, here[:-1], name, list(merged.items)))


def _merge_keyed(base: Row, over: Row, report: Report, here: Location) -> Row:
    keys = KEYED[here]
    items = list(base.items)
    seen: dict[tuple[object, ...], Place] = {}
    for item in over.items:
        identity = _identity(item, keys)
        if identity is None or not isinstance(item, Branch):
            items.append(item)  # its shape is wrong, as the models will say
            continue
        shown = " ".join(str(part) for part in identity)
        location = f"{here[-1]}[{shown}]"
        first = str(identity[0])
        if first == "-*":
            items.clear()
            continue
        removal = first.startswith("-")
        wanted = (first[1:], *identity[1:]) if removal else identity
        index = next((i for i, n in enumerate(items) if _identity(n, keys) == wanted), None)
        if removal:
            further = [k for k in item.items if k not in keys]
            if further:
                what = f"takes an inherited entry out, so '{further[0]}' has no meaning"
                report(Problem.at(item.items[further[0]].place, location, what))
            elif index is None:
                known = [str(k[0]) for n in items if (k := _identity(n, keys)) is not None]
                report(_nothing_there(item.place, here, str(wanted[0]), known))
            else:
                del items[index]
            continue
        if identity in seen:
            what = f"is there twice; first at {_where(seen[identity])}"
            report(Problem.at(item.place, location, what))
        seen.setdefault(identity, item.place)
        old = items[index] if index is not None else Branch(item.place)
        if not isinstance(old, Branch):
            raise TypeError("an entry with an identity is a table")
        entry = merge(_without_other_kinds(old, item, here), item, report, (*here, 0))
        if index is None:
            items.append(entry)
        else:
            items[index] = entry
    return Row(base.place if base.items else over.place, items)


def _without_other_kinds(old: Branch, item: Branch, here: Location) -> Branch:
    if here != ("file",) or not any(kind in item.items for kind in _FILE_KINDS):
        return old
    kept = {k: v for k, v in old.items.items() if k not in _FILE_KINDS}
    return Branch(old.place, kept)


def _identity(node: Node, keys: tuple[str, ...]) -> tuple[object, ...] | None:
    if not isinstance(node, Branch):
        return None
    parts = []
    for key in keys:
        item = node.items.get(key)
        if not isinstance(item, Leaf) or not isinstance(item.value, str):
            return None
        parts.append(item.value)
    return tuple(parts)


def _nothing_there(place: Place, here: Location, name: str, known: list[str]) -> Problem:
    near = nearest(name, known)
    hint = f"did you mean '-{near}'?" if near else None
    if not known:
        hint = "nothing is inherited; a default is not, it ends when the key is set at all"
    return Problem.at(place, show_location(here), f"'{name}' is not there to take out", hint)


def _same(a: Node, b: Node) -> bool:
    if not isinstance(a, Leaf) or not isinstance(b, Leaf):
        return False
    return type(a.value) is type(b.value) and a.value == b.value


def _kind(node: Node) -> str:
    return {Branch: "a table", Row: "a list"}.get(type(node), "a single value")


def _where(place: Place) -> str:
    return f"{shown_path(Path(place.file))}:{place.line}"


def show_location(location: Location) -> str:
    """Return `location` as a person writes it: `packages.install[2]` (elements from 0)."""
    shown = ""
    for part in location:
        if isinstance(part, int):
            shown += f"[{part}]"
        else:
            shown += f".{part}" if shown else part
    return shown
