"""Does batch work slow latency-critical work, and what does keeping them apart cost?

A guest whose clock follows instructions (guest.py) runs an open-loop client and batch work under
each control in turn: p99 of alone, batch work of uncontrolled. See docs/benchmarks.md, qos.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from bench.boot.guest import CPU
from bench.common import Bar, BenchError, BenchResult, machine
from bench.qos.guest import SHIFT, Lab, prepare
from bench.qos.scenarios import (
    CPU_LOAD,
    IO_LOAD,
    MEMORY_LOAD,
    NULL_BLK,
    PACKAGES,
    PROGRAMS,
    Scenario,
    controls,
)

__all__ = ["run"]

LOADS: Mapping[str, Scenario] = {"cpu": CPU_LOAD, "io": IO_LOAD, "memory": MEMORY_LOAD}
SHIFTS = {"cpu": 0, "io": SHIFT, "memory": SHIFT}
"""A request takes 60 us of a processor with 1 ns an instruction; a slower one would measure how
often it meets a timer tick. Devices are as slow as they are."""
MEMORY_MIB = {"cpu": 512, "io": 512, "memory": 640}
GATE = 0.0003
"""Seconds: a client whose real-time thread woke up later (p99) measured itself; invalid."""


def run(quick: bool) -> BenchResult:
    """Measure all three; `quick`: the processor alone."""
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "tegu-bench"
    cache.mkdir(parents=True, exist_ok=True)
    rows: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory(prefix="qos-", dir=cache) as scratch:
        lab = prepare(cache, Path(scratch), packages=PACKAGES, programs=PROGRAMS)
        for kind in ("cpu",) if quick else tuple(LOADS):
            rows += measure(lab, kind)
    return BenchResult(
        bench="qos",
        machine={
            **machine(),
            "accelerator": f"TCG, -icount shift=0 (cpu) or {SHIFT}, -cpu {CPU}, 1 processor",
        },
        rows=rows,
        bars=bars(rows),
        notes=[
            "p99 ms: from the time in the client's table to the answer. of alone: p99 beside the "
            "same client without batch work. batch %: work done in a second, of uncontrolled. "
            "lag us: how late a real-time thread of the client woke up (p99); above "
            f"{GATE * 1e6:.0f} a run would be thrown away."
        ],
    )


def measure(lab: Lab, kind: str) -> list[dict[str, Any]]:
    """Return the rows of one load."""
    scenario = {**LOADS[kind], "controls": controls(kind)}
    said = lab.ask(scenario, memory=MEMORY_MIB[kind], null_blk=NULL_BLK, shift=SHIFTS[kind])
    for line in said:
        if line["name"] == "undone" and (line["conflicts"] or line["failed"]):
            raise BenchError(f"undo left something: {line}")
    found = {s["control"]: s for s in said if s["name"] == "result"}
    alone, free = found["alone"], found["uncontrolled"]
    rows = []
    for name, result in found.items():
        if result["lag99"] > GATE:
            raise BenchError(f"{kind}, {name}: the client was {result['lag99'] * 1e6:.0f} us late")
        rows.append(
            {
                "load": kind,
                "control": name,
                "p50 ms": result["p50"] * 1e3,
                "p99 ms": result["p99"] * 1e3,
                "of alone": result["p99"] / alone["p99"],
                "batch %": 100 * result["work"] / free["work"],
                "lag us": result["lag99"] * 1e6,
            }
        )
    return rows


def bars(rows: list[dict[str, Any]]) -> list[Bar]:
    """Return the promises."""
    by = {(r["load"], r["control"]): r for r in rows}
    found = []
    for kind, most, least in (("cpu", 1.05, 95.0), ("io", 2.0, 75.0)):
        if (row := by.get((kind, "static layer"))) is not None:
            found.append(Bar.at_most(f"{kind}: p99, of alone", row["of alone"], most))
            found.append(
                Bar.at_least(f"{kind}: batch work, % of uncontrolled", row["batch %"], least)
            )
    if (row := by.get(("memory", "static layer"))) is not None:
        free = by["memory", "uncontrolled"]
        found.append(Bar.at_most("memory: p99, of alone", row["of alone"], 2.0))
        found.append(Bar.at_least("memory: uncontrolled p99, of alone", free["of alone"], 10.0))
    return found
