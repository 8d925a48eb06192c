"""Steps of a build: each with a key, a time, and the reason why it ran."""

from __future__ import annotations

import hashlib
import json
import resource
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path

from tegu.files import write_atomic
from tegu.store import Store

__all__ = ["Log", "Outcome", "Step", "engine_digest", "key_of"]


@cache
def engine_digest() -> str:
    """Return a digest of the code that makes trees and images: other code, other results."""
    base = Path(__file__).parent.parent
    digest = hashlib.sha256()
    for room in ("boot", "image", "linux"):
        for path in sorted((base / room).rglob("*.py")):
            digest.update(path.name.encode() + b"\0" + path.read_bytes())
    return digest.hexdigest()[:16]


def key_of(inputs: Mapping[str, str]) -> str:
    """Return the key (hex) of a step from the digests of its named inputs."""
    text = json.dumps(dict(inputs), sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()


def _cpu() -> float:
    own = resource.getrusage(resource.RUSAGE_SELF)
    children = resource.getrusage(resource.RUSAGE_CHILDREN)
    return own.ru_utime + own.ru_stime + children.ru_utime + children.ru_stime


@dataclass(frozen=True, slots=True)
class Step:
    """What a step did: `outcome` is kept, ran or incremental; `reason` says why."""

    name: str
    key: str
    outcome: str
    reason: str
    seconds: float
    cpu_seconds: float


@dataclass
class Outcome:
    """Filled in by the step while it runs."""

    outcome: str = "ran"
    reason: str = ""


@dataclass
class Log:
    """Collects steps and compares their inputs with those of the last build of the same thing.

    `history` maps a step's name to its inputs then.
    """

    store: Store
    subject: str
    announce: Callable[[str], None] = lambda _: None
    steps: list[Step] = field(default_factory=list)
    inputs: dict[str, dict[str, str]] = field(default_factory=dict)
    history: dict[str, dict[str, str]] = field(default_factory=dict)

    @classmethod
    def open(cls, store: Store, subject: str, announce: Callable[[str], None]) -> Log:
        """Start a log for `subject` (a definition's path), with its last build's inputs."""
        log = cls(store, subject, announce)
        path = log._path()
        if path.exists():
            try:
                log.history = json.loads(path.read_text())
            except ValueError:
                path.unlink()
        return log

    def _path(self) -> Path:
        return self.store.small("history", hashlib.sha256(self.subject.encode()).hexdigest())

    def save(self) -> None:
        """Remember the inputs for the next build."""
        write_atomic(self._path(), json.dumps(self.inputs, sort_keys=True))

    def reason(self, name: str, inputs: Mapping[str, str]) -> str:
        """Say in words what differs from the last build."""
        before = self.history.get(name)
        if before is None:
            return "first build"
        changed = [k for k in inputs if before.get(k) != inputs[k]]
        gone = [k for k in before if k not in inputs]
        if not changed and not gone:
            return "the store no longer had it"
        added = [k for k in changed if k not in before]
        parts = []
        if renewed := [k for k in changed if k in before]:
            parts.append("changed: " + _names(renewed))
        if added:
            parts.append("new: " + _names(added))
        if gone:
            parts.append("gone: " + _names(gone))
        return "; ".join(parts)

    @contextmanager
    def step(self, name: str, key: str, inputs: Mapping[str, str]) -> Iterator[Outcome]:
        """Time a step. The block sets `outcome`; without a reason one is found from `inputs`."""
        self.inputs[name] = dict(inputs)
        outcome = Outcome()
        began, cpu = time.monotonic(), _cpu()
        self.announce(name)
        yield outcome
        reason = outcome.reason
        if not reason:
            kept = outcome.outcome == "kept"
            reason = "nothing it depends on has changed" if kept else self.reason(name, inputs)
        self.steps.append(
            Step(name, key, outcome.outcome, reason, time.monotonic() - began, _cpu() - cpu)
        )


def _names(names: list[str]) -> str:
    shown = ", ".join(names[:5])
    return shown if len(names) <= 5 else f"{shown} and {len(names) - 5} more"
