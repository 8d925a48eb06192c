"""Configuration fragments: what a kernel is to have, each option with the reason.

A fragment is in the format of a kernel's `.config` (Documentation/kbuild/kconfig.rst), so that the
kernel's own tools read it too. A comment holds for the options under it, up to the next empty
line; an option without one is refused.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

from tegu.errors import DefinitionError

__all__ = ["Option", "merge", "merged_text", "parse_config", "read_fragment"]

_SET = re.compile(r"CONFIG_([A-Za-z0-9_]+)=(.*)")
_UNSET = re.compile(r"# CONFIG_([A-Za-z0-9_]+) is not set")
_VALUE = re.compile(r'[ynm]|-?\d+|0x[0-9a-fA-F]+|"(?:[^"\\]|\\.)*"')


@dataclass(frozen=True, slots=True)
class Option:
    """One option as a fragment asks for it; `value` is as in `.config`, "n" for "is not set"."""

    name: str
    value: str
    reason: str
    file: str
    line: int

    @property
    def where(self) -> str:
        return f"{self.file}:{self.line}"


def read_fragment(path: Path) -> list[Option]:
    """Read a fragment; raises DefinitionError that points at the line."""
    try:
        text = path.read_text(encoding="utf-8")
    except OSError as e:
        raise DefinitionError(f"cannot read the fragment {path}: {e.strerror}") from e
    except UnicodeDecodeError as e:
        raise DefinitionError(f"{path}: not UTF-8 text") from e
    return parse_fragment(text, path.name)


def parse_fragment(text: str, file: str) -> list[Option]:
    """Parse the text of a fragment; `file` is what errors and options call it."""
    options: list[Option] = []
    seen: dict[str, int] = {}
    comment: list[str] = []
    for number, raw in enumerate(text.splitlines(), 1):
        line = raw.strip()
        if not line:
            comment = []
            continue
        unset = _UNSET.fullmatch(line)
        if line.startswith("#") and unset is None:
            # A comment after options begins a new group, also without an empty line between.
            if options and seen and options[-1].line == number - 1:
                comment = []
            comment.append(line.lstrip("#").strip())
            continue
        match = unset or _SET.fullmatch(line)
        where = f"{file}:{number}"
        if match is None:
            raise DefinitionError(
                f"{where}: neither an option nor a comment: {line[:60]!r}",
                hint="options are written CONFIG_NAME=y, or # CONFIG_NAME is not set",
            )
        name, value = match[1], "n" if unset else match[2]
        if not _VALUE.fullmatch(value):
            raise DefinitionError(f"{where}: CONFIG_{name}: {value!r} is no value of an option")
        if not comment:
            raise DefinitionError(
                f"{where}: CONFIG_{name} has no reason",
                hint="write it as a comment above the option or its group",
            )
        if name in seen:
            raise DefinitionError(f"{where}: CONFIG_{name} is there twice (line {seen[name]})")
        seen[name] = number
        options.append(Option(name, value, " ".join(comment), file, number))
    return options


def merge(fragments: Iterable[Iterable[Option]]) -> dict[str, Option]:
    """Return the options by name; a later fragment wins over an earlier one."""
    return {option.name: option for fragment in fragments for option in fragment}


def merged_text(options: Mapping[str, Option]) -> str:
    """Return the options as one `.config`, sorted."""
    return "".join(
        f"# CONFIG_{o.name} is not set\n" if o.value == "n" else f"CONFIG_{o.name}={o.value}\n"
        for _, o in sorted(options.items())
    )


def parse_config(text: str) -> dict[str, str]:
    """Return the values of a kernel's `.config` by option; what is not set is "n"."""
    values = {}
    for line in text.splitlines():
        if match := _SET.fullmatch(line.strip()):
            values[match[1]] = match[2]
        elif match := _UNSET.fullmatch(line.strip()):
            values[match[1]] = "n"
    return values
