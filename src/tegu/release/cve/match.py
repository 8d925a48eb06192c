"""Which vulnerabilities packages have: by source package, version, and what VEX says."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal

from tegu.packages.version import compare, sort_key
from tegu.release.cve.data import SEVERITIES, SecurityData, Severity, Vulnerability
from tegu.release.cve.vex import Statement

__all__ = ["Examination", "Finding", "Package", "examine", "weight"]

Status = Literal["open", "fixable", "not_affected"]


@dataclass(frozen=True, slots=True)
class Package:
    """An installed binary package, and the source that it was built from."""

    name: str
    version: str
    source: str
    source_version: str


@dataclass(frozen=True, slots=True)
class Finding:
    """A vulnerability that packages of one source have.

    `fixable`: a version mends it (`fixed`). `open`: none does yet. `not_affected`: VEX says that it
    does not apply, and `reason` why. `running` is None where that was not looked at.
    """

    id: str
    source: str
    version: str
    packages: tuple[str, ...]
    status: Status
    fixed: str | None
    severity: Severity
    exploited: bool
    running: bool | None
    reason: str
    summary: str


@dataclass(frozen=True, slots=True)
class Examination:
    """All findings, the worst first; `date` is of the data (seconds since the epoch)."""

    findings: tuple[Finding, ...]
    packages: int
    sources: int
    date: int
    suite: str

    def of(self, status: Status) -> list[Finding]:
        """Return the findings of one status."""
        return [f for f in self.findings if f.status == status]


def weight(severity: Severity) -> int:
    """Return a rank; what is not judged counts as medium."""
    return SEVERITIES.index("medium" if severity == "unknown" else severity)


def examine(
    packages: Iterable[Package],
    data: SecurityData,
    statements: Sequence[Statement] = (),
    *,
    running: Mapping[str, bool] | None = None,
) -> Examination:
    """Hold `packages` against `data`.

    `running` says of packages whether a process has them open. A vulnerability that several records
    name is one finding: the strictest of what they say holds.
    """
    sources: dict[tuple[str, str], list[Package]] = {}
    count = 0
    for package in packages:
        sources.setdefault((package.source, package.source_version), []).append(package)
        count += 1
    found = []
    for (source, version), built in sources.items():
        names = tuple(sorted({p.name for p in built}))
        worst: dict[str, Vulnerability] = {}
        for one in data.by_source.get(source, ()):
            if _has(version, one):
                worst[one.id] = _stricter(worst.get(one.id), one)
        for one in worst.values():
            said = next((s for s in statements if s.covers(one.id, source, names)), None)
            found.append(
                Finding(
                    id=one.id,
                    source=source,
                    version=version,
                    packages=names,
                    status=_status(one, said),
                    fixed=one.fixed,
                    severity=one.severity,
                    exploited=one.id in data.exploited,
                    running=None if running is None else any(running.get(n) for n in names),
                    reason=said.reason if said is not None and said.applies_not else "",
                    summary=one.summary,
                )
            )
    found.sort(key=lambda f: (f.status == "not_affected", not f.exploited, -weight(f.severity),
                              f.source, f.id))  # fmt: skip
    return Examination(tuple(found), count, len(sources), data.date, data.suite)


def _has(version: str, one: Vulnerability) -> bool:
    if one.exact:
        return version in one.exact
    if one.fixed is not None and compare(version, one.fixed) >= 0:
        return False
    return one.introduced == "0" or compare(version, one.introduced) >= 0


def _stricter(one: Vulnerability | None, other: Vulnerability) -> Vulnerability:
    """Return which of two records of one vulnerability to believe.

    The later fix, for an earlier one leaves something; a fix that is known rather than none; the
    higher severity.
    """
    if one is None:
        return other
    if one.fixed is None or other.fixed is None:
        fixed = one.fixed or other.fixed
    else:
        fixed = max((one.fixed, other.fixed), key=sort_key)
    severity = max(
        (one.severity, other.severity), key=lambda s: (s != "unknown", SEVERITIES.index(s))
    )
    return replace(one, fixed=fixed, severity=severity, summary=one.summary or other.summary)


def _status(one: Vulnerability, said: Statement | None) -> Status:
    if said is not None and said.applies_not:
        return "not_affected"
    return "open" if one.fixed is None else "fixable"
