"""Inside the guest: one fault or one twin from start to end; prints what happened as a JSON line.

Usage: drive.py fault NAME RULE CULPRIT HEAL | drive.py twin NAME LOOKS
CULPRIT is a regular expression for the culprit's kind and name; HEAL is yes or no.
"""

import json
import re
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tegu.errors import TeguError
from tegu.heal import RULES, Diagnosis, Finding, diagnose
from tegu.heal.journal import Journal
from tegu.heal.policy import Policy
from tegu.heal.repair import repair

Facts = dict[str, Any]
LAB = Path("/run/lab")
PATIENCE = 75.0  # seconds until a fault counts as not detected
LOOK = 3.0  # seconds


def script(kind: str, name: str, what: str) -> str:
    """Run start or stop of a fault or twin; returns what went wrong."""
    line = f". {LAB}/lib.sh; . {LAB}/{kind}s/{name}.sh; {what}"
    done = subprocess.run(
        ["sh", "-c", line], capture_output=True, text=True, timeout=240, check=False
    )
    return "" if done.returncode == 0 else f"{what}: {done.stderr.strip()[-300:]}"


def doctor(rules: Sequence[str] = RULES) -> Diagnosis:
    """Look as `tegu doctor` does, without starting a program for it."""
    return diagnose(LOOK, rules)


def told(finding: Finding) -> str:
    culprit = finding.culprit
    return f"{culprit.kind} {culprit.name} {culprit.unit}" if culprit is not None else ""


def fault(name: str, rule: str, culprit: str, heal: bool) -> Facts:
    out: Facts = {"fault": name, "detected": False, "culprit": False, "trouble": []}
    wrong = script("fault", name, "start")
    if wrong:
        out["trouble"].append(wrong)
    began = time.monotonic()
    found = None
    while found is None and time.monotonic() - began < PATIENCE:
        diagnosis = doctor()
        out["trouble"] += diagnosis.failures.values()
        mine = [f for f in diagnosis.findings if f.rule == rule]
        out["others"] = [f"{f.rule}: {told(f)}" for f in diagnosis.findings if f.rule != rule]
        right = [f for f in mine if re.search(culprit, told(f))]
        if mine:
            found = (right or mine)[0]
            out["detected"] = True
            out["seconds"] = round(time.monotonic() - began, 1)
            out["told"] = told(found)
            out["title"] = found.title
            out["culprit"] = bool(right)
    if found is not None and heal:
        began = time.monotonic()
        try:
            (done,) = repair(
                [found],
                apply=True,
                policy=Policy(budget=100),
                journal=Journal(),
                again=True,
                seconds=LOOK,
            )
            out["repaired"] = done.outcome == "verified"
            out["repair"] = f"{done.outcome} {done.detail}".strip()
        except TeguError as e:
            out["repaired"], out["repair"] = False, e.message
        out["repair_seconds"] = round(time.monotonic() - began, 1)
    wrong = script("fault", name, "stop")
    if wrong:
        out["trouble"].append(wrong)
    return out


def twin(name: str, looks: int) -> Facts:
    out: Facts = {"twin": name, "findings": [], "trouble": []}
    wrong = script("twin", name, "start")
    if wrong:
        out["trouble"].append(wrong)
    for _ in range(looks):
        diagnosis = doctor()
        out["findings"] += [f"{f.rule}: {f.title}" for f in diagnosis.findings]
        out["trouble"] += diagnosis.failures.values()
    wrong = script("twin", name, "stop")
    if wrong:
        out["trouble"].append(wrong)
    return out


if __name__ == "__main__":
    if sys.argv[1] == "fault":
        name, rule, culprit, heal = sys.argv[2:6]
        result = fault(name, rule, culprit, heal == "yes")
    else:
        result = twin(sys.argv[2], int(sys.argv[3]))
    print(json.dumps(result))
