"""A policy: which programs are latency-critical, normal or batch, and what may be done about it.

The file is TOML; docs/qos.md has every key. The same keys are the schema of the Kubernetes custom
resource. A mistake is a DefinitionError that begins with file and key.
"""

from __future__ import annotations

import math
import re
import tomllib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, get_args

from tegu.errors import DefinitionError
from tegu.qos.keys import (
    CEILING,
    CLASS,
    DEVICES,
    FEEDS,
    LOOP,
    MATCHES,
    POLICY,
    SIZE,
    SLO,
    TIME,
    Key,
    Table,
)

__all__ = [
    "CLASSES",
    "KNOBS",
    "ClassName",
    "ClassPolicy",
    "Feed",
    "IoChoice",
    "Knob",
    "Loop",
    "Match",
    "Objective",
    "Policy",
    "load_policy",
    "parse_policy",
    "parse_size",
    "parse_time",
    "policy_from",
]

ClassName = Literal["latency", "normal", "batch"]
CLASSES: tuple[ClassName, ...] = get_args(ClassName)
Knob = Literal["cpu", "io", "memory"]
KNOBS: tuple[Knob, ...] = get_args(Knob)
IoChoice = Literal["auto", "bfq", "iocost", "none"]
_TIME = {"us": 1e-6, "ms": 1e-3, "s": 1.0, "m": 60.0}
_SIZE = {"": 1, "K": 1 << 10, "M": 1 << 20, "G": 1 << 30, "T": 1 << 40}


@dataclass(frozen=True)
class Match:
    """What belongs to a class: `kind` is cgroup, unit, slice, container or pod."""

    kind: str
    pattern: str

    def __str__(self) -> str:
        return f"{self.kind}:{self.pattern}"


@dataclass(frozen=True)
class Feed:
    """Where the p99 comes from: a file, a UNIX socket, a Prometheus query or run-queue latency.
    `stale` (seconds): an older value is none."""

    kind: str
    where: str = ""
    query: str = ""
    stale: float = 10.0


@dataclass(frozen=True)
class Objective:
    """The service level objective of the latency class: p99 in seconds."""

    p99: float
    feed: Feed


@dataclass(frozen=True)
class ClassPolicy:
    """What one class gets. None: left as it is.

    Weights are those of cgroup-v2.rst (1 to 10000), `memory_low` is bytes; `idle` is cpu.idle.
    """

    name: ClassName
    match: tuple[Match, ...] = ()
    weight: int | None = None
    idle: bool = False
    io_weight: int | None = None
    memory_low: int | None = None


@dataclass(frozen=True)
class Loop:
    """The feedback layer: seconds, samples, and what each knob may be.

    `ceilings`: processors for cpu, operations a second of each device for io, bytes for memory;
    a knob without one does not move. `floor` is a fraction of the ceiling.
    """

    window: float = 1.0
    samples: int = 500
    cooldown: float = 30.0
    knobs: tuple[Knob, ...] = ()
    ceilings: Mapping[Knob, float] = field(default_factory=dict)
    floor: float = 0.05
    safe: float = 0.1
    """The fraction of the ceiling that batch is capped to while nothing is known."""


@dataclass(frozen=True)
class Policy:
    """A whole policy; `source` is for messages."""

    source: str
    classes: Mapping[ClassName, ClassPolicy]
    objective: Objective | None = None
    devices: Mapping[str, IoChoice] = field(default_factory=dict)
    loop: Loop = field(default_factory=Loop)


_DEFAULTS: dict[ClassName, dict[str, Any]] = {
    "latency": {"weight": 10000, "io_weight": 10000},
    "normal": {},
    "batch": {"idle": True, "io_weight": 1},
}


def load_policy(path: Path, *, match: bool = True) -> Policy:
    """Read a policy; raises DefinitionError with the file and the key.

    Without `match` it need not match anything: it says what classes get, not who is in them.
    """
    try:
        text = path.read_text()
    except (OSError, UnicodeDecodeError) as e:
        reason = e.strerror if isinstance(e, OSError) else "it is not text"
        raise DefinitionError(f"cannot read {path}: {reason}") from e
    return parse_policy(text, str(path), match=match)


