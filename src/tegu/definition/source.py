"""One TOML file on disk becomes one annotated table, or one clear problem."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path

from tegu.definition.locate import locate
from tegu.definition.nodes import Branch, annotate
from tegu.definition.problems import Problem, Stop

__all__ = ["MAX_BYTES", "parse", "read"]

MAX_BYTES = 4 * 1024 * 1024
"""A definition larger than this is a mistake (an image given as `-f`, say)."""

_POSITION = re.compile(r" \(at line (\d+), column (\d+)\)$")
_AT_END = " (at end of document)"


def read(path: Path, *, named_by: Problem | None = None) -> Branch:
    """Read and parse the TOML file at `path`; raises Stop with the one problem found.

    `named_by` is where the file is named; its place is used when the file cannot be read at all.
    """
    return parse(_text(path, named_by), path)


def _text(path: Path, named_by: Problem | None) -> str:
    def stop(what: str, hint: str | None = None) -> Stop:
        if named_by is None:
            return Stop(Problem(path, None, "", what, hint))
        what = f"{named_by.what}: {what}"
        return Stop(Problem(named_by.file, named_by.line, named_by.key, what, hint))

    try:
        # Not a regular file (a directory, a pipe that never ends): refused before it is opened.
        if path.is_dir():
            inside = path / "tegu.toml"
            hint = f"its definition is {inside}" if inside.is_file() else None
            raise stop("is a directory, not a file", hint)
        if path.exists() and not path.is_file():
            raise stop("is not a regular file")
        with path.open("rb") as f:
            data = f.read(MAX_BYTES + 1)
    except FileNotFoundError as e:
        hint = None if named_by else "`tegu new NAME` starts a definition; -f names another file"
        raise stop("no such file", hint) from e
    except (OSError, ValueError) as e:  # ValueError: a NUL in the path
        reason = e.strerror if isinstance(e, OSError) and e.strerror else str(e)
        raise stop(f"cannot be read: {reason}") from e
    if len(data) > MAX_BYTES:
        raise stop(f"is larger than {MAX_BYTES // 1024 // 1024} MiB, so no definition")
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as e:
        line = data.count(b"\n", 0, e.start) + 1
        problem = Problem(path, line, "", f"is not UTF-8 (byte 0x{data[e.start]:02x})")
        raise Stop(problem) from e


def parse(text: str, path: Path) -> Branch:
    """Parse `text`, the content of `path`; raises Stop with file, line and column."""
    try:
        data = tomllib.loads(text)
        root = annotate(data, path, locate(text))
    except tomllib.TOMLDecodeError as e:
        raise Stop(_syntax_problem(str(e), text, path)) from e
    except RecursionError as e:
        raise Stop(Problem(path, None, "", "is nested too deeply")) from e
    except ValueError as e:  # an integer of thousands of digits (sys.set_int_max_str_digits)
        raise Stop(Problem(path, None, "", f"is not valid TOML: {e}")) from e
    if not isinstance(root, Branch):
        raise TypeError("a TOML document is a table")
    return root


def _syntax_problem(message: str, text: str, path: Path) -> Problem:
    match = _POSITION.search(message)
    if match is not None:
        line, column = int(match[1]), int(match[2])
        message = message[: match.start()]
    else:
        message = message.removesuffix(_AT_END)
        body = text.replace("\r\n", "\n").rstrip("\n")
        line = body.count("\n") + 1
        column = len(body) - (body.rfind("\n") + 1) + 1
    words = message[:1].lower() + message[1:]
    hint = _HINTS.get(message.split("(")[0].strip())
    return Problem(path, line, "", f"not valid TOML: {words}", hint, column)


_HINTS = {
    "Cannot declare": "each [table] may stand once; [[table]] for lists of tables",
    "Cannot overwrite a value": "a key may stand once in a table",
    "Invalid value": "strings need quotes",
}
