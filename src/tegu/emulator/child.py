"""Long-lived child processes: QEMU is started here and nowhere else.

A process is named by its pid together with its start time (field 22 of /proc/PID/stat, proc(5)),
so that a recycled pid is never taken for the machine that had it.
"""

from __future__ import annotations

import os
import select
import signal
import subprocess
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from tegu.errors import MachineError

__all__ = ["Child", "ProcessId", "current_process"]


@dataclass(frozen=True, slots=True)
class ProcessId:
    """A process: `started` is its start time in clock ticks since boot."""

    pid: int
    started: int

    @classmethod
    def of(cls, pid: int) -> ProcessId | None:
        """Return the identity of the process that has `pid` now, or None when there is none."""
        fields = _stat(pid)
        return None if fields is None else cls(pid, int(fields[19]))

    def alive(self) -> bool:
        """True while the process runs; a zombie does not."""
        fields = _stat(self.pid)
        return fields is not None and int(fields[19]) == self.started and fields[0] not in "ZX"

    def kill(self, sig: signal.Signals = signal.SIGKILL) -> None:
        """Send `sig`, to this process only; nothing happens when it is gone."""
        with suppress(ProcessLookupError):
            fd = os.pidfd_open(self.pid)
            try:
                # Holding the pidfd, the pid cannot be recycled between this check and the signal.
                if self.alive():
                    signal.pidfd_send_signal(fd, sig)
            finally:
                os.close(fd)

    def wait(self, timeout: float) -> bool:
        """Wait up to `timeout` seconds for the process to end; True when it has ended."""
        try:
            fd = os.pidfd_open(self.pid)
        except ProcessLookupError:
            return True
        try:
            if not self.alive():
                return True
            poll = select.poll()
            poll.register(fd, select.POLLIN)
            return bool(poll.poll(max(0.0, timeout) * 1000)) or not self.alive()
        finally:
            os.close(fd)


def current_process() -> ProcessId:
    """Return the identity of this very process."""
    own = ProcessId.of(os.getpid())
    if own is None:
        raise MachineError("/proc is not mounted, so that processes cannot be told apart")
    return own


def _stat(pid: int) -> list[str] | None:
    """Return the fields of /proc/PID/stat from the third (state) on."""
    try:
        text = Path(f"/proc/{pid}/stat").read_text(errors="replace")
    except (FileNotFoundError, ProcessLookupError):
        return None
    return text.rpartition(")")[2].split()


class Child:
    """A process of ours in a session of its own, with what it says on stderr kept in a file.

    It outlives this process unless `kill` is called: a machine may stay up in the background.
    """

    def __init__(self, argv: Sequence[str], *, stderr: Path, stdout: Path | None = None) -> None:
        """Start `argv`; MachineError when that is not possible."""
        self.stderr = stderr
        with stderr.open("wb") as err, (stdout or Path(os.devnull)).open("wb") as out:
            try:
                self._popen = subprocess.Popen(
                    argv,
                    stdin=subprocess.DEVNULL,
                    stdout=out,
                    stderr=err,
                    start_new_session=True,
                )
            except OSError as e:
                raise MachineError(f"cannot start {argv[0]}: {e.strerror}") from e
        identity = ProcessId.of(self._popen.pid)
        if identity is None:  # it is our child and not reaped yet, so only a missing /proc does it
            self.kill()
            raise MachineError("/proc is not mounted, so that processes cannot be told apart")
        self.id = identity

    def returncode(self) -> int | None:
        """Return the exit code once the process has ended, negative for a signal; None before."""
        return self._popen.poll()

    def wait(self, timeout: float) -> int | None:
        """Wait up to `timeout` seconds for the end; return the exit code or None."""
        with suppress(subprocess.TimeoutExpired):
            return self._popen.wait(timeout)
        return None

    def kill(self) -> None:
        """End the process now, and reap it."""
        self._popen.kill()
        self._popen.wait()

    def complaint(self) -> str:
        """Return the last line that the program wrote to stderr, without its own name."""
        return complaint(self.stderr)


def complaint(path: Path) -> str:
    """Return the line of a QEMU's stderr file that says what went wrong, or an empty string."""
    try:
        lines = path.read_text(errors="replace").splitlines()
    except FileNotFoundError:
        return ""
    lines = [line.strip() for line in lines if line.strip() and "warning:" not in line]
    for line in lines:
        if line.startswith("qemu-"):
            said = line.partition(": ")[2].removeprefix("error: ")
            # An option that QEMU blames comes first: "-device nvme,...: what is wrong with it".
            return (said.partition(": ")[2] if said.startswith("-") else said).strip()
    return lines[0] if lines else ""


def wait_until(deadline: float, step: float = 0.02) -> bool:
    """Sleep for `step` seconds; False once `deadline` (time.monotonic) has passed."""
    if time.monotonic() >= deadline:
        return False
    time.sleep(step)
    return True
