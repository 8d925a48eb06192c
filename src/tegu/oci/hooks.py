"""Hooks: programs of the container's maker, run at set points of its life, told its state.

config.md, "POSIX-platform Hooks". They run as plain children, also of a container's first process,
where nothing can be imported any more: hence no subprocess module, and no tegu.process.
"""

from __future__ import annotations

import json
import os
import select
import signal
from contextlib import suppress

from tegu.linux import libc
from tegu.oci.state import OciError

TYPE_CHECKING = False  # see __init__.py
if TYPE_CHECKING:
    from typing import Any

__all__ = ["run_hooks"]

HOOKS = (
    "prestart",
    "createRuntime",
    "createContainer",
    "startContainer",
    "poststart",
    "poststop",
)


def run_hooks(name: str, hooks: list[dict[str, Any]], state: dict[str, Any]) -> None:
    """Run `hooks` one after the other with `state` as JSON on their stdin.

    Raises OciError at the first that fails or does not end in its time, which is killed.
    """
    for i, hook in enumerate(hooks):
        _run(f"hooks.{name}[{i}]", hook, json.dumps(state).encode())


def _run(field: str, hook: dict[str, Any], state: bytes) -> None:
    reader, writer = os.pipe()
    pid = os.fork()
    if pid == 0:
        _become(field, hook, reader)
    os.close(reader)
    process = os.pidfd_open(pid)
    try:
        os.set_blocking(writer, False)
        # A pipe takes 64 KiB at once; a state is far smaller, but for annotations without end.
        with suppress(BrokenPipeError, BlockingIOError):
            os.write(writer, state)
        os.close(writer)
        poll = select.poll()
        poll.register(process, select.POLLIN)
        timeout = hook.get("timeout")
        if not poll.poll(None if timeout is None else timeout * 1000):
            with suppress(ProcessLookupError):
                os.killpg(pid, signal.SIGKILL)
            os.waitpid(pid, 0)
            raise OciError(f"{field}: {hook['path']} did not end within {timeout} s")
    finally:
        os.close(process)
    code = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    if code:
        how = f"exited with {code}" if code > 0 else f"was killed by signal {-code}"
        raise OciError(f"{field}: {hook['path']} {how}")


def _become(field: str, hook: dict[str, Any], stdin: int) -> None:
    try:
        os.setpgid(0, 0)
        os.dup2(stdin, 0)
        libc.close_range(3, on_exec=True)
        env = dict(v.split("=", 1) for v in hook.get("env", []))
        os.execve(hook["path"], hook.get("args") or [hook["path"]], env)
    except BaseException as e:  # noqa: BLE001 - a forked child must not return into the caller
        with suppress(OSError):
            os.write(2, f"tegu-oci: {field}: cannot start {hook['path']}: {e}\n".encode())
    finally:
        os._exit(127)
