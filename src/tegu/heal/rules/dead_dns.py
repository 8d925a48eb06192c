"""A name server that does not answer."""

from __future__ import annotations

from collections.abc import Iterator

from tegu.heal.finding import Evidence, Finding, Subject
from tegu.heal.look import Look
from tegu.heal.rule import Rule

_STUB = "127.0.0.53"
_RESOLVED = "systemd-resolved.service"


def check(look: Look) -> Iterator[Finding]:
    servers = look.servers
    alive = [s for s in servers if s.answers and s.address != _STUB]
    for server in servers:
        if server.answers:
            continue
        stub = server.address == _STUB
        process = next(
            (p for p in look.after.processes.values() if p.comm.startswith("systemd-resolve")), None
        )
        stopped = stub and process is not None and process.state in "Tt"
        evidence = [
            Evidence("asked at", server.address),
            Evidence("result", server.why),
            Evidence("others that answer", len(alive)),
        ]
        if stopped:
            evidence.append(Evidence("systemd-resolved is", "stopped by a signal"))
        yield Finding(
            rule="dead_dns",
            title=f"the name server {server.address} ({server.source}) does not answer",
            severity="critical" if stub or not alive else "warning",
            sure=0.95 if stopped else 0.8,
            culprit=Subject("server", server.address, unit=_RESOLVED if stub else ""),
            victims=(Subject("machine", "all that looks up names"),),
            evidence=tuple(evidence),
            remedy="restart-unit" if stub else "",
            target={"unit": _RESOLVED} if stub else {},
            advice="systemctl restart systemd-resolved"
            if stub
            else "another server: resolvectl dns, or the DHCP server's setting",
        )


RULE = Rule(
    "dead_dns",
    "Does a name server not answer?",
    ("/etc/resolv.conf", "a question to each server"),
    "RFC 1035; resolv.conf(5); systemd-resolved.service(8)",
    check,
)
