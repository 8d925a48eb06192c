"""What an upgrade remembers: one state file in each root, and a history that only grows.

The state lies in the root that it speaks of. A snapshot has the state that was true when it was
taken ("upgrading"): when that root boots, it knows that it was gone back to.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

from tegu.errors import UpgradeError
from tegu.files import write_atomic

__all__ = ["DIRECTORY", "Event", "State", "history", "note", "read_state", "write_state"]

DIRECTORY = "var/lib/tegu/upgrade"
_TRIAL = "trial"
Status = Literal["upgrading", "trial", "trying", "done", "failed", "rolled-back"]
_STATUSES = ("upgrading", "trial", "trying", "done", "failed", "rolled-back")


@dataclass(frozen=True, slots=True)
class State:
    """`live` is the root that is upgraded, `kept` the snapshot to go back to (roots.py).

    `failed_before` are units that had failed already, `settings` effective kernel settings before
    the upgrade, `packages` what changed: name to old and new version. With slots these are `a` and
    `b`, and `image` is the root hash of what is tried.
    """

    id: str
    status: Status
    live: str
    kept: str
    release: str
    failed_before: tuple[str, ...] = ()
    settings: dict[str, str] = field(default_factory=dict)
    packages: dict[str, tuple[str, str]] = field(default_factory=dict)
    reason: str = ""
    image: str = ""


@dataclass(frozen=True, slots=True)
class Event:
    """A line of the history; `at` in seconds since the epoch."""

    at: int
    id: str
    what: str
    release: str
    detail: str = ""


def read_state(root: Path = Path("/")) -> State | None:
    """Return the state in `root`, None when there was no upgrade. UpgradeError when damaged."""
    path = root / DIRECTORY / "state.json"
    try:
        raw: Any = json.loads(path.read_text())
        if raw["status"] not in _STATUSES:
            raise ValueError(f"status {raw['status']!r}")
        packages = {str(k): (str(v[0]), str(v[1])) for k, v in raw.pop("packages").items()}
        before = tuple(raw.pop("failed_before"))
        return State(**raw, packages=packages, failed_before=before)
    except FileNotFoundError:
        return None
    except (OSError, ValueError, KeyError, TypeError, IndexError, AttributeError) as e:
        raise UpgradeError(
            f"{path} is damaged: {e}", hint="remove it when no upgrade is under way"
        ) from e


def write_state(state: State, root: Path = Path("/")) -> None:
    """Write the state into `root`, and the file `trial` that the boot units look for."""
    place = root / DIRECTORY
    place.mkdir(mode=0o700, parents=True, exist_ok=True)
    write_atomic(place / "state.json", json.dumps(asdict(state), indent=1, sort_keys=True) + "\n")
    if state.status in ("upgrading", "trial", "trying"):
        write_atomic(place / _TRIAL, f"{state.id}\n")
    else:
        (place / _TRIAL).unlink(missing_ok=True)


def history(root: Path = Path("/")) -> list[Event]:
    """Return what happened, oldest first; lines cut off by a power cut are left out."""
    try:
        lines = (root / DIRECTORY / "history.jsonl").read_text().splitlines()
    except FileNotFoundError:
        return []
    events = []
    for line in lines:
        try:
            events.append(Event(**json.loads(line)))
        except (ValueError, TypeError):
            continue
    return events


def note(event: Event, root: Path = Path("/")) -> None:
    """Add a line to the history."""
    place = root / DIRECTORY
    place.mkdir(mode=0o700, parents=True, exist_ok=True)
    path = place / "history.jsonl"
    before = path.read_text() if path.exists() else ""
    write_atomic(path, before + json.dumps(asdict(event), sort_keys=True) + "\n")
