"""`ports`: who uses up the ports for outgoing connections, and what is left in TIME-WAIT."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

from tegu.linux.sockdiag import LISTEN, TIME_WAIT, tcp_sockets
from tegu.probe.network import STATES
from tegu.probe.reading import Reading
from tegu.probe.recording import Record, Recording
from tegu.probe.report import Table
from tegu.probe.tool import Settings, top_rows

__all__ = ["Ports"]

_RANGE = Path("/proc/sys/net/ipv4/ip_local_port_range")
_CONNTRACK = Path("/proc/sys/net/netfilter")
_MOST_STATE = 11


class Ports(Reading):
    """Who uses up the ports for outgoing connections, and what waits in TIME-WAIT?

    All TCP sockets of this network namespace: how many in which state, and how many local ports of
    the ephemeral range each destination holds, in use and in TIME-WAIT. A destination can hold each
    port once: at 100 % new connections to it fail with EADDRNOTAVAIL. Beside it, how full the table
    of tracked connections is.
    """

    name = "ports"
    group = "net"
    question = "Who uses up the ports for outgoing connections, what waits in TIME-WAIT?"
    facility = "sock_diag(7), net.ipv4.ip_local_port_range and net.netfilter.nf_conntrack_*"
    instant = True
    overhead = "one dump of the kernel's TCP sockets"
    example = "Example: tegu probe ports --json"

    def unavailable(self) -> str:
        try:
            next(iter(tcp_sockets([LISTEN])), None)
        except OSError as e:
            return f"the kernel does not list its sockets: {e.strerror}"
        return ""

    def look(self, settings: Settings) -> Record:
        low, high = (int(word) for word in _RANGE.read_text().split())
        listening = {s.local[1] for s in tcp_sockets([LISTEN])}
        states: Counter[str] = Counter()
        used: Counter[tuple[str, int]] = Counter()
        waiting: Counter[tuple[str, int]] = Counter()
        for found in tcp_sockets(range(1, _MOST_STATE + 1)):
            states[STATES.get(found.state, str(found.state))] += 1
            port = found.local[1]
            if found.state == LISTEN or port in listening or not low <= port <= high:
                continue
            used[found.remote] += 1
            waiting[found.remote] += found.state == TIME_WAIT
        return {
            "states": dict(states),
            "range": [low, high],
            "destinations": [
                {
                    "to": f"[{host}]:{port}" if ":" in host else f"{host}:{port}",
                    "ports": count,
                    "time_wait": waiting[host, port],
                    "percent": round(100 * count / (high - low + 1), 1),
                }
                for (host, port), count in used.items()
            ],
            "conntrack": _conntrack(),
        }

    def compare(self, first: Any, last: Any, seconds: float) -> Record:
        found: Record = last
        return found

    def tables(self, recording: Recording, top: int) -> list[Table]:
        summary = recording.summary
        low, high = summary["range"]
        tables = [
            Table(
                f"{sum(int(n) for n in summary['states'].values())} TCP sockets",
                ("state", "sockets"),
                [
                    (s["state"], s["sockets"])
                    for s in top_rows(
                        [{"state": k, "sockets": n} for k, n in summary["states"].items()],
                        "sockets",
                        len(STATES),
                    )
                ],
            ),
            Table(
                f"ports {low} to {high} held for outgoing connections",
                ("to", "ports", "of them in TIME-WAIT", "of the range"),
                [
                    (d["to"], d["ports"], d["time_wait"], f"{d['percent']} %")
                    for d in top_rows(summary["destinations"], "ports", top)
                ],
            ),
        ]
        if summary["conntrack"]:
            now, most = summary["conntrack"]["count"], summary["conntrack"]["max"]
            tables.append(
                Table(
                    "tracked connections",
                    ("now", "at most", "full"),
                    [(now, most, f"{100 * now / max(most, 1):.1f} %")],
                )
            )
        return tables


def _conntrack() -> dict[str, int] | None:
    found = {}
    for name in ("count", "max"):
        try:
            found[name] = int((_CONNTRACK / f"nf_conntrack_{name}").read_text())
        except (OSError, ValueError):
            return None  # the module is not loaded
    return found
