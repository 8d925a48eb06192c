"""Zygotes as the supervisor sees them: started, mapped, told what to build, asked for boxes."""

from __future__ import annotations

import marshal
import os
import socket
import time
from collections.abc import Sequence
from typing import Protocol

from tegu.errors import SandboxError
from tegu.linux.cgroups import Groups
from tegu.sandbox.devices import new_devices
from tegu.sandbox.policy import CAPABILITIES, box_filter
from tegu.sandbox.spawned import Spawned, bare_python, start_python
from tegu.sandbox.template import Template
from tegu.sandbox.wireless import tell

__all__ = ["FIRST_ID", "IDS", "MAX_TEMPLATES", "SPARE_NETWORKS", "Expecting", "Zygote", "hand_over"]

FIRST_ID = 0x6F00_0000
"""Ids of boxes on the host when the supervisor is root: 65,536 for each template from here on,
inside the range that systemd keeps for containers (systemd.io/UIDS-GIDS)."""
IDS = 65536
MAX_TEMPLATES = 255
"""As many as fit below 0x6FFF0000."""
SPARE_NETWORKS = 4
"""Network namespaces that a zygote makes ahead: making one takes as long as the rest of a clone."""
_DEADLINE = 20.0


class Expecting(Protocol):
    """What waits for a box to be cloned."""

    def born(self, pid: int, pidfd: int, reason: str) -> None:
        """Take the new process; a `reason` says why it will end at once."""

    def stillborn(self, reason: str) -> None:
        """There will be no process."""


class Zygote(Spawned):
    """One template's zygote. `slot` numbers it, for its ids on the host."""

    def __init__(
        self,
        template: Template,
        slot: int,
        *,
        privileged: bool,
        groups: Groups,
        launcher: int | None = None,
    ) -> None:
        super().__init__()
        self.template = template
        self.where = f"template {template.name}: "
        self.runs_as = ""
        """"compiled" when the zygote became the launcher, else "python"."""
        self.identity = template.identity()
        self.last_use = time.monotonic()
        self._launcher = launcher
        self.spare_networks = SPARE_NETWORKS
        self._first_id = FIRST_ID + slot * IDS if privileged else 0
        self._privileged = privileged
        self._groups = groups
        self._expected: dict[str, Expecting] = {}

    @property
    def user(self) -> int | None:
        """The user that the zygote is on the host, when it is not ours."""
        return self._first_id if self._privileged else None

    async def start(self) -> None:
        """Start the process and wait until it is ready. Raises SandboxError."""
        command = bare_python("tegu.sandbox.zygote")
        self._begin(lambda link: start_python(command, link))
        self.runs_as = (
            await self._hatch(self._send_plan, _DEADLINE, "its zygote does not answer")
        )[1]

    def _send_plan(self) -> None:
        self._map_ids(self._first_id, IDS)
        if self._privileged:
            self._groups.allow_clones()
        self._groups.join(self._pid, "zygotes")
        users = os.open(f"/proc/{self._pid}/ns/user", os.O_RDONLY | os.O_CLOEXEC)
        try:
            root, mounts, fds = self.template.open(users if self._privileged else None)
        finally:
            os.close(users)
        devices = None
        if self._privileged:
            devices = len(fds)
            fds.append(new_devices())
        launcher = None
        if self._launcher is not None:
            launcher = len(fds)
            fds.append(os.dup(self._launcher))
        plan = {
            "launcher": launcher,
            "filters": [box_filter()],
            "keep": CAPABILITIES,
            "root": root,
            "devices": devices,
            "skeleton": list(self.template.skeleton),
            "mounts": mounts,
            "binds": [path for path, _ in mounts],
        }
        try:
            assert self._link is not None
            hand_over(self._link, marshal.dumps(plan), fds)
        finally:
            for fd in fds:
                os.close(fd)

    def _take(self, words: list[str], fds: list[int]) -> None:
        if words[0] == "born":
            self._expected.pop(words[1]).born(int(words[2]), fds[0], words[3])
        elif words[0] == "failed":
            self._expected.pop(words[1]).stillborn(words[2])
        else:
            self._settle(words)

    def ask(self, name: str, order: Sequence[str], fds: list[int], who: Expecting) -> None:
        """Ask for a box; `who` hears of it. Raises SandboxError when the zygote is gone."""
        if self._link is None:
            raise SandboxError(f"template {self.template.name}: its zygote has ended")
        self._expected[name] = who
        self.last_use = time.monotonic()
        try:
            tell(self._link, "clone", name, str(self.spare_networks), *order, fds=fds)
        except OSError as e:
            del self._expected[name]
            raise SandboxError(f"too many boxes are being started: {e.strerror}") from e

    def stop(self) -> None:
        """Let the zygote go; boxes that it made live on."""
        super().stop()
        waiting, self._expected = self._expected, {}
        for who in waiting.values():
            who.stillborn("the template's zygote has ended")


def hand_over(link: socket.socket, plan: bytes, fds: list[int]) -> None:
    """Send the plan in a file of its own: it may be longer than a message."""
    file = os.memfd_create("plan", os.MFD_CLOEXEC)
    try:
        with open(file, "wb", closefd=False) as f:
            f.write(plan)
        socket.send_fds(link, [b"plan"], [file, *fds])
    finally:
        os.close(file)