def parse_policy(text: str, source: str, *, match: bool = True) -> Policy:
    """Return the policy in `text`, which is TOML; see `load_policy`."""
    try:
        raw = tomllib.loads(text)
    except (tomllib.TOMLDecodeError, RecursionError) as e:
        raise DefinitionError(f"{source}: {e}") from e
    return policy_from(raw, source, match=match)


def policy_from(raw: Mapping[str, Any], source: str, *, match: bool = True) -> Policy:
    """Return the policy of a document that has been read already; see `load_policy`."""
    return _Reader(source).policy(raw, match=match)


def parse_time(text: object) -> float:
    """Return seconds of "500us", "2ms", "30s", "1m"; raises ValueError."""
    match = re.fullmatch(TIME, str(text), re.ASCII)
    if match is None or not isinstance(text, str):
        raise ValueError("write a time as 500us, 2ms, 30s or 1m")
    return float(match[1]) * _TIME[match[2]]


def parse_size(text: object) -> int:
    """Return bytes of 4096, "512M", "1.5G"; raises ValueError."""
    if isinstance(text, int) and not isinstance(text, bool) and 0 <= text < 1 << 62:
        return text
    match = re.fullmatch(SIZE, str(text), re.ASCII)
    if match is None or not isinstance(text, str):
        raise ValueError("write a size as 4096, 512M or 1.5G")
    return int(float(match[1]) * _SIZE[match[2]])


