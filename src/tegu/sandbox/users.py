"""Boxes of the class `process` as the supervisor sees them: a user id for each, freed when nothing
runs as it any more."""

from __future__ import annotations

import asyncio
import json
import os

from tegu.errors import SandboxError, UnsupportedError, UsageError
from tegu.sandbox.bare import FIRST_ID, IDS, kill_user, processes_of
from tegu.sandbox.box import Box
from tegu.sandbox.spawned import bare_python, start_python
from tegu.sandbox.spec import BoxSpec

__all__ = ["Users"]

_AGAIN = 0.01


class Users:
    """Who is taken. Only root can give a process a user id of its own."""

    def __init__(self, *, privileged: bool) -> None:
        self._privileged = privileged
        self._taken: dict[str, int] = {}
        self._last = 0

    def check(self, spec: BoxSpec) -> None:
        """Raise when the class cannot be had, or not with what `spec` asks for."""
        if not self._privileged:
            raise UnsupportedError(
                "class process: it needs a supervisor of root's, which has a user id for each box",
                hint="the class container does without",
            )
        if spec.template != "host":
            raise UsageError(
                "template: a box of the class process sees this machine's programs",
                hint="leave the template out, or choose the class container",
            )
        if spec.read_only:
            raise UsageError("read_only: the /tmp of a box of the class process can be written to")

    def start(self, box: Box) -> None:
        """Start the process that holds a box."""
        used = set(self._taken.values())
        for _ in range(IDS):
            self._last = (self._last + 1) % IDS
            if FIRST_ID + self._last not in used:
                break
        else:
            raise SandboxError("every user id for boxes of the class process is taken")
        user = self._taken[box.name] = FIRST_ID + self._last
        command = bare_python("tegu.sandbox.bare", "main(3, sys.argv[1:])")
        words = [json.dumps(box.spec.to_json()), str(user)]
        pid = start_python([*command, *words], box.other_end)
        box.born(pid, os.pidfd_open(pid), "")

    def ended(self, box: Box) -> None:
        """Kill what the box has left, until there is nothing; only then is its id free again."""
        user = self._taken.get(box.name)
        if user is None:
            return
        quiet = kill_user(user)
        for pid, state, parent in list(processes_of(user)):
            if state == "Z" and parent == os.getpid():
                os.waitpid(pid, 0)  # its own parents have ended before it
        if quiet and not list(processes_of(user)):
            del self._taken[box.name]
        else:
            asyncio.get_running_loop().call_later(_AGAIN, self.ended, box)
