"""What is known of a function's invocations: what each cost, how they ended, what they printed."""

from __future__ import annotations

import statistics
import time
from collections import Counter, deque
from dataclasses import asdict, dataclass, field
from typing import Any

__all__ = ["OUTCOMES", "Account", "Journal", "Tally"]

OUTCOMES = (
    "ok",
    "raised",
    "exited",
    "crashed",
    "timed_out",
    "out_of_memory",
    "not_serialisable",
    "event_too_large",
    "result_too_large",
    "start_failed",
    "queue_full",
    "cancelled",
)
"""How an invocation can end."""
MOST_LOG = 64 * 1024
"""Bytes of one invocation's output that are kept; more is read and dropped."""
_MOST_JOURNAL = 2**20
_RECENT = 256


@dataclass
class Account:
    """What one invocation cost; times in seconds, sizes in bytes.

    `user` and `system` are CPU time as the zygote's wait4(2) told it when all had ended, or, while
    the answer does not wait for that, as the invocation itself did (getrusage(2)). `max_rss`, of
    its largest process, holds the pages that it shares with its zygote as well; `memory_peak`, of
    its control group, is there with a limit on memory.
    """

    queue: float = 0.0
    """Waiting for its turn."""
    start: float = 0.0
    """From its turn to the call: a zygote that has to be started, the wait for a fork's limits."""
    wall: float = 0.0
    """From the call to the answer, the fork included."""
    user: float = 0.0
    system: float = 0.0
    max_rss: int = 0
    memory_peak: int = 0
    cold: bool = False
    """Whether it waited for a zygote."""

    def to_json(self) -> dict[str, Any]:
        """Return plain data."""
        return {k: round(v, 6) if isinstance(v, float) else v for k, v in asdict(self).items()}


@dataclass
class Tally:
    """A function's invocations in sum."""

    outcomes: Counter[str] = field(default_factory=Counter)
    starts: int = 0
    """How often a zygote was started."""
    cpu: float = 0.0
    wall: float = 0.0
    queue: float = 0.0
    recent: deque[float] = field(default_factory=lambda: deque(maxlen=_RECENT))

    def count(self, outcome: str, account: Account) -> None:
        """Take an invocation that was answered."""
        self.outcomes[outcome] += 1
        if outcome == "queue_full":
            return
        self.wall += account.wall
        self.queue += account.queue
        self.recent.append(account.queue + account.start + account.wall)

    def mean_wall(self) -> float:
        """Return the seconds that one takes, of late; 0 when none did."""
        return statistics.fmean(self.recent) if self.recent else 0.0

    def to_json(self) -> dict[str, Any]:
        """Return plain data."""
        recent = sorted(self.recent)
        return {
            "invocations": sum(self.outcomes.values()),
            "outcomes": dict(self.outcomes),
            "zygote_starts": self.starts,
            "cpu": round(self.cpu, 6),
            "wall": round(self.wall, 6),
            "queue": round(self.queue, 6),
            "p50": round(recent[len(recent) // 2], 6) if recent else None,
            "p99": round(recent[min(len(recent) - 1, int(len(recent) * 0.99))], 6)
            if recent
            else None,
        }


class Journal:
    """The last of what a function printed: at most a mebibyte, kept in memory."""

    def __init__(self) -> None:
        self._entries: deque[dict[str, Any]] = deque()
        self._size = 0
        self._number = 0

    def add(self, invocation: str, text: str, **more: Any) -> None:
        """Add an entry, with the time; the oldest make room."""
        self._number += 1
        entry = {"number": self._number, "time": time.time(), "id": invocation, "text": text}
        self._entries.append({**entry, **more})
        self._size += len(text) + 200
        while self._size > _MOST_JOURNAL:
            self._size -= len(self._entries.popleft()["text"]) + 200

    def after(self, number: int, most: int) -> list[dict[str, Any]]:
        """Return the entries after entry `number`; of more than `most`, the last."""
        found = [entry for entry in self._entries if entry["number"] > number]
        return found[-most:] if most else found
