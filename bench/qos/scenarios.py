"""What the guest of bench/qos is asked: a client, batch work, and ways to keep them apart."""

from __future__ import annotations

from typing import Any

__all__ = [
    "CHANGING_LEAD",
    "CHANGING_LOAD",
    "CHANGING_RATES",
    "CHANGING_STEP",
    "CPU_LOAD",
    "IO_LOAD",
    "MEMORY_LOAD",
    "NULL_BLK",
    "OBJECTIVE",
    "PACKAGES",
    "PROGRAMS",
    "Scenario",
    "controls",
]

Scenario = dict[str, Any]
PACKAGES = ("redis-server", "redis-tools", "libjemalloc2", "liblzf1")
PROGRAMS = ("redis-server", "redis-cli")
NULL_BLK = (
    "nr_devices=2 gb=4 bs=4096 queue_mode=2 irqmode=2 completion_nsec=2000000 hw_queue_depth=8"
    " submit_queues=1"
)
"""Two disks that answer each request after 2 ms, eight at a time: 4000 requests a second."""

POLICY = """
[latency]
match = ["cgroup:/web"]
memory_low = "96M"
[batch]
match = ["cgroup:/batch"]
[devices]
nullb0 = "{sharing}"
nullb1 = "none"
"""

LOOP = """
[slo]
p99 = "{p99}"
feed = "file:/run/feed"
[loop]
samples = 100
cooldown = "5s"
knobs = ["{knob}"]
ceiling = {{ {knob} = {ceiling} }}
"""
OBJECTIVE = 1e-3
"""Seconds: what the p99 of the processor's client is to be at most, changing or not."""
OBJECTIVES: dict[str, dict[str, object]] = {
    "cpu": {"p99": "1ms", "ceiling": 1},
    "io": {"p99": "6ms", "ceiling": 4000},
    "memory": {"p99": "2ms", "ceiling": '"450M"'},
}

CPU_LOAD: Scenario = {
    "server": ["/usr/bin/redis-server", "--port", "6379", "--save", "", "--daemonize", "no"],
    "fill": [["/usr/bin/redis-cli", "SET", "key", "x" * 100]],
    "client": ["/bin/work", "get", "6379", "PHASES", "FEED"],
    "batch": ["/bin/work", "spin", "4"],
    "phases": "1200:3",
}
CHANGING_RATES = (200, 2000, 800, 2400, 400, 1600, 200, 2200)
CHANGING_STEP = 2
"""Seconds of each rate."""
CHANGING_LEAD = 4
"""Seconds before anything counts, for every control alike."""
CHANGING_LOAD: Scenario = {
    **CPU_LOAD,
    "phases": ",".join(
        [f"200:{CHANGING_LEAD}", *(f"{rate}:{CHANGING_STEP}" for rate in CHANGING_RATES)]
    ),
    "lead": CHANGING_LEAD,
}
IO_LOAD: Scenario = {
    "client": ["/bin/work", "read", "/dev/nullb0", "PHASES", "FEED"],
    "batch": ["/bin/work", "batch-read", "/dev/nullb0", "64"],
    "phases": "250:6",
}
MEMORY_LOAD: Scenario = {
    "client": ["/bin/work", "map", "/dev/nullb0", "64", "8", "PHASES", "FEED"],
    "batch": ["/bin/work", "scan", "/dev/nullb1", "4", "1500"],
    "phases": "100:3",
    "warm": 2,
}


def controls(kind: str) -> list[dict[str, Any]]:
    """Return the ways that are compared for `kind`: cpu, io, memory or changing."""
    if kind == "changing":
        fixed = [c for c in controls("cpu") if not c.get("peer")]
        return [*fixed, *(_limited(percent) for percent in (25, 50, 75))]
    policy = POLICY.format(sharing="bfq" if kind == "io" else "none")
    found: list[dict[str, Any]] = [
        {"name": "alone", "groups": True},
        {"name": "uncontrolled", "groups": False},
        {"name": "equal weights", "groups": True},
        {"name": "static layer", "groups": True, "policy": policy},
    ]
    loop = LOOP.format(knob=kind, **OBJECTIVES[kind])
    found.append(
        {
            "name": "with feedback",
            "groups": True,
            "policy": policy + loop,
            "daemon": True,
            # It has no figure at first, and holds batch back: nothing counts until then.
            "lead": 3,
        }
    )
    found.append({"name": "65 % rule", "groups": True, "peer": True})
    if kind == "io":
        # What equal weights mean depends on who shares the disk: nobody, or BFQ.
        scheduler = "/sys/block/nullb0/queue/scheduler"
        found[2]["write"] = [[scheduler, "bfq"]]
        found[2]["restore"] = [[scheduler, "none"]]
    if kind == "memory":
        for control in found:
            control["drop"] = True
    return found


def _limited(percent: int) -> dict[str, Any]:
    """Return a fixed limit of the processor for batch."""
    limit = "/sys/fs/cgroup/batch/cpu.max"
    return {
        "name": f"cpu.max {percent} %",
        "groups": True,
        "write": [[limit, f"{percent * 1000} 100000"]],
    }
