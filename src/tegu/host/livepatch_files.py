"""Live patches on the disk: which are installed, which is loaded at boot, which is being tried.

A module `NAME.ko` for one kernel lies with its note `NAME.json` in `usr/lib/tegu/livepatch/RELEASE`
(from a package) or `var/lib/tegu/livepatch/modules/RELEASE` (loaded from a file). Live patches are
cumulative, so that at most one is enabled for a kernel: `var/lib/tegu/livepatch/enabled/RELEASE`
names it. `trying` is there from before one is loaded at boot until the machine has been up a while:
a machine that comes up with the file of another boot has crashed with that live patch.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tegu.errors import UsageError, VerifyError
from tegu.files import atomic_file, write_atomic

__all__ = ["Files", "Installed"]

_PACKAGED = "usr/lib/tegu/livepatch"
_STATE = "var/lib/tegu/livepatch"
_BOOT_ID = "proc/sys/kernel/random/boot_id"


@dataclass(frozen=True, slots=True)
class Installed:
    """A live patch on the disk: for the kernel `release`, replacing `functions` (FILE:NAME)."""

    name: str
    release: str
    path: Path
    version: str
    functions: tuple[str, ...]
    sha256: str


class Files:
    """What a machine has of live patches below `root`."""

    def __init__(self, root: Path = Path("/")) -> None:
        self._root = root
        self._state = root / _STATE

    def installed(self) -> list[Installed]:
        """Return all live patches for all kernels, by release and name."""
        found: dict[tuple[str, str], Installed] = {}
        for base in (self._root / _STATE / "modules", self._root / _PACKAGED):
            for path in sorted(base.glob("*/*.ko")):
                release, name = path.parent.name, path.stem
                note = _note(path.with_suffix(".json"))
                found[release, name] = Installed(
                    name,
                    release,
                    path,
                    str(note.get("version", "")),
                    tuple(str(f) for f in note.get("functions", ())),
                    str(note.get("sha256", "")),
                )
        return [found[key] for key in sorted(found)]

    def find(self, name: str, release: str) -> Installed:
        """Return the live patch `name` for the kernel `release`, its file unchanged.

        Raises UsageError when there is none, VerifyError when the file is not what was installed.
        """
        there = [i for i in self.installed() if i.name == name]
        for candidate in there:
            if candidate.release == release:
                if candidate.sha256 and _sha256(candidate.path) != candidate.sha256:
                    raise VerifyError(
                        f"{candidate.path} is not the module that was installed",
                        hint="install its package again",
                    )
                return candidate
        if there:
            others = ", ".join(i.release for i in there)
            raise VerifyError(
                f"the live patch {name} is for {others}; this is {release}",
                hint="a live patch fits one kernel: build it for this one, or boot the other",
            )
        raise UsageError(
            f"no live patch {name} is installed", hint="see `tegu kernel livepatch list`"
        )

    def keep(self, path: Path, name: str, release: str) -> None:
        """Keep a copy of the module at `path`, so that it can be loaded at the next boot."""
        target = self._state / "modules" / release / f"{name}.ko"
        with path.open("rb") as source, atomic_file(target) as f:
            shutil.copyfileobj(source, f)
        note = path.with_suffix(".json")
        text = note.read_text() if note.is_file() else "{}"
        write_atomic(target.with_suffix(".json"), text)

    # What is loaded at boot

    def enabled(self, release: str) -> str | None:
        """Return the name of the live patch that a boot of `release` loads."""
        with suppress(FileNotFoundError):
            return (self._state / "enabled" / release).read_text().strip() or None
        return None

    def enable(self, name: str, release: str) -> None:
        """Have `name` loaded whenever `release` boots, and no other.

        Whoever asks for it after a crash wants it tried again.
        """
        write_atomic(self._state / "enabled" / release, f"{name}\n")
        if self.blocked() is not None:
            self.settle()

    def disable(self, name: str, release: str) -> bool:
        """Have `name` not loaded any more; False when it was not enabled.

        The copy of a module that was loaded from a file goes, too.
        """
        copy = self._state / "modules" / release / f"{name}.ko"
        for path in (copy, copy.with_suffix(".json")):
            path.unlink(missing_ok=True)
        if self.enabled(release) != name:
            return False
        (self._state / "enabled" / release).unlink(missing_ok=True)
        return True

    # A live patch that crashes the machine must not do so twice

    def try_at_boot(self, name: str) -> bool:
        """Note that `name` is loaded in this boot; False when an earlier boot with it crashed."""
        if self.blocked() is not None:
            return False
        write_atomic(self._state / "trying", json.dumps({"name": name, "boot": self._boot()}))
        return True

    def blocked(self) -> str | None:
        """Return the live patch that was loaded in an earlier boot which did not last."""
        noted = _note(self._state / "trying")
        if noted and noted.get("boot") != self._boot():
            return str(noted.get("name", ""))
        return None

    def settle(self) -> None:
        """Note that the machine is well."""
        (self._state / "trying").unlink(missing_ok=True)

    def settle_boot(self) -> None:
        """Note that this boot is well; what an earlier one left is not forgotten."""
        if self.blocked() is None:
            self.settle()

    def _boot(self) -> str:
        with suppress(OSError):
            return (self._root / _BOOT_ID).read_text().strip()
        return str(os.getpid())


def _note(path: Path) -> dict[str, Any]:
    """Return the object in a JSON file; an empty one for none, or one that is damaged."""
    try:
        value = json.loads(path.read_text())
    except (OSError, ValueError):
        return {}
    return value if isinstance(value, dict) else {}


def _sha256(path: Path) -> str:
    with path.open("rb") as f:
        return hashlib.file_digest(f, "sha256").hexdigest()
