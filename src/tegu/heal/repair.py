"""Repairs: within limits, journaled, looked at again afterwards, and taken back when in vain."""

from __future__ import annotations

import os
import time
import uuid
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal

from tegu.errors import TeguError
from tegu.heal.doctor import diagnose
from tegu.heal.finding import Finding
from tegu.heal.journal import Entry, Journal
from tegu.heal.policy import Policy
from tegu.heal.remedies import find_remedy
from tegu.heal.remedy import Refused, Remedy

__all__ = ["Outcome", "Repair", "repair", "undo"]

Outcome = Literal["planned", "refused", "verified", "undone", "failed"]
"""planned: nothing was done (dry run); refused: policy, budget or precondition; verified: done, and
the finding is gone; undone: done in vain and taken back; failed: done in vain, cannot be taken
back."""

_STAYS = 2
"""Looks in a row that must not show the finding."""


@dataclass
class Repair:
    """What was, or would be, done about a finding."""

    finding: Finding
    remedy: str
    blast: str = ""
    outcome: Outcome = "planned"
    detail: str = ""
    plan: list[str] = field(default_factory=list)
    seconds: float = 0.0
    id: str = ""

    def to_json(self) -> dict[str, Any]:
        """Return everything, as JSON can say it."""
        return {**self.__dict__, "finding": self.finding.to_json()}


def repair(
    findings: Sequence[Finding],
    *,
    apply: bool,
    policy: Policy,
    journal: Journal,
    again: bool = False,
    seconds: float = 3.0,
    say: Callable[[str], None] = lambda _: None,
) -> list[Repair]:
    """Plan a repair of each finding that has a remedy; with `apply`, do it and verify.

    A finding whose last repair did not help is not repaired again within the policy's window,
    unless `again` says so.
    """
    done = []
    for finding in findings:
        if not finding.remedy:
            continue
        done.append(
            _one(finding, apply=apply, policy=policy, journal=journal, again=again,
                 seconds=seconds, say=say)
        )  # fmt: skip
    return done


def _one(
    finding: Finding,
    *,
    apply: bool,
    policy: Policy,
    journal: Journal,
    again: bool,
    seconds: float,
    say: Callable[[str], None],
) -> Repair:
    remedy = find_remedy(finding.remedy)
    result = Repair(finding, remedy.name, remedy.blast)
    why = policy.refuses(finding) or _used_up(finding, policy, journal, again)
    try:
        state = remedy.prepare(finding)
        result.plan = remedy.plan(finding, state)
    except Refused as e:
        why = why or e.message
    except (OSError, TeguError) as e:
        why = why or _words(e)
    if why:
        return replace(result, outcome="refused", detail=why)
    if not apply:
        return result
    began = time.monotonic()
    result.id = f"{int(time.time()):x}-{uuid.uuid4().hex[:6]}"
    with journal.held():
        entry = Entry(
            result.id, time.time(), finding.to_json(), remedy.name, result.plan, state, "begun"
        )
        try:
            journal.add(entry)
        except OSError as e:
            detail = f"the journal cannot be written ({e.strerror}): nothing is done without it"
            return replace(result, outcome="refused", detail=detail)
        say(f"{remedy.name}: {'; '.join(result.plan)}")
        result.outcome, result.detail = _attempt(remedy, finding, state, seconds, say)
        journal.add(replace(entry, outcome=result.outcome, detail=result.detail, state=state))
    result.seconds = round(time.monotonic() - began, 1)
    return result


def _used_up(finding: Finding, policy: Policy, journal: Journal, again: bool) -> str:
    if len([e for e in journal.recent(3600) if e.outcome != "refused"]) >= policy.budget:
        return f"the budget of {policy.budget} repairs an hour is used up"
    for entry in journal.recent(policy.window):
        if entry.finding.get("key") == finding.key and entry.outcome in ("undone", "failed"):
            if again:
                break
            return "it did not help last time, and is not repeated (--again)"
    return ""


def _attempt(
    remedy: Remedy,
    finding: Finding,
    state: dict[str, Any],
    seconds: float,
    say: Callable[[str], None],
) -> tuple[Outcome, str]:
    try:
        remedy.apply(finding, state)
    except Exception as e:  # noqa: BLE001 - whatever it was, what was begun must be taken back
        return _take_back(remedy, finding, state, _words(e))
    time.sleep(remedy.wait(finding))
    say("verifying")
    for _ in range(_STAYS):
        seen = diagnose(seconds, [finding.rule])
        if seen.failures:
            return _take_back(remedy, finding, state, f"cannot verify: {seen.failures}")
        if any(f.key == finding.key for f in seen.findings):
            return _take_back(remedy, finding, state, "the finding is still there")
    return "verified", ""


def _take_back(
    remedy: Remedy, finding: Finding, state: dict[str, Any], why: str
) -> tuple[Outcome, str]:
    if not remedy.reversible:
        return "failed", f"{why}; it cannot be taken back: a person must look"
    try:
        remedy.undo(finding, state)
    except (OSError, TeguError) as e:
        return "failed", f"{why}; taking it back failed: {_words(e)}"
    return "undone", f"{why}; taken back: a person must look"


def undo(number: str, journal: Journal) -> Entry:
    """Take back a repair of the journal; raises TeguError where that cannot be."""
    entry = next((e for e in journal.entries() if e.id == number), None)
    if entry is None:
        raise TeguError(f"the journal has no repair {number}", hint="see `tegu heal --journal`")
    remedy = find_remedy(entry.remedy)
    if not remedy.reversible:
        raise TeguError(f"{entry.remedy} cannot be taken back")
    if entry.outcome not in ("verified", "begun"):
        raise TeguError(f"{number} is {entry.outcome}: there is nothing to take back")
    about = {k: v for k, v in entry.finding.items() if k in Finding.__dataclass_fields__}
    about["culprit"] = None
    about["victims"] = about["evidence"] = about["stacks"] = ()
    with journal.held():
        remedy.undo(Finding(**about), entry.state)
        changed = replace(entry, outcome="undone", detail="taken back by hand")
        journal.add(changed)
    return changed


def _words(e: Exception) -> str:
    if isinstance(e, TeguError):
        return e.message
    if isinstance(e, OSError):
        return f"{e.filename or ''} {e.strerror or os.strerror(e.errno or 0)}".strip()
    return f"{type(e).__name__}: {e}"
