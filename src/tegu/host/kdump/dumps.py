"""The directory of dumps: one directory per crash, and a place kept ready for the next.

`.incoming` holds files whose blocks are there already, so that a log can be written on a full
disk: the capture kernel writes over them and renames the directory to the time of the crash.
"""

from __future__ import annotations

import json
import os
import shutil
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from tegu.errors import TeguError
from tegu.files import write_atomic

__all__ = ["INCOMING", "Dump", "list_dumps", "prepare", "prune", "rescue"]

INCOMING = ".incoming"
_CAPTURE_LOG = 64 << 10
_CORES = ("vmcore", "vmcore.flat")


@dataclass(frozen=True, slots=True)
class Dump:
    """One crash: its directory's name is the time (UTC) when it was saved; sizes in bytes."""

    name: str
    path: Path
    log_size: int
    core_size: int | None

    @property
    def core(self) -> Path | None:
        """The saved memory, if it was saved."""
        return next((self.path / n for n in _CORES if (self.path / n).is_file()), None)


def list_dumps(directory: Path) -> list[Dump]:
    """Return the dumps in `directory`, newest first; none when it does not exist."""
    found = []
    with suppress(FileNotFoundError):
        for path in sorted(directory.iterdir(), reverse=True):
            log = path / "dmesg.txt"
            if path.name.startswith(".") or not log.is_file():
                continue
            core = next((path / n for n in _CORES if (path / n).is_file()), None)
            size = core.stat().st_size if core is not None else None
            found.append(Dump(path.name, path, log.stat().st_size, size))
    return found


def prepare(directory: Path, *, log_bytes: int, about: dict[str, object]) -> None:
    """Keep a place ready in `directory` for the next dump: `log_bytes` for the log.

    `about` is what is known of the machine now. Raises TeguError when there is no space even for
    that; what an earlier capture left unnamed is kept first (see `rescue`).
    """
    rescue(directory)
    incoming = directory / INCOMING
    try:
        incoming.mkdir(mode=0o700, exist_ok=True)
        for path in incoming.glob("vmcore*"):
            path.unlink()
        _reserve(incoming / "dmesg.txt", log_bytes)
        _reserve(incoming / "capture.log", _CAPTURE_LOG)
        write_atomic(incoming / "about.json", json.dumps(about, indent=2, sort_keys=True) + "\n")
    except OSError as e:
        raise TeguError(
            f"cannot keep {log_bytes >> 10} KiB for the log in {directory}: {e.strerror}",
            hint="free some space, or set another target in /etc/tegu/kdump.toml",
        ) from e


def _reserve(path: Path, size: int) -> None:
    """Make a file of zeros whose blocks are written: fallocate(2) alone leaves work for later."""
    with suppress(FileNotFoundError):
        if path.stat().st_size == size:
            return
    with path.open("wb") as f:
        for _ in range(0, size, 1 << 16):
            f.write(bytes(1 << 16))
        f.truncate(size)
        f.flush()
        os.fsync(f.fileno())


def rescue(directory: Path) -> Dump | None:
    """Name a dump that the capture could not name (it ended early); None when there is none."""
    incoming = directory / INCOMING
    log = incoming / "dmesg.txt"
    try:
        with log.open("rb") as f:
            if f.read(1) in (b"", b"\0"):
                return None
        data = log.read_bytes().rstrip(b"\0")
    except FileNotFoundError:
        return None
    when = datetime.fromtimestamp(log.stat().st_mtime, UTC)
    log.write_bytes(data)
    capture = incoming / "capture.log"
    with suppress(FileNotFoundError):
        capture.write_bytes(capture.read_bytes().rstrip(b"\0"))
    for path in incoming.glob("*.partial"):
        path.unlink()
    name = when.strftime("%Y-%m-%dT%H-%M-%SZ")
    while (directory / name).exists():
        name += "-2"
    incoming.rename(directory / name)
    return next(d for d in list_dumps(directory) if d.name == name)


def prune(directory: Path, *, keep: int, max_size: int) -> list[str]:
    """Remove the oldest dumps beyond `keep`, and memory beyond `max_size` bytes in all.

    The newest dump always stays. Returns what was removed, as names below `directory`.
    """
    removed = []
    dumps = list_dumps(directory)
    for dump in dumps[keep:]:
        shutil.rmtree(dump.path)
        removed.append(dump.name)
    total = 0
    for number, dump in enumerate(dumps[:keep]):
        total += dump.log_size + (dump.core_size or 0)
        core = dump.core
        if number > 0 and total > max_size and core is not None:
            core.unlink()
            total -= dump.core_size or 0
            removed.append(f"{dump.name}/{core.name}")
    return removed
