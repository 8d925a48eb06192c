"""The worker: reads a question (JSON) from standard input, writes the answer to standard output."""

from __future__ import annotations

import difflib
import json
import sys
from typing import Any

import solv

from .prefer import Preferences
from .problem import describe, names_in
from .repos import Repositories

__all__ = ["main"]

_ATTEMPTS = 40


class Question:
    """One set of packages to find; see `tegu.packages.solve` for what the keys mean."""

    def __init__(self, data: dict[str, Any]) -> None:
        self.install: list[str] = data["install"]
        self.base: str = data["base"]
        self.recommends: bool = data["recommends"]
        self.exclude: set[str] = set(data["exclude"])
        self.pin: dict[str, str] = data["pin"]
        self.keep: dict[str, str] = data["keep"]


def main() -> None:
    """Answer all questions; what cannot be solved is part of the answer, not a failure."""
    request = json.load(sys.stdin)
    try:
        repositories = Repositories(request["architecture"], request["repositories"])
    except (OSError, ValueError) as e:
        sys.stdout.write(json.dumps({"error": str(e)}))
        return
    answers = [_answer(repositories, Question(q)) for q in request["questions"]]
    sys.stdout.write(json.dumps({"answers": answers}))  # `dump` would not use the C encoder


def _answer(repositories: Repositories, question: Question) -> dict[str, Any]:
    unknown = [name for name in question.install if not repositories.named(name)]
    if unknown:
        return {"unknown": {name: _like(repositories, name) for name in unknown}}
    fixed = _excluded(repositories, question) | _unpinned(repositories, question)
    for name in [*question.install, *question.pin]:
        if name in question.exclude:
            return {"excluded": name}
    for name, version in question.pin.items():
        solvables = repositories.named(name)
        if solvables and all(s.id in fixed for s in solvables):
            return {"unpinnable": [name, version, sorted({s.evr for s in solvables})]}
    fixed |= _outranked(repositories, fixed)
    names = list(dict.fromkeys([*question.install, *_base(repositories, question)]))
    keep = {n: v for n, v in question.keep.items() if n not in question.pin}
    newest = True
    facts: list[dict[str, Any]] = []
    for _ in range(_ATTEMPTS):
        disabled = fixed | _not_kept(repositories, keep, fixed)
        found, facts = _solve(repositories, question, names, disabled, keep, newest=newest)
        if found is not None:
            return {
                "packages": [_shown(repositories, s) for s in found],
                "unlocked": sorted(set(question.keep) - set(keep) - set(question.pin)),
                "vanished": _vanished(repositories, question, found),
            }
        # First the versions that the lock would keep give way, then "the newest version only".
        involved = names_in(facts) & keep.keys()
        if keep:
            gone = involved or keep.keys()
            keep = {n: v for n, v in keep.items() if n not in gone}
            continue
        if not newest:
            break
        newest = False
    return {"problem": facts}


def _solve(
    repositories: Repositories,
    question: Question,
    names: list[str],
    disabled: set[int],
    keep: dict[str, str],
    *,
    newest: bool,
) -> tuple[list[Any] | None, list[dict[str, Any]]]:
    """Return the packages, or None and what is wrong; some rounds settle the choices."""
    pool = repositories.pool
    found: list[Any] = []
    preferences = Preferences(repositories, disabled, set(keep), recommends=question.recommends)
    preferences.walk(names)
    for _ in range(_ATTEMPTS):
        repositories.restrict(disabled | (preferences.outdated if newest else set()))
        jobs = [
            pool.Job(solv.Job.SOLVER_INSTALL | solv.Job.SOLVER_SOLVABLE_NAME, pool.str2id(name))
            for name in names
        ]
        jobs += [
            pool.Job(solv.Job.SOLVER_FAVOR | solv.Job.SOLVER_SOLVABLE, number)
            for number in preferences.favoured
        ]
        solver = pool.Solver()
        solver.set_flag(solv.Solver.SOLVER_FLAG_IGNORE_RECOMMENDED, not question.recommends)
        problems = solver.solve(jobs)
        if problems:
            return None, describe(repositories, problems[0])
        found = solver.transaction().newsolvables()
        before = len(preferences.outdated)
        for solvable in found:
            preferences.best(solvable.name)
        # A package that the walk did not meet may have come in an older version than there is.
        older = newest and len(preferences.outdated) != before
        # And where the favourite could not be, the next alternative is to be the one.
        if not preferences.reconsider(names, {s.id for s in found}) and not older:
            break
    return found, []


def _base(repositories: Repositories, question: Question) -> list[str]:
    names: set[str] = set()
    if question.base != "none":
        names |= repositories.essential()
    if question.base == "required":
        # apt is of that priority too, but a system from an image does not need it unless asked.
        names |= {n for n, rank in repositories.ranks().items() if rank == 0} - {"apt"}
    return sorted(n for n in names - question.exclude if repositories.named(n))


def _excluded(repositories: Repositories, question: Question) -> set[int]:
    return {s.id for name in question.exclude for s in repositories.named(name)}


def _unpinned(repositories: Repositories, question: Question) -> set[int]:
    return {
        s.id
        for name, version in question.pin.items()
        for s in repositories.named(name)
        if not (s.evr.startswith(version[:-1]) if version.endswith("*") else s.evr == version)
    }


def _not_kept(repositories: Repositories, keep: dict[str, str], fixed: set[int]) -> set[int]:
    found: set[int] = set()
    for name, version in keep.items():
        solvables = [s for s in repositories.named(name) if s.id not in fixed]
        if any(s.evr == version for s in solvables):
            found.update(s.id for s in solvables if s.evr != version)
    return found


def _vanished(repositories: Repositories, question: Question, found: list[Any]) -> list[str]:
    """Return the packages that would have been kept, were their version in an index."""
    return sorted(
        s.name
        for s in found
        if s.name in question.keep
        and s.name not in question.pin
        and all(o.evr != question.keep[s.name] for o in repositories.named(s.name))
    )


def _outranked(repositories: Repositories, fixed: set[int]) -> set[int]:
    """Return what a repository of higher priority has under the same name."""
    usual = max(repositories.all, key=lambda r: r.count, default=None)
    if usual is None or len({r.priority for r in repositories.all}) == 1:
        return set()
    found: set[int] = set()
    for repository in repositories.all:
        if repository.priority == usual.priority:
            continue
        for name in {s.name for s in repository.solv.solvables}:
            same = [s for s in repositories.named(name) if s.id not in fixed]
            highest = max((repositories.of(s.id).priority for s in same), default=0)
            found.update(s.id for s in same if repositories.of(s.id).priority < highest)
    return found


def _like(repositories: Repositories, name: str) -> dict[str, list[str]]:
    """Return what an unknown name may have meant: its providers, and names that look alike."""
    pool = repositories.pool
    repositories.restrict(set())
    providers = sorted({s.name for s in pool.whatprovides(pool.Dep(name))})
    names = {s.name for s in pool.solvables}
    near = difflib.get_close_matches(name, names, n=4, cutoff=0.75)
    near += sorted(n for n in names if n.startswith(f"{name}-"))[:3]
    return {"providers": providers, "near": list(dict.fromkeys(near))}


def _shown(repositories: Repositories, solvable: Any) -> dict[str, str]:
    stanza = repositories.stanza(solvable.id)
    return {**stanza, "repository": repositories.of(solvable.id).id}
