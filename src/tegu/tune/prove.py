"""Proof that a setting helps: a workload under A (the value now) and B (the new one), ABAB.

Runs alternate, in reversed order every other pair, so that a machine that drifts favours nobody. A
setting is kept only when the median gain is above 5 %, above the spread of A against itself, and no
guard metric is more than 2 % worse.
"""

from __future__ import annotations

import json
import math
import platform
import shlex
import statistics
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from typing import Any, Literal

from tegu.errors import TuneError
from tegu.linux.settings import Target
from tegu.process import CommandError, run
from tegu.tune.profile import Setting, refuse_denied

__all__ = ["LEAST_GAIN", "WORST_GUARD", "Better", "Proof", "Sample", "judge", "prove", "workload"]

Better = Literal["lower", "higher"]
LEAST_GAIN = 0.05
WORST_GUARD = 0.02
LEAST_PAIRS = 3


@dataclass(frozen=True)
class Sample:
    """One run: the figure that counts, and figures that must not get worse (lower is better)."""

    metric: float
    guards: Mapping[str, float]


@dataclass(frozen=True)
class Proof:
    """The verdict. `gain` and `noise` are fractions; `guards` how much worse each became."""

    setting: str
    value: str
    former: str
    kept: bool
    why: str
    gain: float
    noise: float
    pairs: int
    guards: Mapping[str, float]
    a: Sequence[float]
    b: Sequence[float]
    workload: str
    kernel: str
    date: str

    def to_json(self) -> dict[str, Any]:
        """Return all figures."""
        return asdict(self)


def workload(argv: Sequence[str], *, timeout: float = 600) -> Callable[[], Sample]:
    """Return a function that runs a command which prints `{"metric": x, "guards": {...}}` last.

    Raises TuneError, when called, for a command that fails or prints something else.
    """

    def measure() -> Sample:
        try:
            done = run(list(argv), timeout=timeout)
        except CommandError as e:
            raise TuneError(f"the workload failed: {e.message}") from e
        lines = done.stdout.strip().splitlines()
        try:
            raw = json.loads(lines[-1])
            guards = {str(k): _finite(v) for k, v in raw.get("guards", {}).items()}
            return Sample(_finite(raw["metric"]), guards)
        except (IndexError, ValueError, KeyError, TypeError, AttributeError) as e:
            raise TuneError(
                f"the workload {argv[0]} does not end with a line"
                ' {"metric": number, "guards": {"name": number}}'
            ) from e

    return measure


def _finite(value: object) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise ValueError("no number")
    if not math.isfinite(value) or value < 0:
        raise ValueError("no figure")
    return float(value)


def prove(
    setting: Setting,
    target: Target,
    measure: Callable[[], Sample],
    *,
    pairs: int = LEAST_PAIRS,
    better: Better = "lower",
    name: str = "",
    say: Callable[[str], None] = lambda _: None,
) -> Proof:
    """Measure `setting` ABAB and judge; the former value is back in the end, whatever happens.

    Raises TuneError for a denied key, a target that is not there or that has the value already, and
    fewer than three pairs.
    """
    refuse_denied(setting.name)
    if pairs < LEAST_PAIRS:
        raise TuneError(f"{pairs} pairs prove nothing: at least {LEAST_PAIRS}")
    former = target.read()
    if former is None:
        raise TuneError(f"this kernel has no {setting.key}")
    if former == target.canonical(setting.value):
        raise TuneError(f"{setting.key} is {former} already: there is nothing to compare")
    a: list[Sample] = []
    b: list[Sample] = []
    with _restored(target, former):
        for pair in range(pairs):
            for which in ("AB", "BA")[pair % 2]:
                value = former if which == "A" else setting.value
                say(f"pair {pair + 1} of {pairs}: {setting.key} = {value}")
                _write(target, value)
                (a if which == "A" else b).append(measure())
    gain, noise, worse, why = judge(a, b, better)
    return Proof(
        setting.name,
        setting.value,
        former,
        not why,
        why or "kept",
        gain,
        noise,
        pairs,
        worse,
        [s.metric for s in a],
        [s.metric for s in b],
        name,
        platform.release(),
        datetime.now(UTC).date().isoformat(),
    )


@contextmanager
def _restored(target: Target, former: str) -> Iterator[None]:
    try:
        yield
    finally:
        _write(target, former)


def _write(target: Target, value: str) -> None:
    try:
        target.write(value)
    except OSError as e:
        raise TuneError(f"cannot set {target} to {value}: {e.strerror or e}") from e


def judge(
    a: Sequence[Sample], b: Sequence[Sample], better: Better
) -> tuple[float, float, dict[str, float], str]:
    """Return gain, noise, how much worse each guard is, and why not ("" when it is kept).

    The gain is the median over pairs; the noise is half the spread of A around its median, as a
    fraction.
    """
    gains = []
    for one, other in zip(a, b, strict=True):
        least = min(one.metric, other.metric)
        if least <= 0:
            raise TuneError("a workload that measures nothing cannot prove anything")
        ratio = one.metric / other.metric if better == "lower" else other.metric / one.metric
        gains.append(1 - 1 / ratio if better == "lower" else ratio - 1)
    gain = statistics.median(gains)
    values = [s.metric for s in a]
    noise = (max(values) - min(values)) / statistics.median(values)
    worse: dict[str, float] = {}
    for name in sorted(set().union(*(s.guards for s in (*a, *b)))):
        before = [s.guards[name] for s in a if name in s.guards]
        after = [s.guards[name] for s in b if name in s.guards]
        if len(before) != len(a) or len(after) != len(b):
            raise TuneError(f"the guard {name} is missing in some runs")
        middle = statistics.median(before)
        worse[name] = (statistics.median(after) - middle) / middle if middle else 0.0
    why = ""
    bad = [n for n, w in worse.items() if w > WORST_GUARD]
    if gain <= LEAST_GAIN:
        why = f"a gain of {gain:.1%} is not above {LEAST_GAIN:.0%}"
    elif gain <= noise:
        why = f"a gain of {gain:.1%} is within the noise of {noise:.1%}"
    elif bad:
        why = f"{bad[0]} became {worse[bad[0]]:.1%} worse"
    return gain, noise, worse, why


def receipt(proof: Proof, command: Sequence[str]) -> str:
    """Return the receipt of a proof as TOML, to stand beside its setting in a profile."""
    kind, _, key = proof.setting.partition(":")
    fields = {
        "workload": proof.workload or command[0],
        "kernel": proof.kernel,
        "gain": round(proof.gain, 4),
        "noise": round(proof.noise, 4),
        "pairs": proof.pairs,
        "date": proof.date,
        "command": shlex.join(command),
    }
    inside = ", ".join(f"{k} = {json.dumps(v)}" for k, v in fields.items())
    return (
        f"[[setting]]\nkind = {json.dumps(kind)}\nkey = {json.dumps(key)}\n"
        f"value = {json.dumps(proof.value)}\nreceipt = {{ {inside} }}\n"
    )
