"""The network: tables that are full, ports nobody needs, losses that someone asked for."""

from __future__ import annotations

import json
from pathlib import Path

from tegu.heal.finding import Finding
from tegu.heal.remedy import Refused, Remedy, State
from tegu.heal.snapshot import text
from tegu.process import run

__all__ = ["RaiseConntrack", "RemoveNetem", "ReuseTimeWait"]

_MAX = Path("/proc/sys/net/netfilter/nf_conntrack_max")
_REUSE = Path("/proc/sys/net/ipv4/tcp_tw_reuse")
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


class ReuseTimeWait(Remedy):
    """Let new connections take the ports of closed ones that have been in TIME-WAIT for a second.

    Timestamps (RFC 7323) tell the segments of the two apart, so the kernel does it only where both
    ends use them (Documentation/networking/ip-sysctl.rst, tcp_tw_reuse).
    """

    name = "reuse-time-wait"
    summary = "let new connections take ports that are in TIME-WAIT (tcp_tw_reuse)"
    blast = "network"
    settle = 2.0

    def prepare(self, finding: Finding) -> State:
        old = text(_REUSE).strip()
        if old == "1":
            raise Refused("ports in TIME-WAIT are used again already")
        if text("/proc/sys/net/ipv4/tcp_timestamps").strip() == "0":
            raise Refused("it needs net.ipv4.tcp_timestamps, which is off")
        return {"old": old}

    def plan(self, finding: Finding, state: State) -> list[str]:
        return ["sysctl net.ipv4.tcp_tw_reuse=1"]

    def apply(self, finding: Finding, state: State) -> None:
        _REUSE.write_text("1")

    def undo(self, finding: Finding, state: State) -> None:
        _REUSE.write_text(str(state["old"]))


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