class _Reader:
    """Turns tables into dataclasses, with the key in each error."""

    def __init__(self, source: str) -> None:
        self.source = source

    def fail(self, key: str, why: str) -> DefinitionError:
        return DefinitionError(f"{self.source}: {key}: {why}")

    def table(self, raw: Mapping[str, Any], key: str, within: str = "") -> dict[str, Any]:
        value = raw.get(key, {})
        if not isinstance(value, dict):
            raise self.fail(f"{within}{key}", "must be a table")
        return value

    def known(self, raw: Mapping[str, Any], table: Table, within: str) -> None:
        for key in raw:
            if key not in table.keys:
                raise self.fail(
                    f"{within}{key}", f"there is no such key; known: {', '.join(table.keys)}"
                )

    def number(self, raw: Mapping[str, Any], table: Table, key: str, within: str) -> float:
        known = table.keys[key]
        assert isinstance(known, Key)
        value = raw.get(key, known.default)
        if isinstance(value, bool) or not isinstance(value, int | float):
            raise self.fail(f"{within}{key}", "must be a number")
        if not math.isfinite(value) or not known.low <= value <= known.high:
            raise self.fail(f"{within}{key}", f"must be from {known.low:g} to {known.high:g}")
        return float(value)

    def parsed(self, key: str, convert: Callable[[object], Any], value: object) -> Any:
        try:
            return convert(value)
        except ValueError as e:
            raise self.fail(key, str(e)) from e

    def policy(self, raw: Mapping[str, Any], *, match: bool) -> Policy:
        self.known(raw, POLICY, "")
        classes = {n: self.one_class(n, self.table(raw, n)) for n in CLASSES}
        if match and not any(c.match for c in classes.values()):
            raise self.fail("match", "no class matches anything")
        objective = self.objective(self.table(raw, "slo")) if "slo" in raw else None
        devices: dict[str, IoChoice] = {}
        for name, choice in self.table(raw, "devices").items():
            if choice not in get_args(IoChoice):
                raise self.fail(f"devices.{name}", "must be auto, bfq, iocost or none")
            if not re.fullmatch(DEVICES.named, name):
                raise self.fail(f"devices.{name}", "is no name of a block device")
            devices[name] = choice
        loop = self.loop(self.table(raw, "loop"))
        if loop.knobs and objective is None:
            raise self.fail("loop.knobs", "the feedback layer needs an [slo]")
        return Policy(self.source, classes, objective, devices, loop)

    def one_class(self, name: ClassName, raw: Mapping[str, Any]) -> ClassPolicy:
        within = f"{name}."
        self.known(raw, CLASS, within)
        values: dict[str, Any] = {**_DEFAULTS[name], **raw}
        if "weight" in raw and "idle" not in raw:
            values["idle"] = False
        idle = values.get("idle", False)
        if not isinstance(idle, bool):
            raise self.fail(f"{within}idle", "must be true or false")
        if idle and "weight" in raw:
            raise self.fail(f"{within}weight", "an idle group has no weight: leave one out")
        matches = values.get("match", [])
        if not isinstance(matches, list):
            raise self.fail(f"{within}match", "must be a list")
        low = values.get("memory_low")
        return ClassPolicy(
            name,
            tuple(self.match(f"{within}match", m) for m in matches),
            self.weight(values, "weight", within),
            idle,
            self.weight(values, "io_weight", within),
            None if low is None else self.parsed(f"{within}memory_low", parse_size, low),
        )

    def weight(self, raw: Mapping[str, Any], key: str, within: str) -> int | None:
        value, known = raw.get(key), CLASS.keys[key]
        assert isinstance(known, Key)
        if value is None:
            return None
        if (
            isinstance(value, bool)
            or not isinstance(value, int)
            or not known.low <= value <= known.high
        ):
            raise self.fail(
                f"{within}{key}", f"must be a whole number from {known.low:g} to {known.high:g}"
            )
        return value

    def match(self, key: str, value: object) -> Match:
        kind, colon, pattern = value.partition(":") if isinstance(value, str) else ("", "", "")
        if not colon or kind not in MATCHES or not pattern:
            raise self.fail(key, f"{value!r} must be KIND:NAME with KIND of {', '.join(MATCHES)}")
        if kind == "cgroup" and (not pattern.startswith("/") or ".." in pattern.split("/")):
            raise self.fail(key, f"{value!r}: a group's path begins with / and has no ..")
        if pattern == "/":
            raise self.fail(key, "the root group belongs to everyone")
        return Match(kind, pattern)

    def objective(self, raw: Mapping[str, Any]) -> Objective:
        self.known(raw, SLO, "slo.")
        if "p99" not in raw:
            raise self.fail("slo.p99", "is missing")
        p99 = self.parsed("slo.p99", parse_time, raw["p99"])
        if p99 <= 0:
            raise self.fail("slo.p99", "must be more than nothing")
        kind, _, where = str(raw.get("feed", "runq")).partition(":")
        if kind not in FEEDS:
            raise self.fail("slo.feed", f"must begin with one of {', '.join(FEEDS)}")
        if kind in ("file", "unix") and not where.startswith("/"):
            raise self.fail("slo.feed", f"{kind}: needs an absolute path after it")
        if kind == "prometheus" and not re.match(r"https?://", where):
            raise self.fail("slo.feed", "prometheus: needs the server's address after it")
        query = raw.get("query", "")
        if not isinstance(query, str) or (kind == "prometheus" and not query):
            raise self.fail("slo.query", "prometheus needs a query that returns seconds")
        stale = self.parsed("slo.stale", parse_time, raw.get("stale", "10s"))
        return Objective(p99, Feed(kind, where, query, stale))

    def loop(self, raw: Mapping[str, Any]) -> Loop:
        within = "loop."
        self.known(raw, LOOP, within)
        knobs = raw.get("knobs", [])
        if not isinstance(knobs, list) or any(k not in KNOBS for k in knobs):
            raise self.fail("loop.knobs", f"must be a list of {', '.join(KNOBS)}")
        table = self.table(raw, "ceiling", within)
        self.known(table, CEILING, "loop.ceiling.")
        ceilings: dict[Knob, float] = {}
        for knob in KNOBS:
            if knob not in table:
                continue
            if knob == "memory":
                ceilings[knob] = float(self.parsed("loop.ceiling.memory", parse_size, table[knob]))
            else:
                ceilings[knob] = self.number(table, CEILING, knob, "loop.ceiling.")
            if not ceilings[knob]:
                raise self.fail(f"loop.ceiling.{knob}", "must be more than nothing")
        for knob in knobs:
            if knob != "cpu" and knob not in ceilings:
                raise self.fail(f"loop.ceiling.{knob}", "is missing: how much is everything?")
        window = self.parsed("loop.window", parse_time, raw.get("window", "1s"))
        if not 0.1 <= window <= 3600:
            raise self.fail("loop.window", "must be from 100ms to 60m")
        return Loop(
            window,
            int(self.number(raw, LOOP, "samples", within)),
            self.parsed("loop.cooldown", parse_time, raw.get("cooldown", "30s")),
            tuple(dict.fromkeys(knobs)),
            ceilings,
            self.number(raw, LOOP, "floor", within),
            self.number(raw, LOOP, "safe", within),
        )
