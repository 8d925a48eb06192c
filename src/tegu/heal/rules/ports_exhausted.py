"""No free port for new connections to one destination: closed ones are still in TIME-WAIT."""

from __future__ import annotations

import ipaddress
import os
from collections import Counter, defaultdict
from collections.abc import Iterator

from tegu.heal.finding import Evidence, Finding, Subject
from tegu.heal.look import Look
from tegu.heal.rule import Rule
from tegu.heal.snapshot import text

_FULL = 0.8


def check(look: Look) -> Iterator[Finding]:
    words = text(look.root / "proc/sys/net/ipv4/ip_local_port_range").split()
    if len(words) != 2 or look.after.net.get("TcpExt.TW") is None:
        return
    low, high = int(words[0]), int(words[1])
    room = high - low + 1
    used: dict[tuple[str, int], set[int]] = defaultdict(set)
    sources: Counter[tuple[str, int]] = Counter()
    for s in look.time_wait:
        if low <= s.local[1] <= high:
            used[s.remote].add(s.local[1])
            sources[s.remote] += 1
    for remote, ports in used.items():
        if len(ports) < _FULL * room or _reused(look, remote[0]):
            continue
        name = f"{remote[0]}:{remote[1]}"
        clients = _clients(look, remote)
        yield Finding(
            rule="ports_exhausted",
            title=f"{len(ports)} of {room} ports for connections to {name} are in TIME-WAIT",
            severity="critical",
            sure=0.9,
            culprit=Subject("destination", name),
            victims=tuple(look.process(p) for p in clients),
            evidence=(
                Evidence("in TIME-WAIT to it", sources[remote], "", _FULL * room),
                Evidence("ports", room, f"({low} to {high})"),
            ),
            remedy="reuse-time-wait",
            target={"address": remote[0], "port": remote[1]},
            advice="keep connections open and use them again; net.ipv4.tcp_tw_reuse=1;"
            " tegu tune set tcp_tw_timeout=20; a wider net.ipv4.ip_local_port_range",
        )


def _reused(look: Look, address: str) -> bool:
    """Whether the kernel gives ports in TIME-WAIT to new connections to that address."""
    reuse = look.number("proc/sys/net/ipv4/tcp_tw_reuse")
    if look.number("proc/sys/net/ipv4/tcp_timestamps") == 0:
        return False
    # 2, the default since 4.19: on the loopback only.
    return reuse == 1 or (reuse == 2 and ipaddress.ip_address(address).is_loopback)


def _clients(look: Look, remote: tuple[str, int]) -> list[int]:
    """Return processes that have a socket to `remote` now."""
    from tegu.linux.sockdiag import LISTEN, TIME_WAIT, tcp_sockets

    try:
        inodes = {
            s.inode
            for s in tcp_sockets(n for n in range(1, 12) if n not in (TIME_WAIT, LISTEN))
            if s.remote == remote and s.inode
        }
    except OSError:
        return []
    found = []
    for pid in look.after.processes if inodes else ():
        try:
            for fd in os.listdir(f"{look.proc}/{pid}/fd"):  # noqa: PTH208
                link = os.readlink(f"{look.proc}/{pid}/fd/{fd}")  # noqa: PTH115
                if link.startswith("socket:[") and int(link[8:-1]) in inodes:
                    found.append(pid)
                    break
        except OSError:
            continue
    return found


RULE = Rule(
    "ports_exhausted",
    "Are the ports for connections to one destination used up by TIME-WAIT?",
    ("sock_diag", "net.ipv4.ip_local_port_range", "net.ipv4.tcp_tw_reuse"),
    "RFC 9293, 3.4.2; Documentation/networking/ip-sysctl.rst, tcp_tw_reuse",
    check,
)
