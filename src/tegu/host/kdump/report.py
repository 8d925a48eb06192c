"""What a dump tells: its log read, the crash found in it, known causes, a debugger's view."""

from __future__ import annotations

import json
import shutil
import tempfile
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from tegu.errors import TeguError, UnsupportedError, UsageError
from tegu.host.kdump.debugger import debugger_view
from tegu.host.kdump.dumps import list_dumps
from tegu.host.kdump.known import Known, match_known
from tegu.host.kdump.oops import Crash, read_log
from tegu.host.kdump.vmcore import core_kind, elf_log
from tegu.process import CommandError, run

__all__ = ["Report", "find_dump", "make_report"]

_TAIL = 40


@dataclass(frozen=True, slots=True)
class Report:
    """A dump, read. `tail` are the log's last lines; `debugger` is what drgn or crash(8) print, or
    None, and `debugger_note` why there is nothing; `capture` is what the capture kernel said."""

    path: Path
    kernel: str | None
    crash: Crash
    known: tuple[Known, ...]
    log_lines: int
    core_size: int | None
    tail: tuple[str, ...]
    capture: tuple[str, ...]
    debugger: str | None
    debugger_note: str


def find_dump(named: Path | None, directory: Path) -> Path:
    """Return the dump that is meant: a path, a name below `directory`, or the newest there."""
    if named is None:
        dumps = list_dumps(directory)
        if not dumps:
            raise TeguError(
                f"there is no dump in {directory}", hint="name one: tegu kdump report DIR"
            )
        return dumps[0].path
    for path in (named, directory / named):
        if path.exists():
            return path
    raise UsageError(f"there is no dump {named}, neither here nor in {directory}")


def make_report(path: Path, *, debug: Path | None = None) -> Report:
    """Read the dump at `path`: its directory, a vmcore file, or a log alone.

    `debug` is a kernel with debug symbols (vmlinux); without it the usual places are tried. Raises
    TeguError for what is damaged or no dump at all.
    """
    log, core = _files(path)
    text = log.read_text(errors="replace") if log is not None else _log_of(core or path)
    text = text.rstrip("\0")
    crash = read_log(text)
    kernel = crash.kernel
    with suppress(OSError, ValueError, KeyError, TypeError):
        kernel = str(json.loads((path / "about.json").read_text())["kernel"])
    lines = text.splitlines()
    view, note = None, "only the log was saved"
    if core is not None:
        core_kind(core)
        view, note = debugger_view(core, kernel, debug)
    capture: tuple[str, ...] = ()
    with suppress(OSError):
        capture = tuple((path / "capture.log").read_text(errors="replace").splitlines())
    end = text[_crash_offset(text, crash) :]
    return Report(
        path=path,
        kernel=kernel,
        crash=crash,
        known=tuple(match_known(end, crash.where)),
        log_lines=len(lines),
        core_size=core.stat().st_size if core is not None else None,
        tail=tuple(lines[-_TAIL:]),
        capture=capture,
        debugger=view,
        debugger_note=note,
    )


def _files(path: Path) -> tuple[Path | None, Path | None]:
    """Return (log, core) of what was named; one of the two is there."""
    try:
        if path.is_dir():
            log = path / "dmesg.txt"
            cores = [path / n for n in ("vmcore", "vmcore.flat") if (path / n).is_file()]
            if not log.is_file() and not cores:
                raise UsageError(f"{path} is not a dump: it has neither dmesg.txt nor vmcore")
            return (log if log.is_file() else None), (cores[0] if cores else None)
        with path.open("rb") as f:
            start = f.read(4096)
    except OSError as e:
        raise TeguError(f"cannot read {path}: {e.strerror}") from e
    binary = start.startswith((b"\x7fELF", b"KDUMP   ", b"makedumpfile\0")) or b"\0" in start
    return (None, path) if binary else (path, None)


def _crash_offset(text: str, crash: Crash) -> int:
    if crash.time is None:
        return 0
    stamp = f"{crash.time:.6f}]"
    return max(0, text.find(stamp))


def _log_of(core: Path) -> str:
    """Return the log inside of a core: our own reader for ELF, makedumpfile for its own formats."""
    kind = core_kind(core)
    if kind == "elf":
        return elf_log(core)
    if shutil.which("makedumpfile", path="/usr/sbin:/usr/bin:/sbin:/bin") is None:
        raise UnsupportedError(
            f"{core} is in makedumpfile's format and makedumpfile is not installed",
            hint="apt-get install makedumpfile",
        )
    with tempfile.TemporaryDirectory(prefix="tegu-kdump-") as scratch:
        out, source = Path(scratch) / "dmesg", core
        try:
            if kind == "flattened":
                source = Path(scratch) / "vmcore"
                with source.open("wb") as f:
                    run(["sh", "-c", 'makedumpfile -R "$0" <"$1"', source, core], stdout=f)
            run(["makedumpfile", "--dump-dmesg", source, out])
        except CommandError as e:
            raise TeguError(f"cannot read the log in {core}: {e.message}") from e
        return out.read_text(errors="replace")
