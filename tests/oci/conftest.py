"""Bundles whose root shows this machine's /usr, and `tegu-oci` with a state directory."""

from __future__ import annotations

import copy
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tegu.oci.example import example

SCRIPT = Path(__file__).parents[2] / "src/tegu/oci/__main__.py"
COMMAND = [sys.executable, "-I", "-S", str(SCRIPT)]


class Runtime:
    """The command under test."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.root = directory / "state"
        self.names: list[str] = []

    def __call__(self, *words: str, check: bool = True, **more: Any) -> Any:
        """Run a command to its end."""
        done = subprocess.run(
            [*COMMAND, "--root", str(self.root), *words],
            **{"capture_output": True, "text": True, "timeout": 120, "check": False} | more,
        )
        if check:
            assert done.returncode == 0, (words, done.stdout, done.stderr)
        return done

    def bundle(self, *args: str, change: Callable[[dict[str, Any]], None] | None = None) -> Path:
        """Make a bundle that runs `args`; `change` may edit its configuration."""
        made = self.directory / f"bundle{len(list(self.directory.glob('bundle*')))}"
        root = made / "rootfs"
        for name in ("proc", "sys", "dev", "tmp", "usr", "etc"):
            (root / name).mkdir(parents=True)
        for name in ("bin", "sbin", "lib", "lib64"):
            if Path("/", name).is_symlink():
                (root / name).symlink_to(Path("/", name).readlink())
        config = copy.deepcopy(example(rootless=False))
        config["process"]["terminal"] = False
        config["process"]["args"] = list(args)
        config["root"]["readonly"] = False
        config["mounts"] = [m for m in config["mounts"] if m["type"] != "cgroup"]
        config["mounts"].append(
            {"destination": "/usr", "source": "/usr", "options": ["rbind", "ro"]}
        )
        if change is not None:
            change(config)
        (made / "config.json").write_text(json.dumps(config))
        return made

    def run(
        self, *args: str, change: Callable[[dict[str, Any]], None] | None = None, **more: Any
    ) -> Any:
        """Run a container to its end."""
        name = self.name()
        return self("run", "--bundle", str(self.bundle(*args, change=change)), name, **more)

    def sh(self, script: str, change: Callable[[dict[str, Any]], None] | None = None) -> str:
        """Return what a shell script prints in a container."""
        text: str = self.run("sh", "-c", script, change=change).stdout
        return text

    def name(self) -> str:
        """Return a name that is new on this machine, and remembered for the end."""
        self.names.append(f"tegu-test-{os.getpid()}-{len(self.names)}")
        return self.names[-1]

    def state(self, name: str) -> dict[str, Any]:
        """Return what `state` says."""
        found: dict[str, Any] = json.loads(self("state", name).stdout)
        return found


@pytest.fixture
def oci(tmp_path: Path) -> Iterator[Runtime]:
    """The runtime; skips where containers cannot be made."""
    if os.geteuid() != 0:
        pytest.skip("containers are made as root here")
    runtime = Runtime(tmp_path)
    yield runtime
    for name in runtime.names:
        runtime("delete", "--force", name, check=False)
    left = list(runtime.root.iterdir()) if runtime.root.exists() else []
    assert left == [], "containers are left behind"


def until(true: Callable[[], object]) -> None:
    """Wait for something that must come true."""
    for _ in range(1200):
        if true():
            return
        time.sleep(0.05)
    raise AssertionError("waited in vain for a minute")
