"""All sandboxes that the service holds, by id."""

from __future__ import annotations

import asyncio
import time
from collections import Counter, OrderedDict
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

from tegu.errors import TeguError, UnsupportedError
from tegu.sandbox.spec import BoxSpec
from tegu.sandbox.web.fault import Fault, as_fault, gone
from tegu.sandbox.web.held import Held, Wanted
from tegu.sandbox.web.link import Link, LostError
from tegu.sandbox.web.usage import sample

__all__ = ["Hub", "Rules"]

_SAMPLE_EVERY = 5.0
_REMEMBERED = 10_000
_ATTEMPTS = 20


@dataclass(frozen=True)
class Rules:
    """What the service gives: templates by name, the box of who does not say, and its bounds."""

    templates: Mapping[str, str] = field(default_factory=lambda: {"base": "host"})
    box: BoxSpec = field(default_factory=BoxSpec)
    max_timeout: float = 86400.0
    max_sandboxes: int = 1000

    def box_of(self, name: str) -> BoxSpec:
        """Return the box of a template's name; raises Fault."""
        found = self.templates.get(name)
        if found is None:
            raise Fault(
                "not_found",
                f"template {name!r} was not found",
                hint=f"there are {', '.join(sorted(self.templates))}",
            )
        return replace(self.box, template=found)

    def check(self, box: BoxSpec) -> None:
        """Raise Fault when a box shall have more than the service gives; UnsupportedError when it
        is of a class whose first process does not do what the service asks (pids, sockets)."""
        if box.kind != "container":
            raise UnsupportedError(f"class {box.kind} over HTTP: it offers containers")
        for name in ("memory", "cpus", "pids", "files", "disk"):
            most, asked = getattr(self.box.limits, name), getattr(box.limits, name)
            if most is not None and (asked is None or asked > most):
                raise Fault(
                    "invalid_argument", f"{name}: {asked} is more than the service gives: {most}"
                )

    def timeout(self, seconds: float | None) -> float | None:
        """Return a lifetime if it is allowed; raises Fault."""
        if seconds is None:
            return None
        if not 0 < seconds <= self.max_timeout:
            raise Fault(
                "invalid_argument",
                f"timeout: {seconds:g} is not above 0 and at most {self.max_timeout:g} seconds",
            )
        return float(seconds)


class Hub:
    """Makes sandboxes, finds them, and knows for a while why those that ended did."""

    def __init__(self, rules: Rules, path: Path | None) -> None:
        self.rules = rules
        self.since = time.time()
        self.started: Counter[str] = Counter()
        """How many were made, by template."""
        self._path = path
        self._held: dict[str, Held] = {}
        self._making = 0
        self._ended: OrderedDict[str, str] = OrderedDict()
        self._presence: Link | None = None
        self._sampler: asyncio.Task[None] | None = None

    async def begin(self) -> None:
        """See that a supervisor serves; it stays while we do. Raises SandboxError."""
        self._presence = await Link.open(self._path, self._left)
        if self._sampler is None:
            self._sampler = asyncio.get_running_loop().create_task(self._sample())

    def _left(self) -> None:
        self._presence = None  # the next sandbox starts another one

    async def create(self, wanted: Wanted) -> Held:
        """Make a sandbox. Raises Fault that says why it cannot."""
        if len(self._held) + self._making >= self.rules.max_sandboxes:
            raise Fault(
                "resource_exhausted", f"{self.rules.max_sandboxes} sandboxes are held already"
            )
        self._making += 1
        try:
            held = await self._start(wanted)
        except TeguError as e:
            fault = as_fault(e)
            raise Fault(
                fault.code,
                f"the sandbox did not start: {fault.message}",
                status=fault.status,
                hint=fault.hint,
            ) from e
        finally:
            self._making -= 1
        if held.ended is None:
            self._held[held.id] = held
        self.started[wanted.template] += 1
        return held

    async def _start(self, wanted: Wanted) -> Held:
        """Start one; by the next supervisor, if one is just ending."""
        for attempt in range(_ATTEMPTS):
            held = Held(wanted, self._forget)
            try:
                if self._presence is None:
                    await self.begin()
                await held.start(lambda closed: Link.open(self._path, closed))
            except LostError:
                if attempt == _ATTEMPTS - 1:
                    raise
                await asyncio.sleep(0.1)
            else:
                return held
        raise AssertionError("the last attempt returns or raises")

    def _forget(self, held: Held, reason: str) -> None:
        self._held.pop(held.id, None)
        self._ended[held.id] = reason
        while len(self._ended) > _REMEMBERED:
            self._ended.popitem(last=False)

    def get(self, name: str) -> Held:
        """Return a sandbox; raises Fault (404) that says why it is not there."""
        found = self._held.get(name)
        if found is None:
            fault = self.gone(name)
            raise Fault("not_found", fault.message)
        return found

    def gone(self, name: str) -> Fault:
        """Return the error of a sandbox that is not there, with the reason if it is known."""
        return gone(name, self._ended.get(name, ""))

    def find(self, name: str) -> Held | None:
        """Return a sandbox, or None."""
        return self._held.get(name)

    def all(self) -> list[Held]:
        """Return all sandboxes, the oldest first."""
        return sorted(self._held.values(), key=lambda h: (h.created, h.id))

    async def close(self) -> None:
        """End all."""
        if self._sampler is not None:
            self._sampler.cancel()
        for held in list(self._held.values()):
            held.close()
        if self._presence is not None:
            self._presence.close()

    async def _sample(self) -> None:
        while True:
            await asyncio.sleep(_SAMPLE_EVERY)
            for held in self.all():
                if not held.paused:
                    try:
                        await sample(held)
                    except (TeguError, OSError) as e:
                        held.note(f"no metrics: {e}")
