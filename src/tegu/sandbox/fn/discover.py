"""What can be learnt of a function from its source, without running any of it."""

from __future__ import annotations

import ast
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tegu.errors import UsageError

__all__ = ["Found", "functions_of", "imports_of"]

_MODULE = "tegu.sandbox.fn"


@dataclass(frozen=True)
class Found:
    """A function marked with the decorator: its name in the module, and the decorator's options."""

    attribute: str
    options: dict[str, Any]


def functions_of(path: Path) -> list[Found]:
    """Return what is marked with `@function` in a file; raises UsageError naming file and line."""
    tree = _parsed(path)
    names = _names(tree)
    found = []
    for node in tree.body:
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            for mark in node.decorator_list:
                call = mark if isinstance(mark, ast.Call) else None
                if ast.unparse(call.func if call else mark) in names:
                    options = _options(path, call) if call else {}
                    found.append(Found(node.name, options))
    return found


def imports_of(paths: list[Path]) -> list[str]:
    """Return the modules that files import at their top level, dotted, sorted; files that cannot
    be parsed count for nothing here."""
    found: set[str] = set()
    for path in paths:
        try:
            tree = _parsed(path)
        except UsageError:
            continue
        for node in tree.body:
            if isinstance(node, ast.Import):
                found.update(alias.name for alias in node.names)
            elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
                found.add(node.module)
    return sorted(found)


def _parsed(path: Path) -> ast.Module:
    try:
        return ast.parse(path.read_bytes(), str(path))
    except OSError as e:
        raise UsageError(f"{path}: {e.strerror}") from e
    except SyntaxError as e:
        raise UsageError(f"{path}:{e.lineno}: {e.msg}") from e
    except (ValueError, RecursionError, MemoryError) as e:
        raise UsageError(f"{path}: it cannot be parsed: {e}") from e


def _names(tree: ast.Module) -> set[str]:
    """Return the names under which a file knows the decorator."""
    names: set[str] = set()
    for node in tree.body:
        if isinstance(node, ast.ImportFrom) and not node.level:
            for alias in node.names:
                if node.module == _MODULE and alias.name == "function":
                    names.add(alias.asname or alias.name)
                elif node.module == "tegu.sandbox" and alias.name == "fn":
                    names.add(f"{alias.asname or alias.name}.function")
        elif isinstance(node, ast.Import):
            for alias in node.names:
                if alias.name == _MODULE:
                    names.add(f"{alias.asname or alias.name}.function")
    return names


def _options(path: Path, call: ast.Call) -> dict[str, Any]:
    options = {}
    if call.args:
        raise UsageError(f"{path}:{call.lineno}: @function takes options by name only")
    for keyword in call.keywords:
        if keyword.arg is None:
            raise UsageError(f"{path}:{call.lineno}: @function takes no **options")
        try:
            options[keyword.arg] = ast.literal_eval(keyword.value)
        except ValueError:
            raise UsageError(
                f"{path}:{keyword.value.lineno}: @function({keyword.arg}=...) is not a literal",
                hint="options are read without running the file",
            ) from None
    return options
