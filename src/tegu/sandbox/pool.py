"""Boxes made ahead, so that a start finds one ready: as many as arrivals of late call for."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable

from tegu.sandbox.box import Box

__all__ = ["Pool"]

_MEMORY = 10.0
"""Seconds over which the arrival rate is averaged."""
_COVER = 0.25
"""Seconds of arrivals that the pool shall cover."""


class Pool:
    """Ready boxes of one kind; at most `most` of them, fewer when little is asked for."""

    def __init__(self, make: Callable[[], Box], most: int) -> None:
        self._make = make
        self._most = most
        self._ready: deque[Box] = deque()
        self._rate = 0.0
        self._last = time.monotonic()

    def __len__(self) -> int:
        return len(self._ready)

    @property
    def wanted(self) -> int:
        """How many should be ready now; none after a minute without a start."""
        idle = time.monotonic() - self._last
        if idle > 60 or self._most == 0:
            return 0
        rate = self._rate * max(0.0, 1 - idle / _MEMORY)
        return min(self._most, 2 + int(rate * _COVER))

    def take(self) -> Box | None:
        """Return a ready box, or None; counts as an arrival."""
        now = time.monotonic()
        gap = min(now - self._last, _MEMORY)
        self._last = now
        self._rate = self._rate * (1 - gap / _MEMORY) + 1 / _MEMORY
        while self._ready:
            box = self._ready.popleft()
            if box.state == "new":
                return box
        return None

    def fill(self, most_at_once: int = 1) -> bool:
        """Make up to `most_at_once` boxes; returns whether more are wanted."""
        for _ in range(most_at_once):
            if len(self._ready) >= self.wanted:
                break
            self._ready.append(self._make())
        return len(self._ready) < self.wanted

    def shrink(self) -> None:
        """Let go of what is no longer wanted."""
        while len(self._ready) > self.wanted:
            self._ready.pop().kill()

    def drop(self, box: Box) -> None:
        """Forget a box that ended by itself."""
        if box in self._ready:
            self._ready.remove(box)

    def empty(self) -> None:
        """Kill all."""
        while self._ready:
            self._ready.pop().kill()
