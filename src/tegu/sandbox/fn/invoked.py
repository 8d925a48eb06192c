"""One invocation as the supervisor sees it: asked for, waiting, running, answered once."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field

from tegu.sandbox.fn.invocation import INLINE
from tegu.sandbox.fn.records import Account

__all__ = ["Event", "Invoked", "Value", "call_words"]


@dataclass
class Event:
    """What a function is called with: `kind` is "json" or "bytes"; in a message, or in a file."""

    kind: str
    data: bytes = b""
    file: int | None = None
    size: int = 0


@dataclass
class Value:
    """What a function answered; `file` is closed by who answers."""

    kind: str
    data: bytes = b""
    file: int | None = None


@dataclass
class Invoked:
    """`done` is called once: with the outcome, the value (or words about it) and the account."""

    number: str
    event: Event
    done: Callable[[Invoked, str, Value], None]
    tenant: str = ""
    check: bool = False
    """Only whether the handler is there is asked, of a version that is being deployed."""
    account: Account = field(default_factory=Account)
    asked: float = field(default_factory=time.monotonic)
    turn: float = 0.0
    called: float = 0.0
    over: bool = False
    kill: Callable[[], None] = lambda: None
    """Ends what runs of it."""

    def its_turn(self) -> None:
        """It waits no longer."""
        if not self.turn:
            self.turn = time.monotonic()
            self.account.queue = self.turn - self.asked

    def is_called(self) -> None:
        """Its sandbox is there and has been called."""
        self.called = time.monotonic()
        self.account.start = self.called - self.turn

    def finish(self, outcome: str, value: Value | str = "") -> None:
        """Answer, unless that was done."""
        if self.over:
            return
        self.over = True
        now = time.monotonic()
        if self.called:
            self.account.wall = now - self.called
        elif self.turn:
            self.account.start = now - self.turn
        else:
            self.account.queue = now - self.asked
        if isinstance(value, str):
            value = Value("text", value.encode(errors="replace"))
        try:
            self.done(self, outcome, value)
        finally:
            for fd in (value.file, self.event.file):
                if fd is not None:
                    with suppress(OSError):
                        os.close(fd)
            self.event.file = None


def call_words(one: Invoked, left: float) -> tuple[bytes, list[int]]:
    """Return the message that calls a fork with an event, and its descriptors."""
    event = one.event
    kind = "check" if one.check else event.kind
    rest, fds = event.data, []
    if event.file is not None:
        kind += "-file"
        rest, fds = b"", [event.file]
    elif len(rest) > INLINE:
        raise ValueError("an event this long comes in a file")
    head = ["call", one.number, one.tenant, f"{left:.6f}", kind]
    return "\0".join(head).encode(errors="surrogateescape") + b"\0" + rest, fds
