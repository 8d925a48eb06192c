"""The journal of writes: each is noted, with what was there before, before it happens.

So a process that dies at any moment leaves either a value nobody touched or a line that says how
to restore it. The file lives in /run/tegu, gone with a reboot as the values are. One JSON object a
line; a last line that was cut off (its write never happened) does not count.
"""

from __future__ import annotations

import fcntl
import json
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tegu.errors import SettingError
from tegu.files import write_atomic
from tegu.linux.settings import PropertyTarget, Target, target_from

__all__ = ["ANY", "RUN", "Entry", "Journal", "Restored"]

RUN = Path("/run/tegu")
ANY = "*"
"""As a value that follows from another write: whatever it is, what was before comes back."""


@dataclass(frozen=True)
class Entry:
    """One noted write. `kept` is the drop-in that a unit's property had, if any."""

    target: Target
    before: str
    after: str
    why: str
    kept: str | None = None


@dataclass
class Restored:
    """What undoing did: targets restored, gone meanwhile, and changed by someone else since."""

    restored: list[str] = field(default_factory=list)
    gone: list[str] = field(default_factory=list)
    conflicts: list[str] = field(default_factory=list)
    failed: list[str] = field(default_factory=list)


class Journal:
    """The journal `name` in `folder`; `prepare` each write, undo all of them."""

    def __init__(self, folder: Path = RUN, name: str = "qos") -> None:
        self.path = folder / f"{name}.journal"
        self._lock = folder / f"{name}.lock"

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Keep others out for the length of the block; raises SettingError when one is at work."""
        self._lock.parent.mkdir(parents=True, exist_ok=True)
        fd = os.open(self._lock, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            try:
                fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                raise SettingError(
                    f"another tegu is at work here ({self._lock} is locked)",
                    hint="stop tegu-qos.service first, or wait",
                ) from None
            yield
        finally:
            os.close(fd)

    def entries(self) -> list[Entry]:
        """Return what is noted, oldest first; raises SettingError when it is no journal."""
        try:
            lines = self.path.read_text().split("\n")
        except FileNotFoundError:
            return []
        except (OSError, UnicodeDecodeError) as e:
            raise SettingError(f"cannot read {self.path}: {e}") from e
        found = []
        for number, line in enumerate(lines[:-1], start=1):  # what has no newline was cut off
            try:
                raw: dict[str, Any] = json.loads(line)
                entry = Entry(
                    target_from(raw["target"]),
                    str(raw["before"]),
                    str(raw["after"]),
                    str(raw["why"]),
                    raw.get("kept"),
                )
            except (ValueError, KeyError, TypeError) as e:
                raise SettingError(
                    f"{self.path}:{number} is damaged: {e}",
                    hint="nothing was undone; a reboot restores every setting",
                ) from e
            found.append(entry)
        return found

    def write(self, target: Target, value: str, why: str) -> bool:
        """Note and write `value`; false when it was there already.

        Raises FileNotFoundError when the target is gone, OSError when the kernel refuses.
        """
        before = target.read()
        if before is None:
            raise FileNotFoundError(2, "is gone", str(target))
        value = target.canonical(value)
        if before == value:
            return False
        self.note(target, before, value, why)
        target.write(value)
        return True

    def note(self, target: Target, before: str, after: str, why: str) -> None:
        """Note a write that is about to happen, or that another one brings about."""
        kept = target.kept() if isinstance(target, PropertyTarget) else None
        line = json.dumps(
            {"target": target.to_json(), "before": before, "after": after, "why": why, "kept": kept}
        )
        self.path.parent.mkdir(parents=True, exist_ok=True)
        fd = os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600)
        try:
            # A former line that was cut off must not swallow this one.
            size = os.fstat(fd).st_size
            if size and os.pread(fd, 1, size - 1) != b"\n":
                data = os.pread(fd, size, 0)
                os.ftruncate(fd, data.rfind(b"\n") + 1)
            os.write(fd, line.encode() + b"\n")
        finally:
            os.close(fd)

    def undo(
        self, *, force: bool = False, only: Callable[[Target], bool] | None = None
    ) -> Restored:
        """Restore everything that was written, newest first; forget what is restored.

        A value that is neither ours nor the former one was changed by someone else: it stays, and
        is reported, unless `force`. May be interrupted and called again. `only`: these targets
        alone; the journal keeps the others.
        """
        found = Restored()
        first: dict[Target, Entry] = {}
        ours: dict[Target, set[str]] = {}
        for entry in self.entries():
            first.setdefault(entry.target, entry)
            ours.setdefault(entry.target, set()).update((entry.before, entry.after))
        for target, entry in reversed(first.items()):
            if only is None or only(target):
                self._restore(target, entry, ours[target], found, force=force)
        if only is None and not found.failed:
            self.path.unlink(missing_ok=True)
        elif found.gone:
            self._forget({t for t in first if _never_back(t)})
        return found

    def _forget(self, targets: set[Target]) -> None:
        """Drop the lines of `targets`: groups come and go, and the journal must not only grow."""
        if not targets:
            return
        lines = self.path.read_text().split("\n")[:-1]
        kept = [line for line in lines if target_from(json.loads(line)["target"]) not in targets]
        write_atomic(self.path, "".join(f"{line}\n" for line in kept), mode=0o600)

    def _restore(
        self, target: Target, entry: Entry, ours: set[str], found: Restored, *, force: bool
    ) -> None:
        try:
            now = target.read()
            if now is None:
                found.gone.append(str(target))
                if isinstance(target, PropertyTarget):  # the unit may come back
                    target.restore_kept(entry.kept)
            elif now not in ours and ANY not in ours and not force:
                found.conflicts.append(f"{target} is {now or 'unset'}, which tegu did not write")
            else:
                if now != entry.before:
                    target.write(entry.before)
                    found.restored.append(str(target))
                if isinstance(target, PropertyTarget):
                    target.restore_kept(entry.kept)
        except FileNotFoundError:
            found.gone.append(str(target))
        except OSError as e:
            found.failed.append(f"{target}: {e.strerror or e}")


def _never_back(target: Target) -> bool:
    """Whether `target` went with its group; a file alone may return, as a scheduler's do."""
    if isinstance(target, PropertyTarget):
        return target.read() is None
    return target.form != "content" and not target.path.parent.exists()
