"""A search for the first bad candidate, on disk: written whole after every trial, and read back."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any, Final

from tegu.errors import UsageError
from tegu.files import write_atomic
from tegu.lab.bisect import Found, Trial

__all__ = ["BisectState", "found_json"]

FORMAT: Final = "tegu-bisect-1"
_LOG: Final = 20_000  # characters of each trial's log that are kept: its end


class BisectState:
    """The file at `path`. `question` is all that decides about the answer: ends, candidates, test.

    Of what is resumed, trials that were not made to the end are forgotten. Raises UsageError when
    there is a file and `resume` is not asked for, when there is none and it is, or when the file
    answers another question.
    """

    def __init__(self, path: Path, question: Mapping[str, Any], *, resume: bool) -> None:
        self.path = path
        self.question = json.loads(json.dumps(question))
        self.trials: dict[str, list[Trial]] = {}
        if not resume:
            if path.exists():
                raise UsageError(
                    f"{path} holds a bisection already",
                    hint="go on with it by --resume, remove it, or name another by --state",
                )
            self._write()
            return
        body = _read(path)
        for key in sorted({*self.question, *body["question"]}):
            if self.question.get(key) != body["question"].get(key):
                raise UsageError(
                    f"{path} is of another bisection: {key} was {body['question'].get(key)!r}",
                    hint="give the same arguments as at first, and --resume",
                )
        # What could not be tried (a machine that did not start in time) may be tried by now.
        self.trials = {
            candidate: kept
            for candidate, trials in body["trials"].items()
            if (kept := [t for t in trials if t.verdict != "skip" or t.exit_code is not None])
        }

    def add(self, candidate: str, trial: Trial) -> None:
        """Keep a trial."""
        kept = Trial(trial.verdict, trial.seconds, trial.why, trial.exit_code, trial.log[-_LOG:])
        self.trials.setdefault(candidate, []).append(kept)
        self._write()

    def _write(self) -> None:
        trials = {c: [asdict(t) for t in ts] for c, ts in self.trials.items()}
        body = {"format": FORMAT, "question": self.question, "trials": trials}
        write_atomic(self.path, json.dumps(body, indent=1) + "\n")


def _read(path: Path) -> dict[str, Any]:
    try:
        body = json.loads(path.read_text())
        if body["format"] != FORMAT:
            raise ValueError(f"its format is {body['format']!r}")
        trials = {c: [Trial(**t) for t in ts] for c, ts in body["trials"].items()}
        if any(t.verdict not in ("good", "bad", "skip") for ts in trials.values() for t in ts):
            raise ValueError("a verdict is none")
        return {"question": dict(body["question"]), "trials": trials}
    except FileNotFoundError as e:
        raise UsageError(f"{path}: there is no bisection to go on with") from e
    except OSError as e:
        raise UsageError(f"cannot read {path}: {e.strerror}") from e
    except (ValueError, KeyError, TypeError, AttributeError) as e:
        raise UsageError(f"{path} is not a bisection of tegu: {e}") from e


def found_json(question: Mapping[str, Any], found: Found) -> dict[str, Any]:
    """Return the outcome as plain data."""
    return {
        "format": FORMAT,
        "question": dict(question),
        "first_bad": found.first_bad,
        "suspects": list(found.suspects),
        "steps": [{**asdict(s), "flaky": s.flaky} for s in found.steps],
    }
