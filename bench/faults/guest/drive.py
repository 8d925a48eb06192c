"""Inside the guest: one fault or one twin from start to end; prints what happened as a JSON line.

Usage: drive.py fault NAME RULE CULPRIT HEAL | drive.py twin NAME LOOKS
CULPRIT is a regular expression for the culprit's kind and name; HEAL is yes or no.
"""

import json
import re
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

Facts = dict[str, Any]
LAB = Path("/run/lab")
PATIENCE = 90.0  # seconds until a fault counts as not detected
LOOK = "3"


def script(kind: str, name: str, what: str) -> str:
    """Run start or stop of a fault or twin; returns what went wrong."""
    line = f". {LAB}/lib.sh; . {LAB}/{kind}s/{name}.sh; {what}"
    done = subprocess.run(
        ["sh", "-c", line], capture_output=True, text=True, timeout=240, check=False
    )
    return "" if done.returncode == 0 else f"{what}: {done.stderr.strip()[-300:]}"


def tegu(*words: str) -> Facts:
    done = subprocess.run(["tegu", *words, "--json"], capture_output=True, text=True, timeout=400)
    try:
        found: Facts = json.loads(done.stdout)
        return found
    except ValueError:
        return {"error": (done.stderr or done.stdout)[-500:]}


def told(finding: Facts) -> str:
    culprit = finding.get("culprit") or {}
    return f"{culprit.get('kind', '')} {culprit.get('name', '')} {culprit.get('unit', '')}"


def fault(name: str, rule: str, culprit: str, heal: bool) -> Facts:
    out: Facts = {"fault": name, "detected": False, "culprit": False, "trouble": []}
    wrong = script("fault", name, "start")
    if wrong:
        out["trouble"].append(wrong)
    began = time.monotonic()
    found = None
    while found is None and time.monotonic() - began < PATIENCE:
        diagnosis = tegu("doctor", "--seconds", LOOK)
        if "error" in diagnosis:
            out["trouble"].append(str(diagnosis["error"]))
            continue
        for text in diagnosis["failures"].values():
            out["trouble"].append(text)
        mine = [f for f in diagnosis["findings"] if f["rule"] == rule]
        out["others"] = [
            f"{f['rule']}: {told(f)}" for f in diagnosis["findings"] if f["rule"] != rule
        ]
        right = [f for f in mine if re.search(culprit, told(f))]
        if mine:
            out["detected"] = True
            out.setdefault("seconds", round(time.monotonic() - began, 1))
            out["told"] = told((right or mine)[0])
            out["title"] = (right or mine)[0]["title"]
            out["culprit"] = bool(right)
            found = (right or mine)[0]
    if found is not None and heal:
        began = time.monotonic()
        healed = tegu("heal", "--apply", "--finding", found["key"])
        out["repair_seconds"] = round(time.monotonic() - began, 1)
        done = healed.get("repairs", [])
        out["repaired"] = any(r.get("outcome") == "verified" for r in done)
        out["repair"] = done or healed
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
        diagnosis = tegu("doctor", "--seconds", LOOK)
        if "error" in diagnosis:
            out["trouble"].append(str(diagnosis["error"]))
            continue
        out["findings"] += [f"{f['rule']}: {f['title']}" for f in diagnosis["findings"]]
        out["trouble"] += list(diagnosis["failures"].values())
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
