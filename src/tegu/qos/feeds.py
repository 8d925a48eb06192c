"""Where the latency class's p99 comes from, and what is not believed.

A feed gives one `Reading` a window. A value that is not a finite, positive number, is older than
the policy allows, or comes from the future is refused with a reason: the loop then treats the feed
as gone.
"""

from __future__ import annotations

import json
import math
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from tegu.errors import TeguError
from tegu.qos.policy import Feed

if TYPE_CHECKING:
    from tegu.probe import Session

__all__ = ["FeedError", "Reading", "Source", "check", "open_feed"]

_FUTURE = 2.0
"""Seconds that a feed's clock may be ahead of ours."""
_MOST = 1 << 20
_TIMEOUT = 2.0


class FeedError(TeguError):
    """A feed gives nothing that can be believed; the message says why."""


@dataclass(frozen=True)
class Reading:
    """The p99 in seconds over `samples` requests (None: not told), at `time` (Unix)."""

    p99: float
    samples: int | None
    time: float


class Source(Protocol):
    """An open feed."""

    def read(self) -> Reading:
        """Return the newest reading, checked; raises FeedError."""

    def close(self) -> None:
        """Release what it holds."""


def check(raw: object, stale: float, now: float) -> Reading:
    """Return what `{"p99": S, "samples": N, "time": UNIX}` says; raises FeedError."""
    if not isinstance(raw, dict):
        raise FeedError("the feed gives no object with p99, samples and time")
    p99, at, samples = raw.get("p99"), raw.get("time"), raw.get("samples")
    for name, value in (("p99", p99), ("time", at)):
        if isinstance(value, bool) or not isinstance(value, int | float):
            raise FeedError(f"the feed's {name} is no number")
        if not math.isfinite(value) or value < 0:
            raise FeedError(f"the feed's {name} is {value}")
    assert isinstance(p99, int | float) and isinstance(at, int | float)
    if samples is not None and (
        isinstance(samples, bool) or not isinstance(samples, int) or samples < 0
    ):
        raise FeedError("the feed's samples is no count")
    if at > now + _FUTURE:
        raise FeedError(f"the feed is {at - now:.1f} s ahead of this machine's clock")
    if at < now - stale:
        raise FeedError(f"the feed is {now - at:.1f} s old")
    if p99 == 0 and samples != 0:
        raise FeedError("the feed says that requests take no time")
    return Reading(float(p99), samples, float(at))


def open_feed(feed: Feed, groups: list[str]) -> Source:
    """Open `feed`; `groups` are the latency class's, for run-queue latency."""
    if feed.kind == "file":
        return _File(feed)
    if feed.kind == "unix":
        return _Socket(feed)
    if feed.kind == "prometheus":
        return _Prometheus(feed)
    return _RunQueue(groups)


def _parsed(text: str | bytes) -> Any:
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as e:
        raise FeedError(f"the feed is not JSON: {e}") from e


class _File:
    def __init__(self, feed: Feed) -> None:
        self.feed = feed

    def read(self) -> Reading:
        try:
            with Path(self.feed.where).open("rb") as file:
                data = file.read(_MOST)
        except OSError as e:
            raise FeedError(f"cannot read {self.feed.where}: {e.strerror}") from e
        return check(_parsed(data), self.feed.stale, time.time())

    def close(self) -> None:
        """Nothing is held."""


class _Socket:
    """A UNIX stream socket that answers each connection with one line."""

    def __init__(self, feed: Feed) -> None:
        self.feed = feed

    def read(self) -> Reading:
        import socket

        try:
            with socket.socket(socket.AF_UNIX) as client:
                client.settimeout(_TIMEOUT)
                client.connect(self.feed.where)
                with client.makefile("rb") as stream:
                    line = stream.readline(_MOST)
        except OSError as e:
            raise FeedError(f"{self.feed.where}: {e.strerror or e}") from e
        return check(_parsed(line), self.feed.stale, time.time())

    def close(self) -> None:
        """Nothing is held."""


class _Prometheus:
    """An instant query of Prometheus's HTTP API that gives one number of seconds."""

    def __init__(self, feed: Feed) -> None:
        import urllib.parse

        self.feed = feed
        query = urllib.parse.urlencode({"query": feed.query})
        self.url = f"{feed.where.rstrip('/')}/api/v1/query?{query}"

    def read(self) -> Reading:
        import urllib.error
        import urllib.request

        try:
            with urllib.request.urlopen(self.url, timeout=_TIMEOUT) as answer:
                raw = _parsed(answer.read(_MOST))
        except (urllib.error.URLError, OSError, ValueError) as e:
            raise FeedError(f"{self.feed.where}: {getattr(e, 'reason', e)}") from e
        try:
            data = raw["data"]
            result = data["result"]
            pair = result if data["resultType"] == "scalar" else result[0]["value"]
            found = {"time": float(pair[0]), "p99": float(pair[1])}
        except (KeyError, IndexError, TypeError, ValueError) as e:
            raise FeedError(f"{self.feed.where}: the query gives no number") from e
        return check(found, self.feed.stale, time.time())

    def close(self) -> None:
        """Nothing is held."""


class _RunQueue:
    """The p99 of waits for a processor, from the probe `runq`, where nobody tells of requests."""

    def __init__(self, groups: list[str]) -> None:
        from tegu.probe import Session, Settings, find_tool

        self.session: Session = Session(
            find_tool("runq"), Settings(cgroup=groups[0] if groups else None)
        )
        self.before: list[int] = []

    def read(self) -> Reading:
        from tegu.probe import quantile

        slots = self.session.tool.summarize(self.session)["histogram_us"]
        new = [a - b for a, b in zip(slots, self.before or [0] * len(slots), strict=True)]
        self.before = slots
        if sum(new) == 0:
            return Reading(0.0, 0, time.time())
        return Reading(quantile(new, 0.99) / 1e9, sum(new), time.time())

    def close(self) -> None:
        self.session.close()
