"""What pydantic found wrong, in words for people and with the line it stands on."""

from __future__ import annotations

import datetime
import typing
from collections.abc import Iterable, Mapping

from pydantic import BaseModel
from pydantic_core import ErrorDetails

from tegu.definition.locate import Location
from tegu.definition.merge import show_location
from tegu.definition.nodes import Branch, Node, Row, find
from tegu.definition.problems import Problem, nearest
from tegu.definition.shape import KEYED, key_owners, keys_at, literals_at, type_at
from tegu.definition.types import WORDS

__all__ = ["explain", "key_text", "problem_at"]

# Keys of a file that are dealt with before the models see it.
_FILE_KEYS = ("include", "profile", "architecture")


def explain(errors: Iterable[ErrorDetails], root: Branch) -> list[Problem]:
    """Return the problems that `errors` (of validating what `root` holds) stand for, once each."""
    found: dict[tuple[Location, str], Problem] = {}
    for error in errors:
        location = _clean(error["loc"])
        what, hint = _words(error, location, root)
        found.setdefault((location, what), problem_at(root, location, what, hint))
    return list(found.values())


def problem_at(root: Branch, location: Location, what: str, hint: str | None = None) -> Problem:
    """Return a problem at `location`, on the line of the deepest part of it that exists."""
    node, _ = find(root, location)
    return Problem.at(node.place, key_text(root, location), what, hint)


def key_text(root: Branch, location: Location) -> str:
    """Return `location` in words: `file[/etc/motd].mode`, not `file[3].mode`.

    The index of an element in a list of plain values is left out: merging has changed it.
    """
    if len(location) > 1 and (location[0],) in KEYED:
        entry, reached = find(root, location[:2])
        names = KEYED[(location[0],)]
        if reached == location[:2] and isinstance(entry, Branch):
            values = [getattr(entry.items.get(name), "value", None) for name in names]
            if all(isinstance(value, str) for value in values):
                head = f"{location[0]}[{' '.join(map(str, values))}]"
                rest = show_location(tuple(p for p in location[2:] if isinstance(p, str)))
                return f"{head}.{rest}" if rest else head
    if location and isinstance(location[-1], int) and (location[0],) not in KEYED:
        location = location[:-1]
    return show_location(location)


def _clean(location: tuple[int | str, ...]) -> Location:
    """Take off what pydantic adds to a location: members of a union, marks of a dict's key."""
    kept: Location = ()
    for part in location:
        here = type_at(kept)
        model = isinstance(here, type) and issubclass(here, BaseModel)
        if not model and typing.get_origin(here) not in (list, dict):
            break
        if part != "[key]":
            kept = (*kept, part)
    return kept


def _words(error: ErrorDetails, location: Location, root: Branch) -> tuple[str, str | None]:
    kind = error["type"]
    context: Mapping[str, object] = error.get("ctx", {})
    value = error["input"]
    what = error["msg"][:1].lower() + error["msg"][1:]
    hint = None
    if kind == "extra_forbidden":
        what, hint = "unknown key", _nearest_key(location)
    elif kind == "missing":
        what = "is missing"
    elif kind == "literal_error":
        known = literals_at(location)
        near = nearest(str(value), known)
        what = f"{_short(value)} is not one of {', '.join(known)}"
        hint = f"did you mean '{near}'?" if near else None
    elif kind == "string_pattern_mismatch":
        asked = WORDS.get(str(context["pattern"]), f"of the form {context['pattern']}")
        what = f"{_short(value)} is not {asked}"
    elif kind in _BOUNDS:
        phrase, key = _BOUNDS[kind]
        what = phrase.format(context[key])
    elif kind.endswith("_type"):
        node, _ = find(root, location)
        what, hint = _wrong_type(location, value, node)
    return what, hint


_BOUNDS = {
    "greater_than_equal": ("must be at least {}", "ge"),
    "less_than_equal": ("must be at most {}", "le"),
    "string_too_long": ("is longer than {} characters", "max_length"),
    "string_too_short": ("must have at least {} character", "min_length"),
    "too_short": ("must have at least {} entry", "min_length"),
}
_ASKED = {str: "a string", int: "an integer", bool: "true or false"}


def _wrong_type(location: Location, value: object, node: Node) -> tuple[str, str | None]:
    here = type_at(location)
    given = _name(value)
    hint = None
    if isinstance(here, type) and issubclass(here, BaseModel):
        asked = "a table"
        if isinstance(node, Row) and node.items and isinstance(node.items[0], Branch):
            hint = f"write [{location[-1]}] with single brackets"
    elif typing.get_origin(here) is list:
        asked = "a list"
        if isinstance(value, dict) and location in KEYED:
            hint = f"write [[{location[-1]}]] with double brackets"
        elif isinstance(value, str):
            hint = f'write ["{value}"]' if len(value) < 40 and '"' not in value else None
    elif typing.get_origin(here) is dict:
        asked = "a table"
    elif isinstance(here, type) and here in _ASKED:
        asked = _ASKED[here]
        hint = _type_hint(here, value)
    elif isinstance(here, type):
        asked = "a path in quotes"
    else:
        asked = "an integer or a string"
        hint = "write 1 or 0" if isinstance(value, bool) else None
    return f"must be {asked}, not {given}", hint


def _type_hint(asked: type, value: object) -> str | None:
    if asked is str and isinstance(value, int | float | datetime.date):
        return "write it in quotes"
    if asked is int and isinstance(value, str) and value.isdecimal():
        return "write it without quotes"
    if asked is bool and str(value).lower() in ("yes", "no", "true", "false", "on", "off"):
        return "write true or false, without quotes"
    return None


def _name(value: object) -> str:
    names: dict[type, str] = {
        bool: "a boolean",
        int: "an integer",
        float: "a number",
        str: "a string",
        list: "a list",
        dict: "a table",
    }
    return names.get(type(value), "a date or time")


def _short(value: object) -> str:
    shown = repr(value)
    return shown if len(shown) <= 60 else shown[:56] + "...'"


def _nearest_key(location: Location) -> str:
    key = str(location[-1])
    siblings = keys_at(location[:-1])
    known = [*dict.fromkeys((*siblings, *_FILE_KEYS))] if len(location) == 1 else [*siblings]
    near = nearest(key, known)
    if near:
        return f"did you mean '{near}'?"
    elsewhere = [_table(name) for name in key_owners().get(key, ())]
    if elsewhere:
        return f"'{key}' belongs {' or '.join(elsewhere)}"
    return f"known keys: {', '.join(known)}"


def _table(name: str) -> str:
    if not name:
        return "at the top of the file, before any table"
    return f"in [[{name}]]" if (name,) in KEYED else f"in [{name}]"
