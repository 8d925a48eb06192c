"""What the resident doctor saw last, in a file: for exports, which run in another process."""

from __future__ import annotations

import json
import resource
import time
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tegu.errors import TeguError
from tegu.files import write_atomic
from tegu.heal.doctor import Diagnosis
from tegu.heal.snapshot import Snapshot, text

if TYPE_CHECKING:
    from tegu.heal.repair import Repair

__all__ = ["STATE", "Tally", "read_state", "write_state"]

STATE = Path("/run/tegu/agent.json")
_STALE = 3.0
"""Looks that may be missing before the state counts as one of an agent that is gone."""


class Tally:
    """What is counted from the agent's start on."""

    def __init__(self) -> None:
        self.started = time.time()
        self.looks = 0
        self.failures: Counter[str] = Counter()
        self.repairs: Counter[tuple[str, str]] = Counter()

    def add(self, diagnosis: Diagnosis, repairs: list[Repair]) -> None:
        """Count a look and what was repaired after it."""
        self.looks += 1
        self.failures.update(diagnosis.failures.keys())
        self.repairs.update((r.remedy, r.outcome) for r in repairs)


def write_state(
    path: Path, diagnosis: Diagnosis, after: Snapshot, tally: Tally, every: float
) -> None:
    """Write everything at once; raises OSError. Only its owner may read it: findings name files."""
    used = resource.getrusage(resource.RUSAGE_SELF)
    state = {
        **diagnosis.to_json(),
        "every": every,
        "started": tally.started,
        "looks": tally.looks,
        "rule_failures": dict(tally.failures),
        "repairs": [[*key, count] for key, count in sorted(tally.repairs.items())],
        "pressure": {
            name: {"some": p.some_us / 1e6, "full": p.full_us / 1e6}
            for name, p in after.pressure.items()
        },
        "agent": {"cpu_seconds": used.ru_utime + used.ru_stime, "resident_bytes": resident()},
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomic(path, json.dumps(state, default=str), mode=0o600)


def resident() -> int:
    """Return the bytes of memory that this process has (proc_pid_statm(5))."""
    words = text("/proc/self/statm").split()
    return int(words[1]) * resource.getpagesize() if len(words) > 1 else 0


def read_state(path: Path = STATE) -> dict[str, Any] | None:
    """Return what the agent saw last; None when there is none, or it has not looked for long.

    Raises TeguError when it may not be read, or is no such state.
    """
    try:
        state = json.loads(path.read_bytes())
    except FileNotFoundError:
        return None
    except OSError as e:
        raise TeguError(f"cannot read {path}: {e.strerror}", hint="run it as root") from e
    except (ValueError, RecursionError) as e:
        raise TeguError(f"{path} is damaged", hint="systemctl restart tegu-agent") from e
    try:
        # An agent that repairs something looks later; a minute more is given.
        late = time.time() - float(state["time"]) > _STALE * float(state["every"]) + 60
    except (KeyError, TypeError, ValueError) as e:
        raise TeguError(f"{path} is not the agent's state", hint="name the right file") from e
    return None if late else dict(state)
