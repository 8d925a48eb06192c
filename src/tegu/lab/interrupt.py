"""Signals that end the work: once, at a moment when everything can still be given back."""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Final

__all__ = ["ended_by_signals"]

_SIGNALS: Final = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


@contextmanager
def ended_by_signals(*, deferred: bool = False) -> Iterator[Callable[[], None]]:
    """Let SIGTERM and SIGHUP end the block as Ctrl-C does, so that machines are released.

    The first signal raises KeyboardInterrupt: at once, or with `deferred` only when the function
    that is yielded is called, which threads need that must not be interrupted half-way through
    starting others. Further signals must not disturb the releasing and are passed over (`timeout`
    and impatient people send two). A signal that is ignored stays so (nohup(1)). Of no effect
    outside the main thread, where Python delivers no signals.
    """
    received: list[int] = []

    def note(number: int, _: FrameType | None) -> None:
        received.append(number)
        if len(received) == 1 and not deferred:
            check()

    def check() -> None:
        if received:
            raise KeyboardInterrupt(signal.Signals(received[0]).name)

    if threading.current_thread() is not threading.main_thread():
        yield check
        return
    heard = [s for s in _SIGNALS if signal.getsignal(s) != signal.SIG_IGN]
    before = {s: signal.signal(s, note) for s in heard}
    try:
        yield check
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
