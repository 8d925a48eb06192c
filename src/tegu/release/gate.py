"""The gate: what a release must show before it may be signed, and overrides with a reason."""

from __future__ import annotations

import fnmatch
import getpass
import json
import time
import tomllib
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from tegu.definition import shipped_directory
from tegu.errors import ReleaseError
from tegu.files import write_atomic
from tegu.release.cve.data import SEVERITIES
from tegu.release.cve.match import weight
from tegu.release.manifest import Manifest

__all__ = ["Check", "Gate", "Rules", "judge", "load_rules", "override", "read_gate"]


@dataclass(frozen=True, slots=True)
class Rules:
    """`gate.toml`: see the comments there."""

    plans: tuple[str, ...]
    worse: Mapping[str, float]
    fixed: str | None
    exploited: bool
    age_days: float | None
    marks: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Check:
    """One thing that was looked at; `override` is who let it pass in spite of it, and why."""

    name: str
    passed: bool
    reason: str
    override: str = ""


@dataclass(frozen=True, slots=True)
class Gate:
    """What the gate found, for one manifest (by its SHA-256)."""

    manifest: str
    at: int
    checks: tuple[Check, ...]

    @property
    def open(self) -> bool:
        """Whether the release may be signed."""
        return all(c.passed or c.override for c in self.checks)


def load_rules(path: Path | None = None) -> Rules:
    """Read the rules at `path` (default: those that this program ships); ReleaseError."""
    where = path or shipped_directory() / "gate.toml"
    try:
        raw: Any = tomllib.loads(where.read_text())
        known = {"plans", "worse", "cve", "review"}
        if unknown := sorted(set(raw) - known):
            raise ReleaseError(f"{where}: {unknown[0]}: there is no such key")
        cve = raw.get("cve", {})
        fixed = cve.get("fixed")
        if fixed is not None and fixed not in SEVERITIES:
            raise ReleaseError(
                f"{where}: cve.fixed: {fixed!r} is none", hint=f"there are: {', '.join(SEVERITIES)}"
            )
        worse = {str(k): float(v) for k, v in raw.get("worse", {}).items()}
        if bad := [k for k, v in worse.items() if v <= 0]:
            raise ReleaseError(f"{where}: worse.{bad[0]}: a factor above zero is needed")
        return Rules(
            plans=tuple(map(str, raw.get("plans", ()))),
            worse=worse,
            fixed=fixed,
            exploited=bool(cve.get("exploited", False)),
            age_days=None if "age_days" not in cve else float(cve["age_days"]),
            marks=tuple(map(str, raw.get("review", {}).get("marks", ()))),
        )
    except OSError as e:
        raise ReleaseError(f"{where}: {e.strerror}") from e
    except (tomllib.TOMLDecodeError, ValueError, TypeError, AttributeError) as e:
        raise ReleaseError(f"{where}: {e}") from e


def judge(
    work: Path,
    manifest: Manifest,
    previous: Manifest | None,
    rules: Rules,
    *,
    now: float | None = None,
) -> Gate:
    """Hold a release against the rules; overrides given for this very manifest stay."""
    moment = time.time() if now is None else now
    digest = _digest(work)
    checks = [
        *(_plan(name, manifest) for name in rules.plans),
        *_figures(manifest, previous, rules.worse),
        *_vulnerabilities(manifest, rules, moment),
        *(_mark(name, manifest) for name in rules.marks),
    ]
    before = read_gate(work)
    if before is not None and before.manifest == digest:
        given = {c.name: c for c in before.checks if c.override}
        # An override is for what was seen then: another reason is another matter.
        checks = [
            replace(c, override=given[c.name].override)
            if not c.passed and c.name in given and given[c.name].reason == c.reason
            else c
            for c in checks
        ]
    gate = Gate(digest, int(moment), tuple(checks))
    _write(gate, work)
    return gate


def override(work: Path, name: str, reason: str) -> Gate:
    """Let a check that failed pass, with a reason that is kept; raises ReleaseError."""
    gate = read_gate(work)
    if gate is None or gate.manifest != _digest(work):
        raise ReleaseError("the gate has not seen this release", hint="tegu release gate")
    if len(reason.split()) < 2:
        raise ReleaseError("an override needs a reason that others understand")
    found = next((c for c in gate.checks if c.name == name), None)
    if found is None or found.passed:
        failed = ", ".join(repr(c.name) for c in gate.checks if not c.passed) or "none"
        raise ReleaseError(f"no check {name!r} failed", hint=f"those that did: {failed}")
    said = f"{getpass.getuser()}, {time.strftime('%Y-%m-%d', time.gmtime())}: {reason}"
    checks = tuple(replace(c, override=said) if c.name == name else c for c in gate.checks)
    gate = replace(gate, checks=checks)
    _write(gate, work)
    return gate


