"""The keys of a policy: what each is, and what it may be. Reader and schema are made from these."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

__all__ = [
    "CEILING",
    "CLASS",
    "DEVICES",
    "FEEDS",
    "IO_CHOICES",
    "LOOP",
    "MATCHES",
    "POLICY",
    "SIZE",
    "SLO",
    "TIME",
    "Key",
    "Table",
]

TIME = r"([0-9]{1,9}(?:\.[0-9]{1,9})?)(us|ms|s|m)"
SIZE = r"([0-9]{1,12}(?:\.[0-9]{1,6})?)([KMGT]?)"
MATCHES = ("cgroup", "unit", "slice", "container", "pod")
FEEDS = ("file", "unix", "prometheus", "runq")
IO_CHOICES = ("auto", "bfq", "iocost", "none")
_KNOBS = ("cpu", "io", "memory")
_DEVICE = r"[A-Za-z0-9_!.-]{1,64}"

Kind = Literal["whole", "number", "flag", "time", "size", "text", "choice", "texts", "choices"]


@dataclass(frozen=True)
class Key:
    """One value. `low` to `high` is for numbers, `default` too; `pattern` (all of it must match)
    for text and each of `texts`; `choices` is what a choice, and each of `choices`, may be."""

    kind: Kind
    about: str
    low: float = 0
    high: float = 0
    default: float = 0
    pattern: str = ""
    choices: tuple[str, ...] = ()


@dataclass(frozen=True)
class Table:
    """Keys by name; with `named` the names are free and follow this pattern, one Key for all."""

    about: str
    keys: Mapping[str, Key | Table]
    required: tuple[str, ...] = ()
    named: str = ""


CLASS = Table(
    "One class: who is in it, and what it gets.",
    {
        "match": Key(
            "texts",
            "KIND:NAME with KIND of cgroup, unit, slice, container, pod.",
            pattern=f"({'|'.join(MATCHES)}):.+",
        ),
        "weight": Key("whole", "cpu.weight; leave it out of an idle class.", 1, 10000),
        "idle": Key("flag", "cpu.idle: runs when nobody else wants to."),
        "io_weight": Key("whole", "I/O weight; put on BFQ's scale where BFQ shares.", 1, 10000),
        "memory_low": Key("size", "Memory that is kept: bytes, or 512M, 1.5G."),
    },
)
SLO = Table(
    "The objective of the latency class, for the feedback layer.",
    {
        "p99": Key("time", "500us, 2ms, 1s."),
        "feed": Key(
            "text",
            "file:PATH, unix:PATH, prometheus:URL, or runq: waits for a processor.",
            pattern="(file:/.*|unix:/.*|prometheus:https?://.*|runq(:.*)?)",
        ),
        "query": Key("text", "The Prometheus query; it must give seconds."),
        "stale": Key("time", "An older figure is none."),
    },
    required=("p99",),
)
CEILING = Table(
    "What all of it is.",
    {
        "cpu": Key("number", "Processors.", 0.01, 1e9, 1),
        "io": Key("number", "Operations a second of each disk.", 0.01, 1e9, 1),
        "memory": Key("size", "Bytes, or 512M, 1.5G."),
    },
)
LOOP = Table(
    "The feedback layer: how often it looks, and what it may take from batch.",
    {
        "window": Key("time", "From 100ms to 60m."),
        "samples": Key("number", "Fewer requests in a window say nothing.", 1, 1e9, 500),
        "cooldown": Key("time", "No second cut before."),
        "knobs": Key("choices", "What may be taken from batch.", choices=_KNOBS),
        "ceiling": CEILING,
        "floor": Key("number", "Never less than this part of the ceiling.", 0.001, 1, 0.05),
        "safe": Key("number", "The part while nothing is known.", 0.001, 1, 0.1),
    },
)
DEVICES = Table(
    "Who shares out each disk.",
    {"*": Key("choice", "auto: BFQ, iocost on NVMe.", choices=IO_CHOICES)},
    named=_DEVICE,
)
POLICY = Table(
    "Which programs are latency-critical, normal or batch, and what may be done about it.",
    {
        "latency": CLASS,
        "normal": CLASS,
        "batch": CLASS,
        "slo": SLO,
        "devices": DEVICES,
        "loop": LOOP,
    },
)
