"""Which of many candidates is the first bad one? The search alone: what a candidate is, and how it
is tried, is the caller's.

Both ends are tried before anything else. A candidate that cannot be tried is skipped, and another
near the middle taken; what flickers is tried several times. All that was found out is kept by the
caller after every single trial (`on_trial`), so that a search that was interrupted goes on where it
was: the same trials lead to the same next candidate.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, Protocol

from tegu.errors import UsageError

__all__ = ["Found", "Line", "Rule", "Space", "Step", "Trial", "Verdict", "find_first_bad", "judge"]

Verdict = Literal["good", "bad", "skip"]
Rule = Literal["any-bad", "majority"]


@dataclass(frozen=True, slots=True)
class Trial:
    """One try of one candidate. `seconds` of wall time; `log` is what it said, and `why` in a line.

    `exit_code` is the test's, None when it was not reached.
    """

    verdict: Verdict
    seconds: float
    why: str = ""
    exit_code: int | None = None
    log: str = ""


@dataclass(frozen=True, slots=True)
class Step:
    """A candidate that was tried: its trials, and what they come to.

    `role` says why: one of the two ends, or the search. `suspects` is how many candidates could
    still have been the first bad one before it.
    """

    candidate: str
    role: Literal["good end", "bad end", "search"]
    verdict: Verdict
    trials: tuple[Trial, ...]
    suspects: int

    @property
    def flaky(self) -> bool:
        """True when good and bad came of the same candidate."""
        return {"good", "bad"} <= {t.verdict for t in self.trials}


@dataclass(frozen=True, slots=True)
class Found:
    """The end of a search: the first bad candidate, or several when skipped ones hide it."""

    steps: tuple[Step, ...]
    suspects: tuple[str, ...]

    @property
    def first_bad(self) -> str | None:
        """The first bad candidate; None when it is one of several."""
        return self.suspects[0] if len(self.suspects) == 1 else None


class Space(Protocol):
    """Candidates and how they follow one another."""

    def suspects(self, good: Sequence[str], bad: str) -> list[str]:
        """Return those that may be the first bad one: `bad`, and what lies between."""
        ...

    def middle(self, good: Sequence[str], bad: str, out: Iterable[str]) -> str | None:
        """Return what tells most, none of `out` nor `bad`; None when there is nothing left."""
        ...


class Line:
    """Candidates in one line, oldest first."""

    def __init__(self, candidates: Sequence[str]) -> None:
        self._candidates = list(candidates)
        self._place = {c: n for n, c in enumerate(candidates)}
        if len(self._place) != len(self._candidates):
            raise UsageError("a candidate is named twice")

    def suspects(self, good: Sequence[str], bad: str) -> list[str]:
        """Return what comes after the last good one, up to `bad`."""
        first = max(self._place[g] for g in good) + 1
        return self._candidates[first : self._place[bad] + 1]

    def middle(self, good: Sequence[str], bad: str, out: Iterable[str]) -> str | None:
        """Return the nearest to the middle."""
        left = self.suspects(good, bad)
        away = set(out) | {bad}
        # A good one at index n leaves len - n - 1 suspects, a bad one n + 1.
        order = sorted(range(len(left)), key=lambda n: (max(len(left) - n - 1, n + 1), n))
        return next((left[n] for n in order if left[n] not in away), None)


def judge(trials: Sequence[Trial], repeat: int, rule: Rule) -> Verdict | None:
    """Return what `trials` come to when up to `repeat` are made; None: not decided yet.

    A trial that skips decides at once: nothing else will come of another.
    """
    verdicts = [t.verdict for t in trials]
    bad, good = verdicts.count("bad"), verdicts.count("good")
    if "skip" in verdicts:
        return "bad" if bad and rule == "any-bad" else "skip"
    if rule == "any-bad":
        return "bad" if bad else ("good" if good >= repeat else None)
    if bad * 2 > repeat:
        return "bad"
    if good * 2 > repeat:
        return "good"
    # As many of one as of the other: it does fail.
    return "bad" if len(verdicts) >= repeat else None


def find_first_bad(
    space: Space,
    good: str,
    bad: str,
    attempt: Callable[[str], Trial],
    *,
    repeat: int = 1,
    rule: Rule = "any-bad",
    known: Mapping[str, Sequence[Trial]] | None = None,
    on_trial: Callable[[str, Trial], None] = lambda _candidate, _trial: None,
    on_step: Callable[[Step], None] = lambda _step: None,
) -> Found:
    """Find the first bad candidate between `good` and `bad`.

    `attempt` tries one candidate once; `repeat` trials of each are made at most, and `rule` says
    what comes of several. `known` are the trials of an earlier, interrupted search. Raises
    UsageError when an end is not what it is said to be: then no answer would mean anything.
    """
    if repeat < 1:
        raise UsageError("a test must be run at least once")
    if good == bad:
        raise UsageError(f"{good} cannot be good and bad")
    before = {c: list(trials) for c, trials in (known or {}).items()}
    steps: list[Step] = []

    def tried(candidate: str, role: Literal["good end", "bad end", "search"], left: int) -> Verdict:
        trials = before.get(candidate, [])
        while (verdict := judge(trials, repeat, rule)) is None:
            trial = attempt(candidate)
            trials.append(trial)
            on_trial(candidate, trial)
        step = Step(candidate, role, verdict, tuple(trials), left)
        steps.append(step)
        on_step(step)
        return verdict

    count = len(space.suspects([good], bad))
    for candidate, role, wanted in ((good, "good end", "good"), (bad, "bad end", "bad")):
        verdict = tried(candidate, "good end" if role == "good end" else "bad end", count)
        if verdict != wanted:
            trial = steps[-1].trials[-1]
            runs = f" in {len(steps[-1].trials)} runs" if repeat > 1 else ""
            hint = (
                "if it fails only now and then, raise --repeat"
                if verdict == "good"
                else "the ends must be right, or the answer means nothing"
            )
            raise UsageError(
                f"the {role} {candidate} is {_WORDS[verdict]}{runs}: {trial.why}", hint=hint
            )
    goods, skipped = [good], set[str]()
    while True:
        left = space.suspects(goods, bad)
        candidate_or_none = space.middle(goods, bad, skipped)
        if candidate_or_none is None:
            return Found(tuple(steps), tuple(left))
        verdict = tried(candidate_or_none, "search", len(left))
        if verdict == "bad":
            bad = candidate_or_none
        elif verdict == "good":
            goods.append(candidate_or_none)
        else:
            skipped.add(candidate_or_none)


_WORDS: dict[Verdict, str] = {"good": "good", "bad": "bad", "skip": "not to be tried"}
