"""The lock on disk: a small, fixed part of TOML, written sorted and read in milliseconds.

Every value is a string, a whole number, a boolean or an array of strings, one key per line, so that
`git diff` shows exactly the packages that changed. Any TOML reader can read it; ours reads only
what `dump` writes, and says at which line a file is something else.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any, NoReturn

from tegu.errors import LockError
from tegu.packages.lock import Lock, LockedPackage, LockedRepository

__all__ = ["FORMAT", "default_lock_path", "dump", "load", "parse"]

FORMAT = 1
_HEAD = "# Written by `tegu lock` and read by `tegu build`. Commit it; do not edit it.\n"
_END = "# End of the lock."
_STRING, _INTEGER, _BOOLEAN, _ARRAY = "a string", "a whole number", "true or false", "an array"
_TOP = {
    "format": _INTEGER,
    "definition": _STRING,
    "architecture": _STRING,
    "timestamp": _INTEGER,
    "requested": _ARRAY,
}
_REPOSITORY = {
    "id": _STRING,
    "uri": _STRING,
    "suite": _STRING,
    "components": _ARRAY,
    "inrelease_sha256": _STRING,
    "date": _INTEGER,
}
_PACKAGE = {
    "name": _STRING,
    "version": _STRING,
    "architecture": _STRING,
    "size": _INTEGER,
    "sha256": _STRING,
    "filename": _STRING,
    "repository": _STRING,
    "source": _STRING,
    "source_version": _STRING,
    "section": _STRING,
    "priority": _STRING,
    "essential": _BOOLEAN,
    "installed_size": _INTEGER,
}
_OPTIONAL = {"section", "priority", "essential", "installed_size", "source", "source_version"}
_TABLES = {"repository": _REPOSITORY, "system": _PACKAGE, "tools": _PACKAGE}
# What may become part of a path or a command is held to the package format's own rules.
_PATTERNS = {
    "name": re.compile(r"[a-z0-9][a-z0-9+.-]+"),
    "version": re.compile(r"[0-9A-Za-z][0-9A-Za-z.+~:-]*"),
    "architecture": re.compile(r"[a-z0-9][a-z0-9-]*"),
    "sha256": re.compile(r"[0-9a-f]{64}"),
    "inrelease_sha256": re.compile(r"[0-9a-f]{64}"),
    "filename": re.compile(r"(?!/)(?!(.*/)?\.\.(/|$))[^\x00-\x1f]+"),
}


def default_lock_path(definition: Path, profile: str | None = None) -> Path:
    """Return where the lock of a definition is kept: beside it, one for each profile asked for."""
    directory = definition if definition.is_dir() else definition.parent
    return directory / (f"tegu.{profile}.lock" if profile else "tegu.lock")


def dump(lock: Lock) -> str:
    """Return the text of a lock: the same lock gives the same text."""
    out = [_HEAD, f"format = {FORMAT}"]
    out.append(f"definition = {_quote(lock.definition)}")
    out.append(f"architecture = {_quote(lock.architecture)}")
    out.append(f"timestamp = {lock.timestamp}")
    out.append("requested = [")
    out.extend(f"  {_quote(name)}," for name in sorted(lock.requested))
    out.append("]")
    for repository in lock.repositories:
        out.append("\n[[repository]]")
        out.extend(_lines(repository, _REPOSITORY))
    for title, packages in (("system", lock.system), ("tools", lock.tools)):
        for package in sorted(packages, key=lambda p: (p.name, p.architecture)):
            out.append(f"\n[[{title}]]")
            out.extend(_lines(package, _PACKAGE))
    out.append(f"\n{_END}")
    return "\n".join(out) + "\n"


def _lines(item: LockedRepository | LockedPackage, keys: Iterable[str]) -> Iterable[str]:
    for key in keys:
        value = getattr(item, key)
        if isinstance(item, LockedPackage) and value == _default(item, key):
            continue
        if isinstance(value, bool):
            yield f"{key} = {str(value).lower()}"
        elif isinstance(value, int):
            yield f"{key} = {value}"
        elif isinstance(value, str):
            yield f"{key} = {_quote(value)}"
        else:
            yield f"{key} = [{', '.join(map(_quote, value))}]"


def _default(item: LockedPackage, key: str) -> object:
    defaults = {
        "source": item.name,
        "source_version": item.version,
        "section": "",
        "priority": "optional",
        "essential": False,
        "installed_size": 0,
    }
    return defaults.get(key)


def _quote(text: str) -> str:
    # JSON's string escapes are a subset of those of a TOML basic string, but for DEL.
    return json.dumps(text, ensure_ascii=False).replace("\x7f", "\\u007f")


def load(path: Path) -> Lock:
    """Read a lock file; raises LockError with `file:line` when it is not one of ours."""
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError as e:
        raise LockError(f"{path} does not exist", hint="make it with `tegu lock`") from e
    except OSError as e:
        raise LockError(f"{path}: {e.strerror}") from e
    except UnicodeDecodeError as e:
        raise LockError(f"{path}: not a text file: {e.reason} at byte {e.start}") from e
    return parse(text, str(path))


def parse(text: str, name: str = "tegu.lock") -> Lock:
    """Parse the text of a lock; `name` is what errors call it."""
    return _Reader(text, name).read()


class _Reader:
    def __init__(self, text: str, name: str) -> None:
        self.lines = text.split("\n")
        self.file = name
        self.number = 0

    def fail(self, why: str, line: int | None = None, hint: str | None = None) -> NoReturn:
        raise LockError(
            f"{self.file}:{line or self.number}: {why}",
            hint=hint or "restore the file from version control, or remove it and run `tegu lock`",
        )

    def read(self) -> Lock:
        top: dict[str, Any] = {}
        tables: dict[str, list[dict[str, Any]]] = {name: [] for name in _TABLES}
        starts: dict[int, int] = {}
        self._rows(top, tables, starts)
        self._check_format(top)
        if _END not in self.lines[-2:]:
            self.fail("the file was cut short", len(self.lines))
        self._complete(top, _TOP, 1)
        del top["format"]
        for title, rows in tables.items():
            for row in rows:
                if title != "repository" and "name" in row and "version" in row:
                    row.setdefault("source", row["name"])
                    row.setdefault("source_version", row["version"])
                self._complete(row, _TABLES[title], starts[id(row)])
        return Lock(
            **{**top, "requested": tuple(top["requested"])},
            repositories=tuple(
                LockedRepository(**{**row, "components": tuple(row["components"])})
                for row in tables["repository"]
            ),
            system=self._packages(tables, "system", starts),
            tools=self._packages(tables, "tools", starts),
        )

    def _rows(
        self,
        top: dict[str, Any],
        tables: dict[str, list[dict[str, Any]]],
        starts: dict[int, int],
    ) -> None:
        """Read all lines; `starts` gets the line of each table, by its row's identity."""
        current, schema = top, _TOP
        lines = iter(enumerate(self.lines, 1))
        for number, line in lines:
            if not line or line[0] == "#":
                continue
            self.number = number
            if line[0] == "[":
                title = line[2:-2]
                if line != f"[[{title}]]" or title not in _TABLES:
                    self.fail(f"unknown table {line!r}")
                self._check_format(top)
                current, schema = {}, _TABLES[title]
                starts[id(current)] = number
                tables[title].append(current)
                continue
            key, equals, value = line.partition(" = ")
            wanted = schema.get(key)
            if not equals or wanted is None:
                self._check_format(top)  # a newer format has keys that we do not know
                self.fail(f"unknown key {key.strip()!r}" if equals else f"not a lock: {line!r}")
            if key in current:
                self.fail(f"{key} is there twice")
            if value == "[":
                current[key] = [self._item(item) for item in self._until_bracket(lines)]
            else:
                current[key] = self._value(key, value, wanted)
            if key == "format":
                self._check_format(top)

    def _packages(
        self, tables: dict[str, list[dict[str, Any]]], title: str, starts: dict[int, int]
    ) -> tuple[LockedPackage, ...]:
        known = {row["id"] for row in tables["repository"]} | {"local"}
        seen: set[tuple[str, str]] = set()
        for row in tables[title]:
            key = (row["name"], row["architecture"])
            if key in seen:
                self.fail(f"the package {row['name']} is there twice", starts[id(row)])
            seen.add(key)
            if row["repository"] not in known:
                self.fail(f"there is no repository {row['repository']!r}", starts[id(row)])
        return tuple(LockedPackage(**row) for row in tables[title])

    def _check_format(self, top: dict[str, Any]) -> None:
        found = top.get("format")
        if found is None:
            self.fail("not a lock of Tegu: it does not begin with `format`")
        if found > FORMAT:
            self.fail(
                f"the lock has format {found}, this tegu reads {FORMAT}",
                hint="it was written by a newer tegu: use that one, or make the lock again",
            )
        if found != FORMAT:
            self.fail(f"the lock has format {found}, this tegu reads {FORMAT}")

    def _complete(self, row: dict[str, Any], schema: dict[str, str], line: int) -> None:
        for key in schema:
            if key not in row and key not in _OPTIONAL:
                self.fail(f"{key} is missing", line)

    def _until_bracket(self, lines: Iterable[tuple[int, str]]) -> Iterable[str]:
        for number, line in lines:
            self.number = number
            if line == "]":
                return
            yield line
        self.fail("the array does not end: the file was cut short")

    def _item(self, line: str) -> str:
        text = line.strip()
        value = self._value("", text.removesuffix(","), _STRING)
        assert isinstance(value, str)
        return value

    def _value(self, key: str, value: str, wanted: str) -> Any:
        found: Any = None
        if value[:1] == '"' and value[-1:] == '"' and len(value) > 1:
            inner = value[1:-1]
            found = inner if '"' not in inner and "\\" not in inner else self._json(value)
        elif value.isascii() and value.isdigit():
            found = int(value[:20])
        elif value in ("true", "false"):
            found = value == "true"
        elif value[:1] == "[":
            found = self._json(value)
        if _KINDS.get(type(found)) != wanted:
            self.fail(f"{key or 'the entry'} must be {wanted}, not {value[:60]}")
        if wanted == _ARRAY and not all(isinstance(item, str) for item in found):
            self.fail(f"{key} must hold strings only")
        pattern = _PATTERNS.get(key)
        if pattern is not None and not pattern.fullmatch(found):
            self.fail(f"{key} is malformed: {value[:100]}")
        return found

    def _json(self, value: str) -> Any:
        try:
            return json.loads(value)
        except (ValueError, RecursionError):
            self.fail(f"malformed value {value[:60]}")


_KINDS = {str: _STRING, int: _INTEGER, bool: _BOOLEAN, list: _ARRAY}
