"""The machine that `tegu` itself runs on."""

from __future__ import annotations

import os
import platform
import shutil
from pathlib import Path
from types import TracebackType
from typing import Self

from tegu.errors import MachineError, UnsupportedError
from tegu.lab.machine import Command, Result, shell_words
from tegu.process import CommandError, run

__all__ = ["LocalMachine"]


class LocalMachine:
    """This machine: commands run here; it is neither rebooted nor switched off from within."""

    @property
    def name(self) -> str:
        """The host name."""
        return platform.node() or "localhost"

    def start(self) -> None:
        """Nothing to do: it runs."""

    def wait_for_ssh(self, timeout: float = 300) -> float:
        """Commands can be run at once: 0 seconds."""
        return 0.0

    def run(
        self,
        command: Command,
        *,
        root: bool = False,
        timeout: float = 60,
        stdin: str | None = None,
    ) -> Result:
        """Run `command` in /bin/sh, with a timeout that ends everything it started."""
        line = shell_words(command, sudo=root and os.geteuid() != 0)
        try:
            done = run(["/bin/sh", "-c", line], check=False, timeout=timeout, stdin=stdin)
        except CommandError as e:
            raise MachineError(f"{self.name}: {e.message}") from e
        code = done.returncode if done.returncode >= 0 else 128 - done.returncode
        return Result(code, done.stdout, done.stderr, done.seconds)

    def copy_in(self, source: Path, target: str, *, timeout: float = 300) -> None:
        """Copy a file or directory."""
        _copy(source, Path(target))

    def copy_out(self, source: str, target: Path, *, timeout: float = 300) -> None:
        """Copy a file or directory."""
        _copy(Path(source), target)

    def console(self) -> str:
        """A machine does not see its own console: always empty."""
        return ""

    def wait_for_console(self, pattern: str, *, timeout: float = 60, after: int = 0) -> str:
        """UnsupportedError: there is no console to watch."""
        raise UnsupportedError("this machine cannot watch its own console")

    def wait_for_exit(self, timeout: float = 60) -> None:
        """UnsupportedError: who would tell?"""
        raise UnsupportedError("this machine cannot wait for its own end")

    def reboot(self, timeout: float = 300) -> float:
        """UnsupportedError: `tegu` would go down with it."""
        raise UnsupportedError("the machine that runs tegu is not rebooted by it")

    def power_off(self, timeout: float = 120) -> float:
        """UnsupportedError: `tegu` would go down with it."""
        raise UnsupportedError("the machine that runs tegu is not switched off by it")

    def kill(self) -> None:
        """UnsupportedError, like power_off."""
        raise UnsupportedError("the machine that runs tegu is not switched off by it")

    def release(self) -> None:
        """Nothing is held."""

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        return None


def _copy(source: Path, target: Path) -> None:
    try:
        if source.is_dir():
            shutil.copytree(source, target / source.name if target.is_dir() else target)
        else:
            shutil.copy2(source, target)
    except (OSError, shutil.Error) as e:
        raise MachineError(f"cannot copy {source} to {target}: {e}") from e
