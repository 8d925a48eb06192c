"""Security data from files: Debian's tracker, OSV records, the catalogue of exploited ones.

Formats: https://security-tracker.debian.org/tracker/data/json (one object: source package, CVE,
releases), https://ossf.github.io/osv-schema/ (one record a file, a list, or a .zip of them), and
the "known exploited vulnerabilities" JSON of CISA (`vulnerabilities`, `cveID`).
"""

from __future__ import annotations

import json
import math
import re
import time
import zipfile
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from tegu.errors import VerifyError

__all__ = ["SEVERITIES", "SecurityData", "Severity", "Vulnerability", "read_security_data"]

Severity = Literal["unknown", "unimportant", "low", "medium", "high", "critical"]
SEVERITIES: tuple[Severity, ...] = (
    "unknown", "unimportant", "low", "medium", "high", "critical",
)  # fmt: skip
"""From what is not judged to what is worst; `unknown` counts as medium where it must be decided."""

# The tracker's urgencies; "end-of-life" says that nobody looks any more, not that it is harmless.
_URGENCY: dict[str, Severity] = {
    "unimportant": "unimportant",
    "low": "low",
    "low*": "low",
    "low**": "low",
    "medium": "medium",
    "medium*": "medium",
    "medium**": "medium",
    "high": "high",
    "high*": "high",
    "high**": "high",
}
_MAX = 2 << 30
_RELEASES = {"bookworm": "12", "trixie": "13", "forky": "14", "duke": "15"}
_ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{1,63}")


@dataclass(frozen=True, slots=True)
class Vulnerability:
    """One vulnerability of one source package in one release.

    `fixed` is the version that mends it; None: none does yet. "0": it never was affected.
    `introduced` is the first version that has it ("0": all before `fixed`).
    """

    id: str
    source: str
    fixed: str | None
    introduced: str = "0"
    severity: Severity = "unknown"
    summary: str = ""
    origin: str = ""
    exact: tuple[str, ...] = ()
    """Versions that are affected one by one, where no range is given."""


@dataclass
class SecurityData:
    """All that the files say. `date` (seconds since the epoch) is of the oldest of them."""

    suite: str
    by_source: dict[str, list[Vulnerability]] = field(default_factory=dict)
    exploited: set[str] = field(default_factory=set)
    dates: dict[str, int] = field(default_factory=dict)

    def add(self, found: Iterable[Vulnerability]) -> None:
        """Take vulnerabilities in."""
        for one in found:
            self.by_source.setdefault(one.source, []).append(one)

    @property
    def date(self) -> int:
        """When the oldest of the files was made, seconds since the epoch."""
        return min(self.dates.values()) if self.dates else 0

    def age_days(self, now: float | None = None) -> float:
        """Return how old the data is."""
        return ((time.time() if now is None else now) - self.date) / 86400


def read_security_data(paths: Sequence[Path], suite: str) -> SecurityData:
    """Read the files (or directories of OSV records) for the release `suite` ("trixie").

    What a file is, is seen by its content. Raises VerifyError for one that is none of them.
    """
    data = SecurityData(suite)
    for path in paths:
        _read(path, data)
    if not data.by_source:
        raise VerifyError(
            f"the security data has nothing of {suite}",
            hint="give the tracker's JSON, or OSV records of this distribution",
        )
    return data


def _read(path: Path, data: SecurityData) -> None:
    try:
        data.dates[str(path)] = int(path.stat().st_mtime)
        if path.is_dir():
            for file in sorted(path.rglob("*.json")):
                data.add(_osv(_parsed(file.read_bytes(), file), data.suite, str(file)))
            return
        if path.stat().st_size > _MAX:
            raise VerifyError(f"{path}: larger than {_MAX >> 30} GiB")
        if zipfile.is_zipfile(path):
            _zip(path, data)
            return
        raw = _parsed(path.read_bytes(), path)
    except OSError as e:
        raise VerifyError(f"{path}: {e.strerror}") from e
    if isinstance(raw, dict) and isinstance(raw.get("vulnerabilities"), list):
        names = [v.get("cveID") for v in raw["vulnerabilities"] if isinstance(v, dict)]
        data.exploited |= {n for n in names if isinstance(n, str)}
        return
    if isinstance(raw, list) or (isinstance(raw, dict) and "affected" in raw):
        for record in raw if isinstance(raw, list) else [raw]:
            data.add(_osv(record, data.suite, str(path)))
        return
    if isinstance(raw, dict) and all(isinstance(v, dict) for v in raw.values()):
        data.add(_tracker(raw, data.suite, path))
        return
    raise VerifyError(f"{path}: neither a security tracker's JSON, nor OSV, nor a list of exploits")


def _zip(path: Path, data: SecurityData) -> None:
    total = 0
    with zipfile.ZipFile(path) as archive:
        for info in archive.infolist():
            if not info.filename.endswith(".json"):
                continue
            total += info.file_size
            if total > _MAX:
                raise VerifyError(f"{path}: unpacks to more than {_MAX >> 30} GiB")
            record = _parsed(archive.read(info), path)
            data.add(_osv(record, data.suite, f"{path}:{info.filename}"))


def _parsed(content: bytes, path: Path) -> Any:
    try:
        return json.loads(content)
    except (ValueError, RecursionError) as e:
        raise VerifyError(f"{path}: not JSON: {e}") from e


