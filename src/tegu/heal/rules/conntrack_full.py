"""The table of tracked connections is full: new connections are dropped."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator

from tegu.heal.finding import Evidence, Finding, Subject
from tegu.heal.look import Look
from tegu.heal.rule import Rule
from tegu.linux.kernel_log import now

_FULL = 0.95


def check(look: Look) -> Iterator[Finding]:
    count = look.number("proc/sys/net/netfilter/nf_conntrack_count")
    most = look.number("proc/sys/net/netfilter/nf_conntrack_max")
    if not count or not most or count < _FULL * most:
        return
    by_end = Counter((f.source, f.target, f.port) for f in look.flows)
    targets = Counter(f"{f.target}:{f.port}" for f in look.flows)
    culprit = Subject("destination", "unknown")
    evidence = [Evidence("connections tracked", count, f"of {most}", _FULL * most)]
    sure = 0.5
    if by_end:
        name, share = targets.most_common(1)[0]
        culprit = Subject("destination", name)
        sure = 0.5 + share / len(look.flows) / 2
        (source, _, _), _ = by_end.most_common(1)[0]
        evidence.append(Evidence("to that destination", share, f"of {len(look.flows)}"))
        evidence.append(Evidence("most come from", source))
    said = [e for e in look.log if e.kind == "conntrack-full" and e.at > now() - 300]
    if said:
        evidence.append(Evidence("drops in the kernel's log", len(said), "in 300 s"))
    yield Finding(
        rule="conntrack_full",
        title=f"the connection table is full ({count} of {most}): new connections are dropped",
        severity="critical",
        sure=round(sure, 2),
        culprit=culprit,
        victims=(Subject("machine", "new connections"),),
        evidence=tuple(evidence),
        remedy="raise-conntrack",
        target={"max": most},
        advice="raise net.netfilter.nf_conntrack_max, or do not track that traffic (notrack)",
    )


RULE = Rule(
    "conntrack_full",
    "Is the table of tracked connections full?",
    ("net.netfilter.nf_conntrack_count", "ctnetlink"),
    "Documentation/networking/nf_conntrack-sysctl.rst",
    check,
)
