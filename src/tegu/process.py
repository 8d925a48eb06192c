"""The one way to run another program: logged, bounded in time, its stderr reported."""

from __future__ import annotations

import logging
import os
import shlex
import shutil
import signal
import subprocess
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from tegu.errors import TeguError, UnsupportedError

__all__ = ["CommandError", "Completed", "require", "run"]

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Completed:
    """What a program left behind: exit code, its output as text, and seconds of wall time."""

    argv: tuple[str, ...]
    returncode: int
    stdout: str
    stderr: str
    seconds: float


class CommandError(TeguError):
    """A program failed, was missing or ran out of time."""

    def __init__(self, message: str, completed: Completed | None = None) -> None:
        super().__init__(message)
        self.completed = completed


def require(program: str, *, package: str | None = None) -> str:
    """Return the path of `program`, or raise UnsupportedError naming the Debian `package`."""
    search = os.environ.get("PATH", os.defpath) + ":/usr/sbin:/sbin"
    path = shutil.which(program, path=search)
    if path is None:
        hint = f"install the package {package}" if package else None
        raise UnsupportedError(f"the program {program} is not installed", hint=hint)
    return path


def run(
    argv: Sequence[str | Path],
    *,
    timeout: float = 300,
    check: bool = True,
    stdin: str | bytes | None = None,
    stdout: IO[bytes] | None = None,
    env: Mapping[str, str] | None = None,
    cwd: Path | None = None,
    pass_fds: Sequence[int] = (),
    prepare: Callable[[], None] | None = None,
) -> Completed:
    """Run `argv` to its end and return what it left behind.

    `env` replaces the environment when given. `stdout` sends standard output to an open file
    instead of keeping it. `prepare` is called in the new process before the program starts (it
    must do little: enter a namespace, change root). A program past `timeout` seconds is killed with
    its process group.
    Raises CommandError when it cannot start, times out, or (with `check`) exits non-zero.
    """
    args = tuple(str(a) for a in argv)
    shown = shlex.join(args)
    log.debug("run: %s", shown)
    started = time.monotonic()
    try:
        child = subprocess.Popen(
            args,
            stdin=subprocess.DEVNULL if stdin is None else subprocess.PIPE,
            stdout=subprocess.PIPE if stdout is None else stdout,
            stderr=subprocess.PIPE,
            env=dict(env) if env is not None else None,
            cwd=cwd,
            pass_fds=pass_fds,
            start_new_session=True,
            preexec_fn=prepare,  # noqa: PLW1509 - only given where there are no threads
        )
    except OSError as e:
        raise CommandError(f"cannot start {args[0]}: {e.strerror}") from e
    except subprocess.SubprocessError as e:
        raise CommandError(f"cannot prepare the sandbox for {args[0]}: {e}") from e
    data = stdin.encode() if isinstance(stdin, str) else stdin
    try:
        out, err = child.communicate(data, timeout=timeout)
    except subprocess.TimeoutExpired as e:
        _kill_group(child)
        raise CommandError(f"{args[0]} did not end within {timeout:g} s: {shown}") from e
    except BaseException:
        _kill_group(child)
        raise
    done = Completed(
        args,
        child.returncode,
        (out or b"").decode(errors="replace"),
        err.decode(errors="replace"),
        time.monotonic() - started,
    )
    log.debug("exit %d after %.2f s: %s", done.returncode, done.seconds, args[0])
    if check and done.returncode != 0:
        tail = "; ".join(done.stderr.strip().splitlines()[-3:]) or "no message"
        how = (
            f"was killed by {signal.Signals(-done.returncode).name}"
            if done.returncode < 0
            else f"exited with {done.returncode}"
        )
        raise CommandError(f"{args[0]} {how}: {tail}", done)
    return done


def _kill_group(child: subprocess.Popen[bytes]) -> None:
    with suppress(ProcessLookupError):
        os.killpg(child.pid, signal.SIGKILL)
    child.wait()
