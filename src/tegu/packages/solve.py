"""Which packages: the question to the solver, its answer, and an explanation when there is none.

The solver is libsolv through Debian's own Python binding (package python3-solv), run by the
system's Python as a process, so that Tegu itself may run under any Python. Without it apt's solver
does the same work more slowly (`tegu.packages.aptsolver`).
"""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from tegu.errors import SolveError
from tegu.packages.explain import explain
from tegu.process import CommandError, run

__all__ = ["Answer", "Question", "SolverRepository", "solve"]

log = logging.getLogger(__name__)

_PYTHON = "/usr/bin/python3"
_START = """import sys
sys.path.insert(0, {path!r})
try:
    import solv
except ImportError:
    sys.exit(77)
from solver.worker import main
main()
"""
_NO_BINDING = 77


@dataclass(frozen=True, slots=True)
class SolverRepository:
    """A Packages file as the solver sees it; a higher `priority` hides lower ones by name.

    Only `base` repositories say what is essential. Names of files beside `packages` are made from
    it (its suffix replaced), for the solver's own form of it.
    """

    id: str
    packages: Path
    priority: int
    base: bool


@dataclass(frozen=True, slots=True)
class Question:
    """What is wanted.

    `base` adds the packages marked essential, or those and all of priority required (but apt).
    `pin` has exact versions, or prefixes that end in `*`. `keep` has the versions to stay with
    where nothing speaks against them.
    """

    title: str
    install: Sequence[str]
    base: Literal["required", "essential", "none"] = "required"
    recommends: bool = False
    exclude: Sequence[str] = ()
    pin: Mapping[str, str] = field(default_factory=dict)
    keep: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Answer:
    """The packages, as fields of their stanzas plus `repository`.

    `unlocked` could not be kept at their version because something else needs another one;
    `vanished` could not because their version is in no index any more.
    """

    packages: list[dict[str, str]]
    unlocked: list[str]
    vanished: list[str]


def solve(
    questions: Sequence[Question], repositories: Sequence[SolverRepository], architecture: str
) -> list[Answer]:
    """Answer each question from the same indexes.

    Raises SolveError with an explanation when a question has no answer, UnsupportedError when the
    machine has no solver.
    """
    request = {
        "architecture": architecture,
        "repositories": [
            {"id": r.id, "packages": str(r.packages), "priority": r.priority, "base": r.base}
            for r in repositories
        ],
        "questions": [_plain(q) for q in questions],
    }
    raw = _ask(request)
    if raw is None:
        from tegu.packages.aptsolver import solve_with_apt

        return solve_with_apt(questions, repositories, architecture)
    answers = []
    for question, answer in zip(questions, raw, strict=True):
        if "packages" not in answer:
            raise explain(question.title, question.install, question.exclude, answer)
        answers.append(Answer(answer["packages"], answer["unlocked"], answer["vanished"]))
    return answers


def _plain(question: Question) -> dict[str, Any]:
    return {
        "install": list(question.install),
        "base": question.base,
        "recommends": question.recommends,
        "exclude": list(question.exclude),
        "pin": dict(question.pin),
        "keep": dict(question.keep),
    }


def _ask(request: dict[str, Any]) -> list[dict[str, Any]] | None:
    """Return the worker's answers, None when the system's Python has no libsolv binding."""
    start = _START.format(path=str(Path(__file__).parent))
    if not Path(_PYTHON).exists():
        return None
    try:
        done = run([_PYTHON, "-I", "-c", start], stdin=json.dumps(request), timeout=300)
    except CommandError as e:
        if e.completed is not None and e.completed.returncode == _NO_BINDING:
            log.info("no python3-solv on this machine: falling back to apt's solver")
            return None
        raise SolveError(f"the solver failed: {e.message}") from e
    answer = json.loads(done.stdout)
    if "error" in answer:
        raise SolveError(f"the solver cannot read an index: {answer['error']}")
    answers: list[dict[str, Any]] = answer["answers"]
    return answers
