"""Reaching the supervisor: connect to it, and start one where none serves yet."""

from __future__ import annotations

import os
import select
import socket
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from tegu.errors import SandboxError
from tegu.sandbox.wire import default_socket

__all__ = ["IDLE_EXIT", "WARM", "connect"]

WARM = 16
"""The most boxes that are held ready."""
IDLE_EXIT = 300.0
"""Seconds after which a supervisor that was started on demand ends, unless it is used."""
_DEADLINE = 15.0
_ABSENT = (FileNotFoundError, ConnectionRefusedError)


def connect(path: Path | None = None, *, start: bool = True) -> socket.socket:
    """Return a connection to the supervisor at `path` (default: this user's).

    Where none serves, one is started for the time of need, unless `start` is false. Raises
    SandboxError when there is none, or it cannot start.
    """
    where = path or default_socket()
    end = time.monotonic() + _DEADLINE
    tried = False
    while True:
        link = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        try:
            link.connect(str(where))
        except _ABSENT as e:
            link.close()
            if not start:
                raise SandboxError(
                    f"no supervisor serves {where}", hint="start one: tegu sandbox serve"
                ) from e
            if time.monotonic() > end:
                raise SandboxError(f"the supervisor at {where} did not start") from e
            if tried:
                time.sleep(0.02)  # another one is starting, or has just ended
            else:
                _start(where)
                tried = True
        except OSError as e:
            link.close()
            raise SandboxError(f"{where}: {e.strerror or e}") from e
        else:
            return link


def _start(where: Path) -> None:
    """Start a supervisor that outlives us; raises SandboxError with its words when it fails."""
    ready_r, ready_w = os.pipe()
    source = str(Path(__file__).parents[2])
    program = (
        f"import sys; sys.path.insert(0, {source!r}); "
        "from tegu.sandbox.keeper import main; main(sys.argv[1:])"
    )
    with tempfile.TemporaryFile() as words:
        try:
            child = subprocess.Popen(
                [sys.executable, "-I", "-S", "-c", program, str(where), str(ready_w)],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=words,
                pass_fds=[ready_w],
                start_new_session=True,
                cwd="/",
            )
        finally:
            os.close(ready_w)
        try:
            readable, _, _ = select.select([ready_r], [], [], _DEADLINE)
            if readable and os.read(ready_r, 1):
                child.returncode = 0  # it is on its own now: nobody waits for it
                return
            if not readable:
                child.kill()
            child.wait()
        finally:
            os.close(ready_r)
        words.seek(0)
        said = words.read().decode(errors="replace").strip().splitlines()
    if said and "serves" in said[-1]:
        return  # another client was faster
    raise SandboxError("the supervisor did not start: " + (said[-1] if said else "no message"))
