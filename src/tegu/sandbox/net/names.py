"""Where a box's programs ask for names: at 127.0.0.1, unless its template's files say otherwise."""

from __future__ import annotations

import asyncio
import os
from contextlib import suppress

from tegu.errors import SandboxError
from tegu.sandbox.box import Box, Outcome, Pending
from tegu.sandbox.spec import BoxSpec

__all__ = ["asks_written_names", "point_at_resolver"]

_PATH = "/etc/resolv.conf"
_TEXT = b"nameserver 127.0.0.1\n"


def asks_written_names(spec: BoxSpec) -> bool:
    """Whether a box may have a resolv.conf that names others: without one, resolv.conf(5) says,
    programs ask at 127.0.0.1, and the template "host" has none."""
    return spec.network != "none" and spec.template != "host" and not spec.read_only


async def point_at_resolver(box: Box) -> None:
    """Write the box's own resolv.conf, in place of what its template may have there.

    Raises SandboxError, with which the box ends.
    """
    try:
        with suppress(SandboxError):  # there may be none
            await _ask(box, "remove")
        fds = await _ask(box, "open")
        for fd in fds:
            with os.fdopen(fd, "wb") as f:
                f.write(_TEXT)
    except (SandboxError, OSError) as e:
        box.kill()
        raise SandboxError(f"box {box.name}: its {_PATH}: {e}") from e


async def _ask(box: Box, op: str) -> list[int]:
    done: asyncio.Future[Outcome | list[int] | SandboxError] = (
        asyncio.get_running_loop().create_future()
    )
    if op == "open":
        box.open(_PATH, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, Pending(done.set_result))
    else:
        box.change(op, Pending(done.set_result), _PATH)
    answer = await done
    if isinstance(answer, SandboxError):
        raise answer
    return answer if isinstance(answer, list) else []