def read_gate(work: Path) -> Gate | None:
    """Return what the gate found last for the release in `work`."""
    path = work / "gate.json"
    try:
        raw: Any = json.loads(path.read_text())
        checks = tuple(Check(**c) for c in raw.pop("checks"))
        return Gate(**raw, checks=checks)
    except FileNotFoundError:
        return None
    except (OSError, ValueError, KeyError, TypeError) as e:
        raise ReleaseError(f"{path} is damaged: {e}", hint="run `tegu release gate` again") from e


def require_open(work: Path) -> Gate:
    """Return the gate if it lets this very release pass; ReleaseError that says why not."""
    gate = read_gate(work)
    if gate is None or gate.manifest != _digest(work):
        raise ReleaseError("the gate has not seen this release", hint="tegu release gate")
    if not gate.open:
        failed = [c for c in gate.checks if not c.passed and not c.override]
        raise ReleaseError(
            f"the gate is closed: {failed[0].name}: {failed[0].reason}"
            + (f" (and {len(failed) - 1} more)" if len(failed) > 1 else ""),
            hint="mend it, or: tegu release gate NUMBER --override CHECK --reason WHY",
        )
    return gate


def _write(gate: Gate, work: Path) -> None:
    write_atomic(work / "gate.json", json.dumps(asdict(gate), indent=1) + "\n")


def _digest(work: Path) -> str:
    import hashlib

    return hashlib.sha256((work / "manifest.json").read_bytes()).hexdigest()


def _plan(name: str, manifest: Manifest) -> Check:
    title = f"plan {name}"
    found = [r for r in manifest.reports if r.plan == name]
    if not found:
        return Check(title, False, "no report of it was given to `prepare`")
    bad = [r for r in found if not r.passed]
    if bad:
        return Check(title, False, f"{bad[0].failed} of {bad[0].steps} steps failed")
    images = {Path(f.path).name for f in manifest.files if f.kind == "image"}
    strange = [r for r in found if r.subject not in images]
    if strange:
        return Check(title, False, f"it ran on {strange[0].subject}, no image of this release")
    return Check(title, True, f"{sum(r.steps for r in found)} steps")


def _figures(
    manifest: Manifest, previous: Manifest | None, worse: Mapping[str, float]
) -> list[Check]:
    found = []
    for pattern, factor in worse.items():
        names = fnmatch.filter(manifest.figures, pattern)
        lost = set(fnmatch.filter(previous.figures, pattern)) - set(names) if previous else set()
        gone = "the release before had it, this has not"
        found += [Check(f"figure {name}", False, gone) for name in sorted(lost)]
        for name in sorted(names):
            value = manifest.figures[name]
            before = previous.figures.get(name) if previous else None
            if before is None:
                found.append(Check(f"figure {name}", True, f"{value:g}, nothing to compare with"))
                continue
            said = (
                f"{value:g}, {before:g} before: {value / before:.3f} of at most {factor:g}"
                if (before)
                else f"{value:g}, 0 before"
            )
            found.append(Check(f"figure {name}", value <= before * factor, said))
    return found


def _vulnerabilities(manifest: Manifest, rules: Rules, now: float) -> list[Check]:
    if rules.fixed is None and not rules.exploited and rules.age_days is None:
        return []
    if manifest.cves is None:
        return [Check("vulnerabilities", False, "no security data was given to `prepare`")]
    checks = []
    if rules.age_days is not None:
        age = (now - manifest.cves["date"]) / 86400
        said = f"{age:.1f} days old, at most {rules.age_days:g}"
        checks.append(Check("security data", age <= rules.age_days, said))
    unmended = []
    for finding in manifest.cves["findings"]:
        if finding["status"] == "not_affected":
            continue
        worst = rules.fixed is not None and weight(finding["severity"]) >= SEVERITIES.index(
            rules.fixed
        )
        if (rules.exploited and finding["exploited"]) or (worst and finding["fixed"]):
            unmended.append(finding)
    said = "none that must be mended"
    if unmended:
        first = ", ".join(f"{f['id']} in {f['source']}" for f in unmended[:3])
        said = f"{len(unmended)} must be mended: {first}"
    checks.append(Check("vulnerabilities", not unmended, said))
    return checks


def _mark(name: str, manifest: Manifest) -> Check:
    given = [m for m in manifest.marks if m.partition(":")[0] == name]
    if given:
        return Check(f"review {name}", True, given[-1].partition(":")[2].strip())
    return Check(f"review {name}", False, "nobody has marked it", "")
