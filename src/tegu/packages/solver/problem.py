"""What libsolv says is wrong, as plain facts for `tegu.packages.explain` to put into words."""

from __future__ import annotations

from typing import Any

import solv

from .repos import Repositories

__all__ = ["describe", "names_in"]

_KINDS = {
    solv.Solver.SOLVER_RULE_PKG_NOTHING_PROVIDES_DEP: "nothing",
    solv.Solver.SOLVER_RULE_PKG_REQUIRES: "requires",
    solv.Solver.SOLVER_RULE_PKG_CONFLICTS: "conflicts",
    solv.Solver.SOLVER_RULE_PKG_SELF_CONFLICT: "self",
    solv.Solver.SOLVER_RULE_PKG_SAME_NAME: "same",
    solv.Solver.SOLVER_RULE_PKG_NOT_INSTALLABLE: "disabled",
    solv.Solver.SOLVER_RULE_PKG_OBSOLETES: "conflicts",
    solv.Solver.SOLVER_RULE_PKG_IMPLICIT_OBSOLETES: "conflicts",
    solv.Solver.SOLVER_RULE_JOB: "job",
    solv.Solver.SOLVER_RULE_JOB_NOTHING_PROVIDES_DEP: "job-nothing",
    solv.Solver.SOLVER_RULE_JOB_UNKNOWN_PACKAGE: "job-nothing",
}


def describe(repositories: Repositories, problem: Any) -> list[dict[str, Any]]:
    """Return the rules that contradict one another.

    Each has `kind`; and where they apply `package` and `other` ([name, version, repository]), `dep`
    (libsolv's text of the relation) and `known`: the versions that there are of what it names.
    """
    facts = []
    for rule in problem.findallproblemrules():
        for info in rule.allinfos():
            kind = _KINDS.get(info.type)
            if kind is None:
                continue
            fact: dict[str, Any] = {"kind": kind}
            if info.solvable is not None:
                fact["package"] = _package(repositories, info.solvable)
            if info.othersolvable is not None:
                fact["other"] = _package(repositories, info.othersolvable)
            if info.dep is not None:
                fact["dep"] = info.dep.str()
                fact["known"] = known(repositories, fact["dep"])
            if kind == "job":
                fact["names"] = sorted({s.name for s in _solvables(rule)})
            facts.append(fact)
    return facts


def known(repositories: Repositories, dep: str) -> dict[str, list[list[str]]]:
    """Return for each package that `dep` names the [version, repository] pairs, newest first."""
    found = {}
    for part in dep.split(" | "):
        name = part.split()[0].partition(":")[0] if part.strip() else ""
        solvables = repositories.named(name)
        ordered: list[Any] = []
        for solvable in solvables:
            place = 0
            while place < len(ordered) and ordered[place].evrcmp(solvable) >= 0:
                place += 1
            ordered.insert(place, solvable)
        found[name] = [[s.evr, repositories.of(s.id).id] for s in ordered]
    return found


def names_in(facts: list[dict[str, Any]]) -> set[str]:
    """Return all package names that a problem is about."""
    names: set[str] = set()
    for fact in facts:
        for key in ("package", "other"):
            if key in fact:
                names.add(fact[key][0])
        names.update(fact.get("known", ()))
        names.update(fact.get("names", ()))
    return names


def _package(repositories: Repositories, solvable: Any) -> list[str]:
    return [solvable.name, solvable.evr, repositories.of(solvable.id).id]


def _solvables(rule: Any) -> list[Any]:
    return [info.solvable for info in rule.allinfos() if info.solvable is not None]
