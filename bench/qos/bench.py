"""Does batch work slow latency-critical work, and what does keeping them apart cost?

A guest whose clock follows instructions (guest.py) runs an open-loop client and batch work under
each control in turn: p99 of alone, batch work of uncontrolled. See docs/benchmarks.md, qos.
TEGU_QOS=cpu,memory measures these loads alone; TEGU_QOS_PLOTS=FOLDER writes plots there.
"""

from __future__ import annotations

import json
import logging
import os
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from bench.boot.guest import CPU
from bench.common import Bar, BenchError, BenchResult, machine
from bench.qos.guest import SHIFT, Lab, prepare
from bench.qos.plot import write_plots
from bench.qos.scenarios import (
    CHANGING_LEAD,
    CHANGING_LOAD,
    CPU_LOAD,
    IO_LOAD,
    MEMORY_LOAD,
    NULL_BLK,
    OBJECTIVE,
    PACKAGES,
    PROGRAMS,
    Scenario,
    controls,
)

__all__ = ["run"]

LOADS: Mapping[str, Scenario] = {
    "cpu": CPU_LOAD,
    "io": IO_LOAD,
    "memory": MEMORY_LOAD,
    "changing": CHANGING_LOAD,
}
SHIFTS = {"cpu": 0, "io": SHIFT, "memory": 1, "changing": SHIFT}
"""Of an instruction's nanoseconds; a request of the processor's client takes 50 us with 1 ns."""
MEMORY_MIB = {"cpu": 512, "io": 512, "memory": 640, "changing": 512}
GATE = 0.0003
"""Seconds: a client whose real-time thread woke up later (p99) measured itself; invalid."""

_log = logging.getLogger(__name__)


def run(quick: bool) -> BenchResult:
    """Measure every load, or those that TEGU_QOS names; `quick`: the processor alone."""
    named = os.environ.get("TEGU_QOS", "")
    kinds = named.split(",") if named else ["cpu"] if quick else list(LOADS)
    for kind in kinds:
        if kind not in LOADS:
            raise BenchError(f"TEGU_QOS: {kind!r} is none of {', '.join(LOADS)}")
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "tegu-bench"
    cache.mkdir(parents=True, exist_ok=True)
    rows: list[dict[str, Any]] = []
    windows: dict[str, list[float]] = {}
    with tempfile.TemporaryDirectory(prefix="qos-", dir=cache) as scratch:
        lab = prepare(cache, Path(scratch), packages=PACKAGES, programs=PROGRAMS)
        for kind in kinds:
            _log.info("qos: %s", kind)
            found = measure(lab, kind)
            rows += rows_of(kind, found)
            if kind == "changing":
                windows = {name: counted(result) for name, result in found.items()}
    if folder := os.environ.get("TEGU_QOS_PLOTS"):
        write_plots(Path(folder), rows, windows)
    return BenchResult(
        bench="qos",
        machine={
            **machine(),
            "accelerator": f"TCG, -icount shift={SHIFTS}, -cpu {CPU}, 1 processor",
        },
        rows=rows,
        bars=bars(rows),
        notes=[
            "p99 ms: from the time in the client's table to the answer. of alone: p99 beside the "
            "same client without batch work. batch %: work done in a second, of uncontrolled. "
            "lag us: how late a real-time thread of the client woke up (p99); above "
            f"{GATE * 1e6:.0f} a run is thrown away. met %: windows of a second in which the p99 "
            f"was at most {OBJECTIVE * 1e3:g} ms, where the load changes."
        ],
    )


def measure(lab: Lab, kind: str) -> dict[str, dict[str, Any]]:
    """Return what each control of one load came to, by its name."""
    scenario = {**LOADS[kind], "controls": controls(kind)}
    said = lab.ask(scenario, memory=MEMORY_MIB[kind], null_blk=NULL_BLK, shift=SHIFTS[kind])
    for line in said:
        _log.info("qos: %s", json.dumps(line))
        if line["name"] == "undone" and (line["conflicts"] or line["failed"]):
            raise BenchError(f"undo left something: {line}")
        if line["name"] == "refused":
            raise BenchError(f"a policy was refused: {line['what']}: {line['why']}")
    found = {s["control"]: s for s in said if s["name"] == "result"}
    for name, result in found.items():
        if result["lag99"] > GATE:
            raise BenchError(f"{kind}, {name}: the client was {result['lag99'] * 1e6:.0f} us late")
    return found


def counted(result: Mapping[str, Any]) -> list[float]:
    """Return the p99 (seconds) of each window that counts."""
    return list(result["windows"][CHANGING_LEAD:])


def rows_of(kind: str, found: Mapping[str, Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Return the table's rows for one load."""
    alone, free = found["alone"], found["uncontrolled"]
    rows = []
    for name, result in found.items():
        met = None
        if kind == "changing":
            p99s = counted(result)
            met = 100 * sum(0 < p99 <= OBJECTIVE for p99 in p99s) / len(p99s)
        rows.append(
            {
                "load": kind,
                "control": name,
                "p50 ms": result["p50"] * 1e3,
                "p99 ms": result["p99"] * 1e3,
                "of alone": result["p99"] / alone["p99"],
                "batch %": 100 * result["work"] / free["work"],
                "met %": met,
                "lag us": result["lag99"] * 1e6,
            }
        )
    return rows


def bars(rows: Sequence[Mapping[str, Any]]) -> list[Bar]:
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
    if (row := by.get(("changing", "with feedback"))) is not None:
        # Whatever is set once and holds: our own static layer is among them.
        static = {
            name: r["batch %"]
            for (kind, name), r in by.items()
            if kind == "changing" and name not in ("alone", "with feedback") and r["met %"] >= 99
        }
        best = max(static, key=lambda name: static[name], default="")
        value = row["batch %"] / static[best] if best else 1.0
        what = f"the best static setting that meets it ({best or 'there is none'})"
        found.append(Bar.at_least("changing: windows that met the objective, %", row["met %"], 99))
        found.append(Bar.at_least(f"changing: batch work, of {what}", value, 1.0))
    return found
