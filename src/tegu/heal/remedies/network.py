"""The network: tables that are full, sockets nobody needs, losses that someone asked for."""

from __future__ import annotations

import json
from pathlib import Path

from tegu.heal.finding import Finding
from tegu.heal.remedy import Refused, Remedy, RepairError, State
from tegu.heal.snapshot import text
from tegu.linux.sockdiag import TIME_WAIT, TIME_WAIT_MS, TcpSocket, destroy, tcp_sockets
from tegu.process import run

__all__ = ["RaiseConntrack", "RemoveNetem", "SweepTimeWait"]

_MAX = Path("/proc/sys/net/netfilter/nf_conntrack_max")
_ENTRY = 400  # bytes of kernel memory for a tracked connection, with its extensions


class RaiseConntrack(Remedy):
    """Double the table of tracked connections, within a sixteenth of the machine's memory."""

    name = "raise-conntrack"
    summary = "double the table of tracked connections"
    blast = "network"

    def prepare(self, finding: Finding) -> State:
        word = text(_MAX).strip()
        if not word.isdigit():
            raise Refused("connections are not tracked any more")
        new = 2 * int(word)
        memory = int(text("/proc/meminfo").split()[1]) * 1024
        if new * _ENTRY > memory // 16:
            raise Refused(f"{new} entries would take more than a sixteenth of the memory")
        return {"old": int(word), "new": new}

    def plan(self, finding: Finding, state: State) -> list[str]:
        return [f"sysctl net.netfilter.nf_conntrack_max={state['new']}"]

    def apply(self, finding: Finding, state: State) -> None:
        _MAX.write_text(str(state["new"]))

    def undo(self, finding: Finding, state: State) -> None:
        _MAX.write_text(str(state["old"]))


class SweepTimeWait(Remedy):
    """Forget closed connections to one destination, the oldest half of them.

    What is given up: a late segment of such a connection may meet a new one with the same ports
    (RFC 9293, 3.4.3). Timestamps (RFC 7323) tell the two apart.
    """

    name = "sweep-time-wait"
    summary = "forget the older half of the connections in TIME-WAIT to one destination"
    blast = "network"
    reversible = False

    def _chosen(self, finding: Finding) -> list[TcpSocket]:
        remote = (str(finding.target["address"]), int(finding.target["port"]))
        mine = [s for s in tcp_sockets([TIME_WAIT]) if s.remote == remote]
        mine.sort(key=lambda s: s.left_ms)
        return mine[: (len(mine) + 1) // 2]

    def prepare(self, finding: Finding) -> State:
        try:
            chosen = self._chosen(finding)
        except OSError as e:
            raise Refused(f"sock_diag: {e.strerror}") from e
        if not chosen:
            raise Refused("none is in TIME-WAIT any more")
        return {
            "count": len(chosen),
            "youngest_seconds": round((TIME_WAIT_MS - chosen[-1].left_ms) / 1000, 1),
        }

    def plan(self, finding: Finding, state: State) -> list[str]:
        target = finding.target
        return [
            f"ss --kill state time-wait dst {target['address']}:{target['port']}"
            f"  # the {state['count']} oldest"
        ]

    def apply(self, finding: Finding, state: State) -> None:
        done, refused = destroy(self._chosen(finding))
        state["ended"] = done
        if refused and not done:
            raise RepairError(f"the kernel refused all {refused}")


class RemoveNetem(Remedy):
    """Remove an emulation of a bad network from an interface; `undo` puts it back."""

    name = "remove-netem"
    summary = "remove an emulated loss or delay (netem) from an interface"
    blast = "network"

    def prepare(self, finding: Finding) -> State:
        device = str(finding.target["device"])
        found = json.loads(run(["tc", "-j", "qdisc", "show", "dev", device], timeout=10).stdout)
        netem = [q for q in found if q.get("kind") == "netem"]
        if len(netem) != 1 or not netem[0].get("root"):
            raise Refused(f"{device} has no netem at its root")
        words = run(["tc", "qdisc", "show", "dev", device], timeout=10).stdout
        line = next(line for line in words.splitlines() if "netem" in line)
        options = line.split("refcnt", 1)[-1].split()[1:] if "refcnt" in line else []
        # `seed` is what the kernel chose, and is not taken back by old versions of tc.
        if "seed" in options:
            at = options.index("seed")
            del options[at : at + 2]
        return {"device": device, "options": options}

    def plan(self, finding: Finding, state: State) -> list[str]:
        return [f"tc qdisc del dev {state['device']} root"]

    def apply(self, finding: Finding, state: State) -> None:
        run(["tc", "qdisc", "del", "dev", state["device"], "root"], timeout=10)

    def undo(self, finding: Finding, state: State) -> None:
        run(
            ["tc", "qdisc", "replace", "dev", state["device"], "root", "netem", *state["options"]],
            timeout=10,
        )
