"""Connections that must send again: packets are lost, here or on the way."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import suppress
from typing import Any

from tegu.errors import TeguError
from tegu.heal.finding import Evidence, Finding, Subject
from tegu.heal.look import Look
from tegu.heal.rule import Rule
from tegu.process import run

_SHARE = 0.02
_FEWEST = 10  # segments sent again


def check(look: Look) -> Iterator[Finding]:
    again, sent = look.net("Tcp.RetransSegs"), look.net("Tcp.OutSegs")
    if again < _FEWEST or again < _SHARE * sent:
        return
    share = 100 * again / max(sent, 1)
    evidence = [
        Evidence("segments sent again", again, f"of {sent}", _FEWEST),
        Evidence("that is", round(share, 1), "%", 100 * _SHARE),
    ]
    guilty = next((q for q in _disciplines() if q.get("kind") == "netem"), None)
    device = _dropping(look) if guilty is None else str(guilty.get("dev", ""))
    if guilty is not None:
        options = guilty.get("options", {})
        evidence.append(Evidence("netem drops there", guilty.get("drops", 0), "packets so far"))
        evidence.append(Evidence("netem", json.dumps(options, sort_keys=True)))
    yield Finding(
        rule="packet_loss",
        title=f"{share:.0f} % of TCP segments are sent again"
        + (f": netem on {device} loses packets" if guilty is not None else ""),
        severity="warning",
        sure=0.9 if guilty is not None else 0.5 if device else 0.3,
        culprit=Subject("interface", device) if device else Subject("interface", "beyond"),
        victims=(Subject("machine", "TCP connections"),),
        evidence=tuple(evidence),
        remedy="remove-netem" if guilty is not None else "",
        target={"device": device},
        advice=f"tc qdisc del dev {device} root"
        if guilty is not None
        else "`tegu probe drops` shows what is dropped here; else it is on the way",
    )


def _disciplines() -> list[dict[str, Any]]:
    with suppress(TeguError, ValueError):
        found = json.loads(run(["tc", "-s", "-j", "qdisc", "show"], timeout=10).stdout)
        if isinstance(found, list):
            return [q for q in found if isinstance(q, dict)]
    return []


def _dropping(look: Look) -> str:
    """Return an interface that has dropped more than others, if there is one."""
    base = look.root / "sys/class/net"
    drops: dict[str, int] = {}
    with suppress(OSError):
        for entry in base.iterdir():
            drops[entry.name] = sum(
                look.number(f"sys/class/net/{entry.name}/statistics/{n}") or 0
                for n in ("rx_dropped", "tx_dropped", "rx_errors", "tx_errors")
            )
    name = max(drops, key=lambda n: drops[n], default="")
    return name if name and drops[name] > _FEWEST else ""


RULE = Rule(
    "packet_loss",
    "Do TCP connections send much again, and where are the packets lost?",
    ("/proc/net/snmp: RetransSegs", "tc -s qdisc"),
    "RFC 9293, 3.8.1; tc-netem(8)",
    check,
)
