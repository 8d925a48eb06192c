"""The supervisor's part of gVisor boxes: whether runsc works, and the process that holds a box."""

from __future__ import annotations

import asyncio
import json
import os
import tempfile
from pathlib import Path

from tegu.errors import SandboxError, UnsupportedError
from tegu.sandbox.box import Box
from tegu.sandbox.gvisor.trial import find_runsc
from tegu.sandbox.spawned import bare_python, start_python
from tegu.sandbox.state import state_directory

__all__ = ["OVERHEAD", "THREADS", "Gvisors"]

OVERHEAD = 64 * 2**20
"""Bytes that runsc's own processes may take beside the box's programs."""
THREADS = 256
"""Threads that they may be."""


class Gvisors:
    """Which platform of runsc works here is found once, by the first box."""

    def __init__(self, state: Path | None) -> None:
        self._state = state
        self._platform = ""
        self._trying: asyncio.Task[str] | None = None

    @property
    def ready(self) -> bool:
        """Whether a box can be started at once."""
        return bool(self._platform)

    async def prepare(self) -> None:
        """Find out whether runsc works. Raises UnsupportedError with the reason."""
        if self._trying is None:
            self._trying = asyncio.get_running_loop().create_task(self._try())
            self._trying.add_done_callback(lambda _: setattr(self, "_trying", None))
        self._platform = await asyncio.shield(self._trying)

    async def _try(self) -> str:
        place = self._state or Path(tempfile.gettempdir())
        process = await asyncio.create_subprocess_exec(
            *bare_python("tegu.sandbox.gvisor.trial", "main(sys.argv[1:])"),
            str(place),
            stdin=asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.PIPE,
            env={**os.environ, "TMPDIR": str(place)},
        )
        said, _ = await process.communicate()
        try:
            platform, reason = json.loads(said)
        except ValueError:
            raise SandboxError("trying runsc failed; the supervisor's log says more") from None
        if not platform:
            raise UnsupportedError(
                f"class gvisor: runsc starts nothing here: {reason}",
                hint="see `tegu sandbox doctor`",
            )
        return str(platform)

    def start(self, box: Box) -> None:
        """Start the process that holds a box."""
        runsc = find_runsc()
        if runsc is None or not self._platform:
            raise SandboxError("runsc is gone")
        command = bare_python("tegu.sandbox.gvisor.host", "main(3, sys.argv[1:])")
        words = [json.dumps(box.spec.to_json()), runsc, self._platform]
        environment = {
            "PATH": os.defpath + ":/usr/sbin:/sbin",
            "TEGU_SANDBOX_STATE": str(state_directory()),
        }
        pid = start_python([*command, *words], box.other_end, environment=environment)
        box.born(pid, os.pidfd_open(pid), "")
