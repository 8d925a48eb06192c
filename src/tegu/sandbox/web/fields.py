"""Data from outside, read field by field; a wrong one is refused by its name.

The same declarations make the schemas of the published description (`openapi`).
"""

from __future__ import annotations

import base64
import binascii
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from tegu.sandbox.web.fault import Fault

__all__ = ["Field", "Fields", "from_json", "read"]

_TYPES: dict[str, dict[str, Any]] = {
    "text": {"type": "string"},
    "number": {"type": "number"},
    "whole": {"type": "integer"},
    "flag": {"type": "boolean"},
    "texts": {"type": "array", "items": {"type": "string"}},
    "table": {"type": "object", "additionalProperties": {"type": "string"}},
    "base64": {"type": "string", "contentEncoding": "base64"},
    "object": {"type": "object"},
}
_EXAMPLES = {"flag": "true or false", "texts": "a list of texts", "table": "a table of texts"}


@dataclass(frozen=True)
class Field:
    """One field of a body or a query: `kind` is a key of the types above; several are parted by
    " or "."""

    name: str
    kind: str
    about: str
    required: bool = False
    choices: tuple[str, ...] = ()

    def schema(self) -> dict[str, Any]:
        """Return its JSON Schema."""
        kinds = [dict(_TYPES[kind]) for kind in self.kind.split(" or ")]
        body: dict[str, Any] = kinds[0] if len(kinds) == 1 else {"anyOf": kinds}
        if self.choices:
            body["enum"] = list(self.choices)
        return {**body, "description": self.about}


def read(data: object, known: Sequence[Field], *, what: str = "the body") -> dict[str, Any]:
    """Return the fields of a JSON object, checked against what is known.

    A field that is null is not there. Raises Fault that names the field.
    """
    if not isinstance(data, dict):
        raise Fault("invalid_argument", f"{what} is not a JSON object")
    by_name = {f.name: f for f in known}
    for name in data:
        if name not in by_name:
            raise Fault(
                "invalid_argument",
                f"{name}: there is no such field",
                hint=f"there are {', '.join(by_name)}" if by_name else None,
            )
    there = {name: value for name, value in data.items() if value is not None}
    for field in known:
        if field.name in there:
            _check(field, there[field.name])
        elif field.required:
            raise Fault("invalid_argument", f"{field.name}: it is missing")
    return there


def _check(field: Field, value: object) -> None:
    if not any(_fits(kind, value) for kind in field.kind.split(" or ")):
        wanted = " or ".join(_EXAMPLES.get(k, f"a {k}") for k in field.kind.split(" or "))
        raise Fault("invalid_argument", f"{field.name}: {_short(value)} is not {wanted}")
    if field.choices and value not in field.choices:
        raise Fault(
            "invalid_argument",
            f"{field.name}: {_short(value)} is none of {', '.join(field.choices)}",
        )


def _fits(kind: str, value: object) -> bool:
    if kind in ("text", "base64"):
        return isinstance(value, str)
    if kind == "flag":
        return isinstance(value, bool)
    if kind == "whole":
        return isinstance(value, int) and not isinstance(value, bool)
    if kind == "number":
        right = isinstance(value, int | float) and not isinstance(value, bool)
        return right and math.isfinite(float(value))  # type: ignore[arg-type]
    if kind == "texts":
        return isinstance(value, list) and all(isinstance(v, str) for v in value)
    if kind == "table":
        return isinstance(value, dict) and all(isinstance(v, str) for v in value.values())
    return isinstance(value, dict)


def _short(value: object) -> str:
    text = json.dumps(value, default=str)
    return text if len(text) <= 60 else text[:57] + "..."


def from_json(data: bytes, what: str = "the body") -> Any:
    """Return what JSON text says; raises Fault. Nothing at all is an empty object."""
    if not data.strip():
        return {}
    try:
        return json.loads(data)
    except (ValueError, RecursionError) as e:
        raise Fault("invalid_argument", f"{what} is no JSON: {e}") from None


class Fields:
    """A protobuf message in JSON (protobuf.dev/programming-guides/json): names in lowerCamelCase or
    as declared, unknown ones ignored, whole numbers perhaps as text, bytes as base64."""

    def __init__(self, data: object, where: str = "") -> None:
        if not isinstance(data, Mapping):
            raise Fault("invalid_argument", f"{where or 'the message'} is not a JSON object")
        self._data = data
        self._where = where

    def _get(self, name: str) -> object:
        value = self._data.get(_camel(name))
        return self._data.get(name) if value is None else value

    def _wrong(self, name: str, wanted: str) -> Fault:
        return Fault("invalid_argument", f"{self.path(name)}: it is not {wanted}")

    def path(self, name: str) -> str:
        """Return a field's name with those of the messages around it."""
        return f"{self._where}.{name}" if self._where else name

    def has(self, name: str) -> bool:
        """Whether a field is set."""
        return self._get(name) is not None

    def text(self, name: str) -> str:
        """Return a string, "" by default."""
        value = self._get(name)
        if value is None:
            return ""
        if not isinstance(value, str):
            raise self._wrong(name, "text")
        return value

    def whole(self, name: str) -> int:
        """Return a whole number of 32 bits, 0 by default."""
        value = self._get(name)
        if isinstance(value, str) and value.isascii() and value.isdigit() and len(value) < 11:
            value = int(value)
        if value is None:
            return 0
        if not isinstance(value, int) or isinstance(value, bool) or not 0 <= value < 2**32:
            raise self._wrong(name, "a whole number of 32 bits")
        return value

    def flag(self, name: str, *, default: bool = False) -> bool:
        """Return a bool."""
        value = self._get(name)
        if value is None:
            return default
        if not isinstance(value, bool):
            raise self._wrong(name, "true or false")
        return value

    def texts(self, name: str) -> list[str]:
        """Return repeated strings."""
        value = self._get(name)
        if value is None:
            return []
        if not isinstance(value, list) or not all(isinstance(v, str) for v in value):
            raise self._wrong(name, "a list of texts")
        return value

    def table(self, name: str) -> dict[str, str]:
        """Return a map of strings."""
        value = self._get(name)
        if value is None:
            return {}
        if not isinstance(value, dict) or not all(isinstance(v, str) for v in value.values()):
            raise self._wrong(name, "a table of texts")
        return value

    def data(self, name: str) -> bytes:
        """Return bytes."""
        text = self.text(name).replace("-", "+").replace("_", "/")
        try:
            return base64.b64decode(text + "=" * (-len(text) % 4), validate=True)
        except (binascii.Error, ValueError):
            raise self._wrong(name, "base64") from None

    def message(self, name: str) -> Fields:
        """Return a message inside, empty by default."""
        value = self._get(name)
        return Fields({} if value is None else value, self.path(name))


def _camel(name: str) -> str:
    first, *rest = name.split("_")
    return first + "".join(word.capitalize() for word in rest)
