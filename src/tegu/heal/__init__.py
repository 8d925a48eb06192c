"""What is wrong with this machine, who causes it, and repairs that are checked afterwards.

A `Look` reads the machine's counters twice, some seconds apart. A `Rule` (`rules/`, one file each)
makes findings of it; a `Finding` has its evidence, its culprit and its victims apart, and the name
of a remedy. A `Remedy` (`remedies/`) acts within limits, is verified by looking again, and undone
when the finding is still there.
"""

from __future__ import annotations

from tegu.heal.doctor import Diagnosis, diagnose, examine, score
from tegu.heal.finding import Evidence, Finding, Subject
from tegu.heal.look import Look, look
from tegu.heal.rule import Rule
from tegu.heal.rules import RULES, find_rule

__all__ = [
    "RULES",
    "Diagnosis",
    "Evidence",
    "Finding",
    "Look",
    "Rule",
    "Subject",
    "diagnose",
    "examine",
    "find_rule",
    "look",
    "score",
]
