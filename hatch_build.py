"""Puts the compiled probes into a wheel: hatchling's build hook (pyproject.toml)."""

from __future__ import annotations

import sys
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path
from typing import Any

from hatchling.builders.hooks.plugin.interface import BuildHookInterface


class ProbeHook(BuildHookInterface):  # type: ignore[type-arg]
    """Compiles the BPF programs with clang; a source tree has `./dev` do that instead."""

    def initialize(self, version: str, build_data: dict[str, Any]) -> None:
        """Compile and add the objects, unless this is an editable installation."""
        if version == "editable":
            return
        source = Path(self.root) / "src"
        sys.path.insert(0, str(source))
        try:
            from tegu.errors import TeguError

            # By its file: the room around it needs packages that no build environment has.
            where = source / "tegu" / "packages" / "probes.py"
            spec = spec_from_file_location("tegu_probes", where)
            if spec is None or spec.loader is None:
                raise SystemExit(f"{where} cannot be loaded")
            probes = module_from_spec(spec)
            spec.loader.exec_module(probes)
            try:
                objects = probes.compile_objects()
            except TeguError as e:
                raise SystemExit(f"{e.message} ({e.hint or 'a wheel holds the probes'})") from e
        finally:
            sys.path.remove(str(source))
        for path in [*objects, objects[0].with_name("objects.json")]:
            build_data["force_include"][str(path)] = str(path.relative_to(source))
