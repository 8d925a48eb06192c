"""A definition written out in full: TOML that loads back to an equal definition, and JSON.

What TOML can not say (null) is left out, which means the same: such options have no other default.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from typing import Any

from tegu.definition.locate import Location
from tegu.definition.models import Definition
from tegu.definition.shape import KEYED
from tegu.errors import DefinitionError

__all__ = ["to_json", "to_toml"]

_BARE = re.compile(r"[A-Za-z0-9_-]+")
_ESCAPES = {"\b": "\\b", "\t": "\\t", "\n": "\\n", "\f": "\\f", "\r": "\\r", '"': '\\"'}
_ESCAPES["\\"] = "\\\\"
_WIDTH = 88
Comment = Callable[[Location], str | None]


def to_json(definition: Definition) -> dict[str, Any]:
    """Return the resolved definition as data for `json.dump`, options without a value left out."""
    data = definition.model_dump(mode="json", exclude_none=True)
    data["kernel"]["package"] = definition.kernel.package or "none"
    return data


def to_toml(definition: Definition, *, comment: Comment | None = None) -> str:
    """Return `definition` as TOML, with every option that has a value.

    `comment` may say something about an option; it is put behind it. Raises DefinitionError when a
    value (a path that is not UTF-8) has no place in TOML.
    """
    data = to_json(definition)
    data.pop("include")
    profile = data.pop("profile", None)
    writer = _Writer(comment or (lambda _: None))
    # What stands before the first table: the lists and values of the top level.
    for key, value in data.items():
        empty = (key,) in KEYED and not value  # `user = []` would forbid a later [[user]]
        if not isinstance(value, dict) and not _is_tables(value) and not empty:
            writer.pair(key, value, (key,))
    for key, value in data.items():
        if isinstance(value, dict):
            writer.table(key, value, (key,))
        elif _is_tables(value):
            for index, entry in enumerate(value):
                writer.lines += ["", f"[[{key}]]"]
                for name, item in entry.items():
                    writer.pair(name, item, (key, index, name))
    if profile is not None:
        # Its options are merged in already: it is named, and adds nothing.
        writer.lines += ["", "[profile]", f"default = {_string(profile)}"]
        writer.lines += ["", f"[profile.{_key(profile)}]"]
    text = "\n".join(writer.lines).lstrip("\n") + "\n"
    try:
        text.encode()
    except UnicodeEncodeError as e:
        bad = text[e.start : e.end]
        raise DefinitionError(f"a name is not UTF-8 and can not be written: {bad!r}") from e
    return text


def _is_tables(value: object) -> bool:
    return isinstance(value, list) and bool(value) and isinstance(value[0], dict)


class _Writer:
    def __init__(self, comment: Comment) -> None:
        self.lines: list[str] = []
        self.comment = comment

    def table(self, name: str, value: Mapping[str, Any], here: Location) -> None:
        self.lines += ["", f"[{name}]"]
        inner = {}
        for key, item in value.items():
            if isinstance(item, dict):
                inner[key] = item
            else:
                self.pair(key, item, (*here, key))
        for key, item in inner.items():
            if item:
                self.table(f"{name}.{_key(key)}", item, (*here, key))

    def pair(self, key: str, value: object, here: Location) -> None:
        remark = self.remark(here)
        one_line = f"{_key(key)} = {_value(value)}"
        if isinstance(value, list) and value:
            remarks = [self.remark((*here, index)) for index in range(len(value))]
            if len(one_line) <= _WIDTH and not any(remarks):
                self.lines.append(one_line)
                return
            self.lines.append(f"{_key(key)} = [")
            items = zip(value, remarks, strict=True)
            self.lines += [f"  {_value(item)},{said}" for item, said in items]
            self.lines.append("]")
        elif isinstance(value, str) and "\n" in value:
            self.lines.append(f"{_key(key)} = {_long_string(value)}{remark}")
        else:
            self.lines.append(one_line + remark)

    def remark(self, here: Location) -> str:
        said = self.comment(here)
        return "  # " + "".join(c if _plain(c) else "?" for c in said) if said else ""


def _key(key: str) -> str:
    return key if _BARE.fullmatch(key) else _string(key)


def _value(value: object) -> str:
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, int):
        return str(value)
    if isinstance(value, str):
        return _string(value)
    if isinstance(value, list):
        return f"[{', '.join(_value(item) for item in value)}]"
    raise TypeError(f"no definition holds a {type(value).__name__}")


def _string(value: str) -> str:
    return f'"{_escaped(value)}"'


def _long_string(value: str) -> str:
    # A line break right after the opening quotes is not part of the string.
    lines = (_escaped(line) for line in value.split("\n"))
    return '"""\n' + "\n".join(lines) + '"""'


def _escaped(value: str) -> str:
    return "".join(_ESCAPES.get(c) or (c if _plain(c) else f"\\u{ord(c):04X}") for c in value)


def _plain(c: str) -> bool:
    # TOML 1.0 forbids these controls; the others here are invisible or break lines in a terminal.
    return ord(c) >= 0x20 and not 0x7F <= ord(c) <= 0x9F and c not in "\u2028\u2029\ufeff"
