"""Questions about the models: what stands at a location, which values are paths, which are keys."""

from __future__ import annotations

import types
import typing
from collections.abc import Iterator, Mapping
from functools import cache
from pathlib import Path
from types import MappingProxyType

from pydantic import BaseModel

from tegu.definition.locate import Location
from tegu.definition.models import Definition

__all__ = ["KEYED", "MAPS", "key_owners", "keys_at", "literals_at", "path_locations", "type_at"]

KEYED: Mapping[Location, tuple[str, ...]] = MappingProxyType(
    {("file",): ("path",), ("user",): ("name",), ("repository",): ("uri", "suite")}
)
"""Lists of tables, and the keys that tell their entries apart."""

MAPS: tuple[Location, ...] = (("packages", "pin"), ("sysctl",))
"""Tables whose keys are names rather than options."""


def _bare(annotation: object) -> object:
    """Take `Annotated[...]`, `X | None` and named aliases off an annotation."""
    while True:
        if typing.get_origin(annotation) is typing.Annotated:
            annotation = typing.get_args(annotation)[0]
        elif isinstance(annotation, types.UnionType) or typing.get_origin(annotation) is (
            typing.Union
        ):
            members = [a for a in typing.get_args(annotation) if a is not type(None)]
            if len(members) != 1:
                return annotation
            annotation = members[0]
        else:
            return annotation


def type_at(location: Location) -> object:
    """Return the annotation (without `| None`) at `location`, or None when there is no such key."""
    here: object = Definition
    for part in location:
        origin = typing.get_origin(here)
        if isinstance(part, int) and origin is list:
            here = _bare(typing.get_args(here)[0])
        elif isinstance(part, str) and origin is dict:
            here = _bare(typing.get_args(here)[1])
        elif isinstance(part, str) and isinstance(here, type) and issubclass(here, BaseModel):
            found = here.model_fields.get(part)
            if found is None:
                return None
            here = _bare(found.annotation)
        else:
            return None
    return here


def keys_at(location: Location) -> tuple[str, ...]:
    """Return the options of the table at `location`; empty when it is no table of options."""
    here = type_at(location)
    if isinstance(here, type) and issubclass(here, BaseModel):
        return tuple(here.model_fields)
    return ()


def literals_at(location: Location) -> tuple[str, ...]:
    """Return the words that a value at `location` is limited to; empty when it is not."""
    here = type_at(location)
    if typing.get_origin(here) is typing.Literal:
        return tuple(str(a) for a in typing.get_args(here))
    return ()


@cache
def key_owners() -> Mapping[str, tuple[str, ...]]:
    """Return, for each option's name, the tables that have it ("" is the top of the file)."""
    owners: dict[str, list[str]] = {}
    for name in Definition.model_fields:
        owners.setdefault(name, []).append("")
        inner = type_at((name,))
        inside = keys_at((name, 0) if typing.get_origin(inner) is list else (name,))
        for key in inside:
            owners.setdefault(key, []).append(name)
    return {key: tuple(tables) for key, tables in owners.items()}


@cache
def path_locations() -> tuple[tuple[str, ...], ...]:
    """Return the locations of paths on the build machine; "*" stands for any list index."""

    def walk(here: object, location: tuple[str, ...]) -> Iterator[tuple[str, ...]]:
        if here is Path:
            yield location
        elif typing.get_origin(here) is list:
            yield from walk(_bare(typing.get_args(here)[0]), (*location, "*"))
        elif isinstance(here, type) and issubclass(here, BaseModel):
            for name, found in here.model_fields.items():
                yield from walk(_bare(found.annotation), (*location, name))

    return tuple(found for found in walk(Definition, ()) if found != ("include", "*"))
