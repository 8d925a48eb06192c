"""The machines of this user that run: one JSON file each, and nothing left of those that are gone.

Kept in $XDG_RUNTIME_DIR/tegu/machines, or ~/.local/state/tegu/machines where there is no such
directory (XDG Base Directory Specification).
"""

from __future__ import annotations

import fcntl
import json
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

from tegu.emulator.child import ProcessId, current_process
from tegu.errors import MachineError, UsageError
from tegu.files import write_atomic
from tegu.lab.directory import remove_directory
from tegu.lab.ssh import Address

__all__ = ["MachineRecord", "Registry", "home_directory", "state_directory"]

_NAME = re.compile(r"[a-z0-9]([a-z0-9.-]{0,38}[a-z0-9])?")


@dataclass(frozen=True, slots=True)
class MachineRecord:
    """What another process must know to reach, watch and end a machine.

    `directory` holds its sockets, console log and (unless persistent) its disk layer. `owner` is
    the process that must clean up; None for a machine in the background. `process` is QEMU itself,
    None while starting. `created` is in seconds since the epoch.
    """

    name: str
    directory: Path
    owner: ProcessId | None
    process: ProcessId | None = None
    image: str = ""
    architecture: str = ""
    accelerator: str = ""
    firmware: str = ""
    memory: int = 0
    cpus: int = 0
    user: str = ""
    identities: tuple[Path, ...] = ()
    ssh_port: int | None = None
    forwards: tuple[str, ...] = ()
    home: Path | None = None
    created: float = 0.0

    @property
    def console_log(self) -> Path:
        """The file with everything the machine has written to its serial console."""
        return (self.home or self.directory) / "console.log"

    @property
    def console_socket(self) -> Path:
        """Where the serial console can be talked to, by one client at a time."""
        return self.directory / "console.sock"

    @property
    def monitor(self) -> Path:
        """QEMU's monitor (QMP)."""
        return self.directory / "qmp.sock"

    @property
    def errors(self) -> Path:
        """What QEMU wrote to stderr."""
        return self.directory / "qemu.err"

    @property
    def known_hosts(self) -> Path:
        """The machine's SSH host keys, taken at the first contact."""
        return (self.home or self.directory) / "known_hosts"

    @property
    def address(self) -> Address:
        """Where SSH reaches it; MachineError for a machine without a network."""
        if self.ssh_port is None:
            raise MachineError(f"{self.name} has no network, so that SSH cannot reach it")
        return Address(
            "127.0.0.1", self.ssh_port, self.user or None, self.identities, self.known_hosts
        )

    def stale(self) -> bool:
        """True when nothing will ever end this machine properly: its processes are gone."""
        if self.owner is not None and not self.owner.alive():
            return True
        return self.process is not None and self.owner is None and not self.process.alive()

    def to_json(self) -> str:
        """Return the record as JSON."""
        return json.dumps(asdict(self), default=str, indent=1)

    @classmethod
    def from_json(cls, text: str) -> MachineRecord:
        """Return the record in `text`; ValueError, TypeError or KeyError when it is none."""
        body: dict[str, Any] = json.loads(text)
        if not isinstance(body, dict):
            raise TypeError("not a JSON object")
        known = {f.name for f in fields(cls)}
        body = {k: v for k, v in body.items() if k in known}
        body["directory"] = Path(body["directory"])
        body["home"] = Path(body["home"]) if body.get("home") else None
        body["identities"] = tuple(Path(p) for p in body.get("identities", ()))
        body["forwards"] = tuple(body.get("forwards", ()))
        for key in ("owner", "process"):
            body[key] = ProcessId(**body[key]) if body.get(key) else None
        return cls(**body)


class Registry:
    """The records of one user, safe with several `tegu` processes at once."""

    def __init__(self, directory: Path | None = None) -> None:
        self.directory = directory or state_directory()

    def claim(self, name: str | None, stem: str, directory: Path) -> MachineRecord:
        """Take `name`, or one made from `stem`, for a machine that this process will start.

        UsageError for a bad name, MachineError when a machine of that name runs.
        """
        if name is not None and not _NAME.fullmatch(name):
            raise UsageError(
                f"not a machine name: {name!r}",
                hint="up to 40 lower-case letters, digits, '.' and '-'",
            )
        with self._locked():
            self._clean()
            taken = {p.stem for p in self._files()}
            if name is not None and name in taken:
                raise MachineError(
                    f"a machine named {name} runs already", hint=f"stop it with: tegu stop {name}"
                )
            record = MachineRecord(name or _free(stem, taken), directory, current_process())
            self._write(record)
        return record

    def save(self, record: MachineRecord) -> None:
        """Write `record` over what is there."""
        with self._locked():
            self._write(record)

    def remove(self, name: str) -> None:
        """Forget the machine."""
        with self._locked():
            self._path(name).unlink(missing_ok=True)

    def get(self, name: str) -> MachineRecord:
        """Return the machine of that name; MachineError, with the names there are, if none runs."""
        records = {r.name: r for r in self.all()}
        if name not in records:
            known = ", ".join(sorted(records)) or "none"
            raise MachineError(f"no machine named {name} runs", hint=f"machines that run: {known}")
        return records[name]

    def all(self) -> list[MachineRecord]:
        """Return all machines that run, oldest first, having cleaned up after those that do not."""
        with self._locked():
            self._clean()
            return sorted(
                (r for r in map(self._read, self._files()) if r is not None),
                key=lambda r: r.created,
            )

    def _clean(self) -> None:
        for path in self._files():
            record = self._read(path)
            if record is None:
                path.unlink(missing_ok=True)
            elif record.stale():
                if record.process is not None:
                    record.process.kill()
                    record.process.wait(5)
                remove_directory(record.directory)
                path.unlink(missing_ok=True)

    def _files(self) -> list[Path]:
        return sorted(self.directory.glob("*.json"))

    def _path(self, name: str) -> Path:
        return self.directory / f"{name}.json"

    def _read(self, path: Path) -> MachineRecord | None:
        try:
            return MachineRecord.from_json(path.read_text())
        except (OSError, ValueError, TypeError, KeyError):
            return None

    def _write(self, record: MachineRecord) -> None:
        write_atomic(self._path(record.name), record.to_json(), mode=0o600)

    @contextmanager
    def _locked(self) -> Iterator[None]:
        try:
            self.directory.mkdir(parents=True, exist_ok=True, mode=0o700)
            fd = os.open(self.directory / ".lock", os.O_CREAT | os.O_RDWR | os.O_CLOEXEC, 0o600)
        except OSError as e:
            raise MachineError(f"cannot use {self.directory}: {e.strerror}") from e
        try:
            fcntl.flock(fd, fcntl.LOCK_EX)
            yield
        finally:
            os.close(fd)


def state_directory() -> Path:
    """Return where the records of this user's machines are."""
    runtime = os.environ.get("XDG_RUNTIME_DIR")
    if runtime and Path(runtime).is_dir():
        return Path(runtime) / "tegu" / "machines"
    return home_directory()


def home_directory(name: str | None = None) -> Path:
    """Return where the persistent machines of this user are kept, or the one called `name`."""
    base = os.environ.get("XDG_STATE_HOME") or str(Path.home() / ".local" / "state")
    directory = Path(base) / "tegu" / "machines"
    return directory if name is None else directory / f"{name}.d"


def _free(stem: str, taken: set[str]) -> str:
    base = re.sub(r"[^a-z0-9]+", "-", stem.lower()).strip("-")[:24].strip("-") or "machine"
    number = 1
    while f"{base}-{number}" in taken:
        number += 1
    return f"{base}-{number}"
