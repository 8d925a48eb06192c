"""Zygotes as the supervisor sees them: started, mapped, told what to build, asked for boxes."""

from __future__ import annotations

import asyncio
import marshal
import os
import signal
import socket
import sys
import time
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Protocol

from tegu.errors import SandboxError
from tegu.linux.cgroups import Groups
from tegu.sandbox.devices import new_devices
from tegu.sandbox.policy import CAPABILITIES, box_filter
from tegu.sandbox.template import Template
from tegu.sandbox.wireless import receive, tell

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


class Zygote:
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
        self.template = template
        self.runs_as = ""
        """"compiled" when the zygote became the launcher, else "python"."""
        self.identity = template.identity()
        self.last_use = time.monotonic()
        self._launcher = launcher
        self.spare_networks = SPARE_NETWORKS
        self._first_id = FIRST_ID + slot * IDS if privileged else 0
        self._privileged = privileged
        self._groups = groups
        self._pid = 0
        self._link: socket.socket | None = None
        self._expected: dict[str, Expecting] = {}
        self._answer: asyncio.Future[list[str]] | None = None

    @property
    def user(self) -> int | None:
        """The user that the zygote is on the host, when it is not ours."""
        return self._first_id if self._privileged else None

    @property
    def alive(self) -> bool:
        """Whether boxes can be asked for."""
        return self._link is not None

    async def start(self) -> None:
        """Start the process and wait until it is ready. Raises SandboxError."""
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        try:
            self._pid = _spawn(theirs)
        finally:
            theirs.close()
        ours.setblocking(False)
        self._link = ours
        asyncio.get_running_loop().add_reader(ours, self._heard)
        try:
            async with asyncio.timeout(_DEADLINE):
                await self._expect("mapme")
                self._send_plan()
                self.runs_as = (await self._expect("ready"))[1]
        except TimeoutError as e:
            self.stop()
            raise SandboxError(f"template {self.template.name}: its zygote does not answer") from e
        except OSError as e:
            self.stop()
            raise SandboxError(
                f"template {self.template.name}: {e.filename or 'zygote'}: {e.strerror}"
            ) from e
        except BaseException:
            self.stop()
            raise

    async def _expect(self, word: str) -> list[str]:
        self._answer = asyncio.get_running_loop().create_future()
        answer = await self._answer
        self._answer = None
        if answer[0] != word:
            reason = answer[1] if len(answer) > 1 else "its zygote ended"
            raise SandboxError(f"template {self.template.name}: {reason}")
        return answer

    def _send_plan(self) -> None:
        first = self._first_id
        # In two ranges: a user's own id and subordinate ids are two, and a range may not span them.
        for name in ("uid_map", "gid_map"):
            map_file = Path(f"/proc/{self._pid}/{name}")
            map_file.write_text(f"0 {first} 1\n1 {first + 1} {IDS - 1}")
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

    def _heard(self) -> None:
        assert self._link is not None
        while self._link is not None:
            try:
                data, fds = receive(self._link)
            except BlockingIOError:
                return
            except OSError:
                data, fds = b"", []
            if not data:
                self.stop()
                return
            self._take(data.decode(errors="replace").split("\0"), fds)

    def _take(self, fields: list[str], fds: list[int]) -> None:
        if fields[0] == "born":
            self._expected.pop(fields[1]).born(int(fields[2]), fds[0], fields[3])
        elif fields[0] == "failed":
            self._expected.pop(fields[1]).stillborn(fields[2])
        elif self._answer is not None and not self._answer.done():
            self._answer.set_result(fields)

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
        if self._link is not None:
            asyncio.get_running_loop().remove_reader(self._link)
            self._link.close()
            self._link = None
        if self._pid:
            with suppress(ProcessLookupError):
                os.kill(self._pid, signal.SIGKILL)
            with suppress(ChildProcessError):
                os.waitpid(self._pid, 0)
            self._pid = 0
        if self._answer is not None and not self._answer.done():
            self._answer.set_result(["gone"])
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


def _spawn(link: socket.socket) -> int:
    source = str(Path(__file__).parents[2])
    program = (
        f"import sys; sys.path.insert(0, {source!r}); from tegu.sandbox.zygote import main; main(3)"
    )
    return os.posix_spawn(
        sys.executable,
        [sys.executable, "-I", "-S", "-c", program],
        {"PATH": os.defpath},
        file_actions=[
            (os.POSIX_SPAWN_OPEN, 0, os.devnull, os.O_RDWR, 0),
            (os.POSIX_SPAWN_DUP2, 0, 1),
            (os.POSIX_SPAWN_DUP2, link.fileno(), 3),
        ],
        setsid=True,
    )
