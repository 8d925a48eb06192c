"""What a wheel has compiled: the sandbox's programs and the probes (hatchling's build hook).

The launcher (src/tegu/sandbox/native/box.c) and the first process of microVMs (guest.c) are static,
so that they run on any Linux of this architecture; what forks functions (fork.c) needs no library.
Without a C compiler there is none: boxes start more slowly, and microVMs not at all;
TEGU_LAUNCHER=no leaves them out, =yes makes them a must. The probes (src/tegu/probe/bpf) need
clang, and a wheel has them; in a source tree `./dev` compiles them.
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

_FLAGS = ["-std=gnu11", "-O2", "-Wall", "-s"]
NATIVE = {
    "tegu-box": ("box.c", [*_FLAGS, "-static", "-fstack-protector-strong"]),
    "tegu-guest": ("guest.c", [*_FLAGS, "-static", "-fstack-protector-strong"]),
    "tegu-hold": ("hold.c", [*_FLAGS, "-static", "-fstack-protector-strong"]),
    # Without libc, which calls nothing of a template's either; so nothing checks its stack.
    "tegu-fork.so": (
        "fork.c",
        [
            *_FLAGS,
            "-shared",
            "-fPIC",
            "-nostdlib",
            "-ffreestanding",
            "-fno-stack-protector",
            "-fno-builtin",
            "-fno-tree-loop-distribute-patterns",
        ],
    ),
}


class NativeHook(BuildHookInterface):  # type: ignore[type-arg, misc]
    """Called by hatchling before a wheel (or an editable one) is put together."""

    def initialize(self, version: str, build_data: dict[str, Any]) -> None:
        """Compile what is C, and add it to the wheel."""
        root = Path(self.root)
        if self._launcher(root / "src/tegu/sandbox/native") and version != "editable":
            build_data["artifacts"] += [f"src/tegu/sandbox/native/{name}" for name in NATIVE]
            build_data["pure_python"] = False
            platform = sysconfig.get_platform().replace("-", "_").replace(".", "_")
            build_data["tag"] = f"py3-none-{platform}"
        if version != "editable":
            for path in _probes(root / "src"):
                build_data["force_include"][str(path)] = str(path.relative_to(root / "src"))

    def _launcher(self, native: Path) -> bool:
        """Put what is C beside its source, all of it; False when there is none."""
        wish = os.environ.get("TEGU_LAUNCHER", "")
        if wish == "no":
            _remove(native)
            return False
        compiler = shlex.split(os.environ.get("CC", "cc"))
        why = "" if shutil.which(compiler[0]) else f"there is no {compiler[0]}"
        for target, (source, flags) in NATIVE.items():
            why = why or _compile([*compiler, *flags], native / source, native / target)
        if why:
            _remove(native)
            if wish == "yes":
                raise RuntimeError(f"what the sandbox has in C cannot be built: {why}")
            self.app.display_warning(f"without what the sandbox has in C: {why}")
            return False
        return True


def _remove(native: Path) -> None:
    for target in NATIVE:
        (native / target).unlink(missing_ok=True)


def _compile(command: list[str], source: Path, target: Path) -> str:
    """Compile one file; returns what went wrong."""
    fresh = target.with_name(f"{target.name}.{os.getpid()}")
    whole = [*command, "-o", str(fresh), str(source)]
    done = subprocess.run(whole, capture_output=True, text=True, check=False)
    if done.returncode:
        fresh.unlink(missing_ok=True)
        return done.stderr.strip()
    fresh.replace(target)
    return ""


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
