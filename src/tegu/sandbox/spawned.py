"""Python processes that the supervisor starts beside itself, each with a socket to it as number 3.

They start bare (-I -S): what such a process imports is copied with each clone of it.
"""

from __future__ import annotations

import asyncio
import os
import signal
import socket
import sys
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path

from tegu.errors import SandboxError
from tegu.sandbox.wireless import receive

__all__ = ["Spawned", "bare_python", "start_python"]


def bare_python(module: str, call: str = "main(3)") -> list[str]:
    """Return the command that runs `call` with `main` of a module of this very package."""
    source = str(Path(__file__).parents[2])
    program = f"import sys; sys.path.insert(0, {source!r}); from {module} import main; {call}"
    return [sys.executable, "-I", "-S", "-c", program]


def start_python(
    command: Sequence[str],
    link: socket.socket,
    *,
    environment: Mapping[str, str] | None = None,
    log: int | None = None,
) -> int:
    """Start it in a session of its own and return its pid; `log` takes what it prints.

    Without, its stdout goes nowhere and its stderr where ours does.
    """
    printed = [(os.POSIX_SPAWN_DUP2, 0, 1)]
    if log is not None:
        printed = [(os.POSIX_SPAWN_DUP2, log, 1), (os.POSIX_SPAWN_DUP2, log, 2)]
    return os.posix_spawn(
        command[0],
        list(command),
        {"PATH": os.defpath} if environment is None else dict(environment),
        file_actions=[
            (os.POSIX_SPAWN_OPEN, 0, os.devnull, os.O_RDWR, 0),
            *printed,
            (os.POSIX_SPAWN_DUP2, link.fileno(), 3),
        ],
        setsid=True,
    )


class Spawned:
    """Such a process: heard until it ends or is stopped. Messages are those of `wireless`."""

    where = ""
    """What errors about it begin with."""

    def __init__(self) -> None:
        self._pid = 0
        self._link: socket.socket | None = None
        self._answer: asyncio.Future[list[str]] | None = None

    @property
    def alive(self) -> bool:
        """Whether it can be asked."""
        return self._link is not None

    def _begin(self, start: Callable[[socket.socket], int]) -> None:
        """Start it with one end of a new socket, and hear the other."""
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        try:
            self._pid = start(theirs)
        finally:
            theirs.close()
        ours.setblocking(False)
        self._link = ours
        asyncio.get_running_loop().add_reader(ours, self._heard)

    async def _hatch(self, plan: Callable[[], None], deadline: float, late: str) -> list[str]:
        """Send the plan when it has a user namespace; return its words when it is ready.

        `late` is what is wrong when that takes longer than `deadline` seconds. Raises SandboxError;
        it is stopped then.
        """
        try:
            async with asyncio.timeout(deadline):
                await self._expect("mapme")
                plan()
                return await self._expect("ready", 2)
        except TimeoutError as e:
            self.stop()
            raise SandboxError(f"{self.where}{late}") from e
        except OSError as e:
            self.stop()
            raise SandboxError(f"{self.where}{e.filename or 'zygote'}: {e.strerror}") from e
        except BaseException:
            self.stop()
            raise

    async def _expect(self, word: str, count: int = 1) -> list[str]:
        self._answer = asyncio.get_running_loop().create_future()
        answer = await self._answer
        self._answer = None
        if answer[0] != word or len(answer) < count:
            reason = answer[1] if len(answer) > 1 else "its zygote ended"
            raise SandboxError(f"{self.where}{reason}")
        return answer

    def _map_ids(self, first: int, count: int) -> None:
        """Give its user namespace `count` ids of the host, from `first` on."""
        # In two ranges: a user's own id and subordinate ids are two, and a range may not span them.
        for name in ("uid_map", "gid_map"):
            map_file = Path(f"/proc/{self._pid}/{name}")
            map_file.write_text(f"0 {first} 1\n1 {first + 1} {count - 1}")

    def _heard(self) -> None:
        while self._link is not None:
            try:
                data, fds = receive(self._link)
            except BlockingIOError:
                return
            except OSError:
                data, fds = b"", []
            if not data:
                self._gone()
                return
            self._take(data.decode(errors="replace").split("\0"), fds)

    def _take(self, words: list[str], fds: list[int]) -> None:
        """Hear what is no answer; the descriptors are the callee's."""
        self._settle(words)

    def _settle(self, words: list[str]) -> None:
        if self._answer is not None and not self._answer.done():
            self._answer.set_result(words)

    def _gone(self) -> None:
        """It has ended by itself."""
        self.stop()

    def stop(self) -> None:
        """Kill it, and hear nothing more."""
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
        self._settle(["gone"])
