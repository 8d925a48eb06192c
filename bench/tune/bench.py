"""Which settings have a receipt? Each is proved ABAB in a guest whose clock follows instructions.

The path is the guest's loopback with netem (delay, loss) and an MTU of 1500. A row is a proof, kept
or not; profiles may hold what is kept.
"""

from __future__ import annotations

import os
import tempfile
from pathlib import Path
from typing import Any

from bench.boot.guest import CPU
from bench.common import Bar, BenchError, BenchResult, machine
from bench.qos.guest import SHIFT, prepare

__all__ = ["run"]

TC = ["/usr/bin/tc", "qdisc"]
LINK = ["/bin/busybox", "ifconfig", "lo", "mtu", "1500"]
CLEAR = [[*TC, "del", "dev", "lo", "root"]]


def _path(*netem: str) -> list[list[str]]:
    return [LINK, [*TC, "add", "dev", "lo", "root", "netem", "limit", "100000", *netem]]


CANDIDATES: list[dict[str, Any]] = [
    {
        "setting": "sysctl:net.ipv4.tcp_slow_start_after_idle=0",
        "name": "400 KB on a connection idle for 2 s, 40 ms RTT, MTU 1500",
        "before": _path("delay", "20ms"),
        "transfer": ["after-idle", "400000"],
        "after": CLEAR,
    },
    {
        "setting": "sysctl:net.ipv4.tcp_congestion_control=bbr",
        "name": "4 MB, 40 ms RTT, 1 % loss, MTU 1500",
        "before": _path("delay", "20ms", "loss", "1%"),
        "transfer": ["bulk", "4000000"],
        "after": CLEAR,
    },
]


def run(quick: bool) -> BenchResult:
    """Prove every candidate; `quick`: the first."""
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "tegu-bench"
    cache.mkdir(parents=True, exist_ok=True)
    chosen = CANDIDATES[:1] if quick else CANDIDATES
    with tempfile.TemporaryDirectory(prefix="tune-", dir=cache) as scratch:
        here = Path(__file__).parent
        lab = prepare(
            cache,
            Path(scratch),
            modules=("sch_netem", "tcp_bbr"),
            programs=("tc",),
            scripts=(here / "inside.py", here / "transfer.py"),
        )
        said = lab.ask({"candidates": chosen}, memory=512, script="bench.tune.inside")
    rows = []
    for line in said:
        if line["name"] == "failed":
            raise BenchError(f"{line['setting']}: {line['why']}")
        if line["name"] == "proof":
            rows.append(
                {
                    "setting": f"{line['setting']}={line['value']}",
                    "workload": line["workload"],
                    "A ms": sorted(line["a"])[len(line["a"]) // 2] * 1e3,
                    "B ms": sorted(line["b"])[len(line["b"]) // 2] * 1e3,
                    "gain %": line["gain"] * 100,
                    "noise %": line["noise"] * 100,
                    "verdict": line["why"],
                    "kernel": line["kernel"],
                }
            )
    gain = next(r["gain %"] for r in rows if "slow_start" in str(r["setting"]))
    return BenchResult(
        bench="tune",
        machine={**machine(), "accelerator": f"TCG, -icount shift={SHIFT},sleep=off, -cpu {CPU}"},
        rows=rows,
        bars=[Bar.at_least("tcp_slow_start_after_idle=0: gain, %", gain, 50.0)],
        notes=["Median of three pairs, in the order ABBAAB; noise is the whole spread of A."],
    )
