"""What every machine can do, whatever it is: the only way any room reaches a guest or a host."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Protocol, Self

__all__ = ["Command", "Machine", "Result", "shell_words"]

Command = str | Sequence[str]
"""A line for the machine's POSIX shell, or the words of one command."""


@dataclass(frozen=True, slots=True)
class Result:
    """What a command on a machine left behind; `seconds` of wall time as seen from here."""

    exit_code: int
    stdout: str
    stderr: str
    seconds: float


class Machine(Protocol):
    """A machine, once started. Used as a context manager it is always released at the end.

    Every method that waits takes `timeout` in seconds and raises MachineError when it passes, when
    the machine dies, or when the machine cannot be reached. What a form of machine cannot do at
    all (power off the computer that runs `tegu`) raises UnsupportedError.
    """

    @property
    def name(self) -> str:
        """The machine's name."""
        ...

    def start(self) -> None:
        """Start it; for a machine that runs already, look that it can be reached."""
        ...

    def wait_for_ssh(self, timeout: float = 300) -> float:
        """Wait until commands can be run; return the seconds that it took."""
        ...

    def run(
        self,
        command: Command,
        *,
        root: bool = False,
        timeout: float = 60,
        stdin: str | None = None,
    ) -> Result:
        """Run `command` to its end, as the login user or as `root`; any exit code is a result."""
        ...

    def copy_in(self, source: Path, target: str, *, timeout: float = 300) -> None:
        """Copy a file or directory of ours to `target` on the machine."""
        ...

    def copy_out(self, source: str, target: Path, *, timeout: float = 300) -> None:
        """Copy `source` of the machine to a path of ours."""
        ...

    def console(self) -> str:
        """Return all that the machine has written to its serial console so far."""
        ...

    def wait_for_console(self, pattern: str, *, timeout: float = 60, after: int = 0) -> str:
        """Wait for a line that matches the regular expression; return it.

        Looks at the console's characters from `after` on.
        """
        ...

    def wait_for_exit(self, timeout: float = 60) -> None:
        """Wait until the machine is off."""
        ...

    def reboot(self, timeout: float = 300) -> float:
        """Reboot cleanly and wait until commands can be run again; return the seconds taken."""
        ...

    def power_off(self, timeout: float = 120) -> float:
        """Power off cleanly; return the seconds taken."""
        ...

    def kill(self) -> None:
        """Take the power away."""
        ...

    def release(self) -> None:
        """Give back all that the machine holds here; may be called more than once."""
        ...

    def __enter__(self) -> Self: ...

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None: ...


def shell_words(command: Command, *, sudo: bool = False) -> str:
    """Return `command` as one line for a POSIX shell, run by sudo(8) if asked."""
    import shlex

    line = command if isinstance(command, str) else shlex.join(command)
    return f"sudo -n -- /bin/sh -c {shlex.quote(line)}" if sudo else line
