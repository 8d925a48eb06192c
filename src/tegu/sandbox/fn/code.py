"""A function's modules, compiled ahead by its zygote and run where they are wanted.

Compiling runs nothing of what is compiled, so that a zygote may do it for code that only
invocations may run.
"""

from __future__ import annotations

import os
import sys
from importlib.machinery import ModuleSpec
from types import CodeType, ModuleType
from typing import Any

__all__ = ["Finder", "compile_tree"]

_MOST_FILES = 4000
_MOST_BYTES = 2**20
_SKIPPED = frozenset(["__pycache__", ".git", "tests", "test"])


class Finder:
    """A meta path finder (importlib.abc.MetaPathFinder) and loader of compiled modules."""

    def __init__(self, modules: dict[str, tuple[CodeType, str, bool]]) -> None:
        self.modules = modules

    def find_spec(self, name: str, path: object = None, target: object = None) -> ModuleSpec | None:
        """Return the spec of a module that was compiled."""
        found = self.modules.get(name)
        if found is None:
            return None
        _, origin, package = found
        loader: Any = self  # importlib.abc, which has the type, is not loaded for it
        spec = ModuleSpec(name, loader, origin=origin, is_package=package)
        spec.has_location = True
        if package:
            spec.submodule_search_locations = [os.path.dirname(origin)]  # noqa: PTH120
        return spec

    def create_module(self, spec: ModuleSpec) -> ModuleType | None:
        """Let the machinery make it."""
        return None

    def exec_module(self, module: ModuleType) -> None:
        """Run it."""
        exec(self.modules[module.__name__][0], module.__dict__)

    def install(self, root: str) -> None:
        """Serve imports, before the files of the template and after the built-in modules."""
        names = [getattr(f, "__name__", "") for f in sys.meta_path]
        place = names.index("PathFinder") if "PathFinder" in names else len(names)
        sys.meta_path.insert(place, self)
        sys.path.insert(0, root)


def compile_tree(root: str) -> tuple[Finder, list[str]]:
    """Compile the modules below `root`; returns them and what did not compile, one line each."""
    modules: dict[str, tuple[CodeType, str, bool]] = {}
    bad: list[str] = []
    for directory, names, files in os.walk(root):
        names[:] = sorted(n for n in names if n not in _SKIPPED and n.isidentifier())
        for file in sorted(files):
            stem, dot, end = file.rpartition(".")
            if not dot or end != "py" or not stem.isidentifier() or len(modules) >= _MOST_FILES:
                continue
            path = f"{directory}/{file}"
            inside = directory[len(root) :].strip("/").replace("/", ".")
            package = stem == "__init__"
            name = inside if package else f"{inside}.{stem}" if inside else stem
            if not name:
                continue
            code = _compile(path, bad)
            if code is not None:
                modules[name] = (code, path, package)
    return Finder(modules), bad


def _compile(path: str, bad: list[str]) -> CodeType | None:
    try:
        with open(path, "rb") as f:  # noqa: PTH123
            source = f.read(_MOST_BYTES + 1)
        if len(source) > _MOST_BYTES:
            return None  # found as a file, by the usual way
        return compile(source, path, "exec", dont_inherit=True)
    except (SyntaxError, ValueError, RecursionError, MemoryError) as e:
        line = f":{e.lineno}" if isinstance(e, SyntaxError) else ""
        bad.append(f"{path}{line}: {type(e).__name__}: {getattr(e, 'msg', None) or e}")
    except OSError as e:
        bad.append(f"{path}: {e.strerror}")
    return None
