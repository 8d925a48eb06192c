"""Talking with a guest's first process while nothing else goes on: waking it, making it sleep."""

from __future__ import annotations

import os
import select
import time

from tegu.errors import SandboxError
from tegu.sandbox.vm.channel import Frames
from tegu.sandbox.vm.driver import RunningVm

__all__ = ["converse", "identity", "say_hello", "sleep"]


def uuid4() -> str:
    """Return a random UUID (RFC 9562, version 4)."""
    value = bytearray(os.urandom(16))
    value[6] = value[6] & 0x0F | 0x40
    value[8] = value[8] & 0x3F | 0x80
    text = value.hex()
    return "-".join((text[:8], text[8:12], text[12:16], text[16:20], text[20:]))


def identity(hostname: str, pids: int, files: int) -> bytes:
    """Return what makes a restored guest one of its own: seed, clock, names (guest.c, thaw)."""
    fields = (
        os.urandom(64).hex(),
        str(time.time_ns()),
        hostname,
        uuid4().replace("-", ""),
        uuid4(),
        str(pids),
        str(files),
    )
    return "\0".join(fields).encode()


def say_hello(frames: Frames, vm: RunningVm, deadline: float) -> None:
    """Wait for the first word of a guest that boots."""
    _await(frames, vm, "H", deadline)


def converse(frames: Frames, vm: RunningVm, kind: str, data: bytes, answer: str) -> None:
    """Send one order and wait for its answer."""
    frames.send(kind, 0, data)
    _await(frames, vm, answer, time.monotonic() + 60)


def sleep(frames: Frames, vm: RunningVm) -> None:
    """Have the guest stop its programs and write its file systems out."""
    converse(frames, vm, "F", b"", "F")


def _await(frames: Frames, vm: RunningVm, wanted: str, deadline: float) -> None:
    poll = select.poll()
    poll.register(frames.fileno(), select.POLLIN)
    poll.register(vm.watched(), select.POLLIN)
    while True:
        left = deadline - time.monotonic()
        ready = poll.poll(max(0.0, left) * 1000)
        if not ready:
            raise SandboxError("the guest does not answer")
        if any(fd == vm.watched() for fd, _ in ready):
            vm.check()
        for kind, _, data in frames.receive():
            if kind == wanted:
                return
            if kind == "f":
                reason = data.partition(b"\0")[2].decode(errors="replace")
                raise SandboxError(f"the guest could not wake or sleep: {reason}")