def _tracker(raw: dict[str, Any], suite: str, path: Path) -> Iterator[Vulnerability]:
    """Yield what the tracker knows of `suite`.

    A release's entry has `status` ("open", "resolved", "undetermined"), `fixed_version` when it is
    resolved ("0": not affected) and `urgency`.
    """
    for source, entries in raw.items():
        for name, entry in entries.items():
            if not isinstance(entry, dict) or not _ID.fullmatch(name):
                raise VerifyError(f"{path}: {source}: {name!r} is no entry of a tracker")
            releases = entry.get("releases")
            here = releases.get(suite) if isinstance(releases, dict) else None
            if not isinstance(here, dict):
                continue
            fixed = here.get("fixed_version")
            if here.get("status") == "resolved" and not isinstance(fixed, str):
                raise VerifyError(f"{path}: {source}: {name}: resolved in no version")
            yield Vulnerability(
                name,
                source,
                fixed if here.get("status") == "resolved" else None,
                severity=_URGENCY.get(str(here.get("urgency", "")), "unknown"),
                summary=str(entry.get("description", ""))[:400],
                origin=path.name,
            )


def _osv(record: Any, suite: str, origin: str) -> Iterator[Vulnerability]:
    """Yield what an OSV record says of Debian's release `suite`."""
    if not isinstance(record, dict) or not isinstance(record.get("affected"), list):
        raise VerifyError(f"{origin}: no OSV record: it has no list `affected`")
    if record.get("withdrawn"):
        return
    own = str(record.get("id", ""))
    others = [a for a in (record.get("aliases") or []) if isinstance(a, str)]
    others += [a for a in (record.get("upstream") or []) if isinstance(a, str)]
    names = [a for a in others if a.startswith("CVE-")] or [own]
    wanted = f"Debian:{_RELEASES.get(suite, suite)}"
    for affected in record["affected"]:
        package = affected.get("package") if isinstance(affected, dict) else None
        if not isinstance(package, dict) or package.get("ecosystem") not in (wanted, "Debian"):
            continue
        if not isinstance(package.get("name"), str):
            raise VerifyError(f"{origin}: an affected package has no name")
        for name in dict.fromkeys(names):
            for introduced, fixed, exact in _spans(affected, origin):
                yield Vulnerability(
                    name,
                    package["name"],
                    fixed,
                    introduced,
                    _osv_severity(record, affected),
                    str(record.get("summary") or record.get("details") or "")[:400],
                    own,
                    exact,
                )


def _spans(
    affected: dict[str, Any], origin: str
) -> Iterator[tuple[str, str | None, tuple[str, ...]]]:
    ranges = [r for r in affected.get("ranges") or [] if r.get("type") == "ECOSYSTEM"]
    if not ranges:
        versions = affected.get("versions") or []
        if versions:
            yield "0", None, tuple(str(v) for v in versions)
        return
    for span in ranges:
        begun: str | None = None
        for event in span.get("events") or []:
            if not isinstance(event, dict):
                raise VerifyError(f"{origin}: an event of a range is no object")
            if "introduced" in event:
                begun = str(event["introduced"])
            elif "fixed" in event and begun is not None:
                yield begun, str(event["fixed"]), ()
                begun = None
        if begun is not None:
            yield begun, None, ()


def _osv_severity(record: dict[str, Any], affected: dict[str, Any]) -> Severity:
    for place in (affected, record):
        for key in ("ecosystem_specific", "database_specific"):
            table = place.get(key)
            word = (
                str(table.get("urgency") or table.get("severity") or "").lower()
                if isinstance(table, dict)
                else ""
            )
            if word in _URGENCY:
                return _URGENCY[word]
            if word == "critical":
                return "critical"
    for entry in record.get("severity") or []:
        if isinstance(entry, dict) and str(entry.get("type")) == "CVSS_V3":
            return of_score(cvss3(str(entry.get("score", ""))))
    return "unknown"


def of_score(score: float | None) -> Severity:
    """Return the severity of a CVSS base score (CVSS 3.1, section 5)."""
    if score is None:
        return "unknown"
    if score < 0.1:
        return "unimportant"
    return "low" if score < 4 else "medium" if score < 7 else "high" if score < 9 else "critical"


_CVSS: dict[str, dict[str, float]] = {
    "AV": {"N": 0.85, "A": 0.62, "L": 0.55, "P": 0.2},
    "AC": {"L": 0.77, "H": 0.44},
    "UI": {"N": 0.85, "R": 0.62},
    "C": {"H": 0.56, "L": 0.22, "N": 0},
    "I": {"H": 0.56, "L": 0.22, "N": 0},
    "A": {"H": 0.56, "L": 0.22, "N": 0},
}
_PRIVILEGES = {"U": {"N": 0.85, "L": 0.62, "H": 0.27}, "C": {"N": 0.85, "L": 0.68, "H": 0.5}}


def cvss3(vector: str) -> float | None:
    """Return the base score of a CVSS 3.x vector (its specification, section 7.1); None if none."""
    words = dict(w.split(":", 1) for w in vector.split("/") if ":" in w)
    try:
        value = {k: table[words[k]] for k, table in _CVSS.items()}
        scope = words["S"]
        privileges = _PRIVILEGES[scope][words["PR"]]
    except KeyError:
        return None
    impact = 1 - (1 - value["C"]) * (1 - value["I"]) * (1 - value["A"])
    if scope == "C":
        impact = 7.52 * (impact - 0.029) - 3.25 * (impact - 0.02) ** 15
    else:
        impact = 6.42 * impact
    if impact <= 0:
        return 0.0
    exploit = 8.22 * value["AV"] * value["AC"] * privileges * value["UI"]
    total = min((1.08 if scope == "C" else 1.0) * (impact + exploit), 10)
    scaled = round(total * 100_000)  # the specification's own way around binary fractions
    return scaled / 100_000 if scaled % 10_000 == 0 else (math.floor(scaled / 10_000) + 1) / 10
