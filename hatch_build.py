"""What a wheel has compiled: the sandbox's programs and the probes (hatchling's build hook).

The sandbox's launcher and its microVMs' first process (src/tegu/sandbox/native) are static, so that
they run on any Linux of this architecture. Without a C compiler there are none: boxes start more
slowly, and microVMs not at all. TEGU_LAUNCHER=no leaves them out, =yes makes them a must. The
probes (src/tegu/probe/bpf) need clang, and a wheel has them; in a source tree `./dev` compiles
them.
"""

from __future__ import annotations

import os
import shlex
import shutil
import subprocess
import sys
import sysconfig
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path
from typing import Any

from hatchling.builders.hooks.plugin.interface import BuildHookInterface

PROGRAMS = (("box.c", "tegu-box"), ("guest.c", "tegu-guest"))
FLAGS = ["-std=gnu11", "-O2", "-Wall", "-static", "-s", "-fstack-protector-strong"]


class NativeHook(BuildHookInterface):  # type: ignore[type-arg, misc]
    """Called by hatchling before a wheel (or an editable one) is put together."""

    def initialize(self, version: str, build_data: dict[str, Any]) -> None:
        """Compile what is C, and add it to the wheel."""
        root = Path(self.root)
        native = root / "src/tegu/sandbox/native"
        built = [target for source, target in PROGRAMS if self._compiled(native, source, target)]
        if built and version != "editable":
            build_data["artifacts"] += [f"src/tegu/sandbox/native/{name}" for name in built]
            build_data["pure_python"] = False
            platform = sysconfig.get_platform().replace("-", "_").replace(".", "_")
            build_data["tag"] = f"py3-none-{platform}"
        if version != "editable":
            for path in _probes(root / "src"):
                build_data["force_include"][str(path)] = str(path.relative_to(root / "src"))

    def _compiled(self, native: Path, source: str, name: str) -> bool:
        """Put the program `name` beside its source; False when there is none."""
        wish = os.environ.get("TEGU_LAUNCHER", "")
        target = native / name
        if wish == "no":
            target.unlink(missing_ok=True)
            return False
        compiler = shlex.split(os.environ.get("CC", "cc"))
        fresh = native / f"{name}.{os.getpid()}"
        if shutil.which(compiler[0]) is None:
            why = f"there is no {compiler[0]}"
        else:
            command = [*compiler, *FLAGS, "-o", str(fresh), str(native / source)]
            done = subprocess.run(command, capture_output=True, text=True, check=False)
            why = "" if done.returncode == 0 else done.stderr.strip()
        if why:
            fresh.unlink(missing_ok=True)
            target.unlink(missing_ok=True)
            if wish == "yes":
                raise RuntimeError(f"the sandbox's {name} cannot be built: {why}")
            self.app.display_warning(f"without the sandbox's {name}: {why}")
            return False
        fresh.replace(target)
        return True


def _probes(source: Path) -> list[Path]:
    """Compile the probes; returns the objects and the list of them."""
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
            objects: list[Path] = probes.compile_objects()
        except TeguError as e:
            raise SystemExit(f"{e.message} ({e.hint or 'a wheel holds the probes'})") from e
    finally:
        sys.path.remove(str(source))
    return [*objects, objects[0].with_name("objects.json")]
