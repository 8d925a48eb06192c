"""Builds the sandbox's launcher (src/tegu/sandbox/native/box.c) where there is a C compiler.

Static, so that it runs on any Linux of this architecture. Without a compiler the package is pure
Python: boxes then start more slowly. TEGU_LAUNCHER=no leaves it out, =yes makes it a must.
"""

from __future__ import annotations

import os
import shlex
import shutil
import subprocess
import sysconfig
from pathlib import Path
from typing import Any

from hatchling.builders.hooks.plugin.interface import BuildHookInterface

FLAGS = ["-std=gnu11", "-O2", "-Wall", "-static", "-s", "-fstack-protector-strong"]


class LauncherHook(BuildHookInterface):  # type: ignore[type-arg, misc]
    """Puts `tegu-box` beside its source, and into the wheel."""

    def initialize(self, version: str, build_data: dict[str, Any]) -> None:
        """Compile; called by hatchling before a wheel (or an editable one) is put together."""
        native = Path(self.root, "src", "tegu", "sandbox", "native")
        wish = os.environ.get("TEGU_LAUNCHER", "")
        target = native / "tegu-box"
        if wish == "no":
            target.unlink(missing_ok=True)
            return
        compiler = shlex.split(os.environ.get("CC", "cc"))
        fresh = native / f"tegu-box.{os.getpid()}"
        if shutil.which(compiler[0]) is None:
            why = f"there is no {compiler[0]}"
        else:
            command = [*compiler, *FLAGS, "-o", str(fresh), str(native / "box.c")]
            done = subprocess.run(command, capture_output=True, text=True, check=False)
            why = "" if done.returncode == 0 else done.stderr.strip()
        if why:
            fresh.unlink(missing_ok=True)
            target.unlink(missing_ok=True)
            if wish == "yes":
                raise RuntimeError(f"the sandbox's launcher cannot be built: {why}")
            self.app.display_warning(f"without the sandbox's launcher: {why}")
            return
        fresh.replace(target)
        if version != "editable":
            build_data["artifacts"].append("src/tegu/sandbox/native/tegu-box")
            build_data["pure_python"] = False
            platform = sysconfig.get_platform().replace("-", "_").replace(".", "_")
            build_data["tag"] = f"py3-none-{platform}"
