"""How much does a build cost, the first time and every time after? Tegu, mkosi and mmdebstrap.

All build the same packages of the same suite, from one mirror on 127.0.0.1, in turn on the same
machine. See docs/benchmarks.md for what is compared and why it is fair.
"""

from __future__ import annotations

import functools
import logging
import os
import tempfile
from pathlib import Path
from typing import Any, Literal

from bench.build.mirror import serve
from bench.build.ours import Tegu
from bench.build.peers import Mkosi, Mmdebstrap
from bench.build.workload import CASES, Builder, Case, Place, settle
from bench.common import Bar, BenchResult, Usage, alternate, disk_used, machine, median, ratio

__all__ = ["run"]

log = logging.getLogger(__name__)

Figure = Literal["cpu", "wall"]
FIGURES: tuple[Figure, ...] = ("cpu", "wall")

LIMITS: tuple[tuple[Case, str, float], ...] = (
    ("warm", "mkosi", 4.0),
    ("warm", "mmdebstrap", 2.5),
    ("file", "mkosi", 4.0),
    ("package", "mkosi", 12.0),
    ("update", "mkosi", 12.0),
)
"""Times that a peer must cost more than Tegu, as CPU and as wall time."""

UNCHANGED_WALL = 1.0

KEEPS_NOTHING = frozenset({"mmdebstrap"})
"""Builders for which every case is the same full build: measured once, as `warm`."""

Results = dict[Case, dict[str, list[Usage]]]


def run(quick: bool) -> BenchResult:
    """Run every case, once when `quick`, else three times in turn; needs root or user namespaces.

    Takes about 15 minutes on two cores when quick, most of it the peers'.
    """
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "tegu-bench"
    cache.mkdir(parents=True, exist_ok=True)
    with (
        serve(cache / "mirror") as mirror,
        tempfile.TemporaryDirectory(prefix="build-", dir=cache) as scratch,
    ):

        def place(name: str) -> Place:
            return Place(Path(scratch) / name, cache, mirror)

        ours = Tegu(place("tegu"))
        builders: list[Builder] = [
            ours,
            Mkosi(place("mkosi")),
            Mmdebstrap(place("mmdebstrap")),
        ]
        # Nobody's first run pays for the mirror's own downloads, or for cold files of the tools.
        for builder in builders:
            _once(builder, "cold")
        results, disks, equal = _measure(builders, ours, repetitions=1 if quick else 3)
        versions = {b.name: b.version() for b in builders}
    return BenchResult(
        bench="build",
        machine={**machine(), **versions},
        rows=_rows(builders, results, disks),
        bars=_bars(results, equal),
        notes=[
            "mmdebstrap keeps nothing between runs: its one full build stands for every case.",
        ],
    )


def _measure(
    builders: list[Builder], ours: Tegu, repetitions: int
) -> tuple[Results, dict[tuple[Case, str], float], dict[Case, bool]]:
    results: Results = {}
    disks: dict[tuple[Case, str], float] = {}
    equal: dict[Case, bool] = {}
    for case in CASES:
        taking_part = [b for b in builders if case == "warm" or b.name not in KEEPS_NOTHING]
        results[case] = alternate(
            {b.name: functools.partial(_once, b, case) for b in taking_part}, repetitions
        )
        for builder in taking_part:
            disks[case, builder.name] = sum(disk_used(f) for f in builder.folders() if f.exists())
        if case in ("file", "package", "update"):
            ours.prepare(case)
            ours.build(case)
            equal[case] = ours.equals_clean()
    return results, disks, equal


def _once(builder: Builder, case: Case) -> Usage:
    builder.prepare(case)
    settle()
    used = builder.build(case)
    log.info("%s, %s: %.1f s, %.1f s CPU", builder.name, CASES[case], used.wall, used.cpu)
    return used


def _rows(
    builders: list[Builder], results: Results, disks: dict[tuple[Case, str], float]
) -> list[dict[str, Any]]:
    rows = []
    for case, by_name in results.items():
        for builder in builders:
            if builder.name not in by_name:
                continue
            used = median(by_name[builder.name])
            rows.append(
                {
                    "case": CASES[case],
                    "builder": builder.name,
                    "output": builder.makes,
                    "CPU s": used.cpu,
                    "wall s": used.wall,
                    "largest process MiB": used.peak_mib,
                    "all processes MiB": used.sum_mib,
                    "disk MiB": disks[case, builder.name],
                }
            )
    return rows


def _bars(results: Results, equal: dict[Case, bool]) -> list[Bar]:
    bars = []
    for case, peer, limit in LIMITS:
        ours, theirs = results[case]["tegu"], results[case][peer]
        for figure in FIGURES:
            name = f"{CASES[case]}: {peer} / tegu, {figure}"
            bars.append(Bar.at_least(name, ratio(ours, theirs, figure), limit))
    unchanged = median(results["unchanged"]["tegu"]).wall
    bars.append(Bar.at_most("nothing changed: tegu, wall s", unchanged, UNCHANGED_WALL))
    for case, same in equal.items():
        name = f"{CASES[case]}: incremental image equals the clean one"
        bars.append(Bar.at_least(name, float(same), 1.0))
    return bars
