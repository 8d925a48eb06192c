"""A debugger's view of a dump, when there is one and the kernel's debug symbols are here."""

from __future__ import annotations

import shutil
import sys
from collections.abc import Iterator
from pathlib import Path

from tegu.process import CommandError, run

__all__ = ["debugger_view", "find_symbols"]

# crash(8) commands: the crashed task's stack, all CPUs' stacks, what ran.
_CRASH = "bt\nbt -a\nps -m\nquit\n"


def find_symbols(kernel: str | None, named: Path | None) -> Path | None:
    """Return the vmlinux with debug symbols of `kernel`: `named`, or where distributions put it."""
    if named is not None:
        return named
    if kernel is None:
        return None
    return next((p for p in _places(kernel) if p.is_file()), None)


def _places(kernel: str) -> Iterator[Path]:
    yield Path(f"/usr/lib/debug/boot/vmlinux-{kernel}")
    yield Path(f"/usr/lib/debug/lib/modules/{kernel}/vmlinux")
    yield Path(f"/usr/lib/debug/usr/lib/modules/{kernel}/vmlinux")
    yield Path(f"/usr/lib/modules/{kernel}/build/vmlinux")
    yield Path(f"/boot/vmlinux-{kernel}")


def debugger_view(core: Path, kernel: str | None, named: Path | None) -> tuple[str | None, str]:
    """Return (what drgn or crash(8) print of `core`, why there is nothing if so)."""
    symbols = find_symbols(kernel, named)
    if symbols is None:
        return None, f"no debug symbols for {kernel or 'this kernel'} (vmlinux)"
    if not symbols.is_file():
        return None, f"{symbols} does not exist"
    try:
        if (drgn := _drgn()) is not None:
            script = Path(__file__).with_name("drgn_view.py")
            done = run([*drgn, "-q", "-c", core, "-s", symbols, script], timeout=600)
            return done.stdout.strip(), "drgn"
        if (crash := shutil.which("crash")) is not None:
            done = run([crash, "-s", symbols, core], stdin=_CRASH, timeout=600)
            return done.stdout.strip(), "crash"
    except CommandError as e:
        if core.suffix == ".flat" and "debug symbols" not in e.message:
            # Not every libkdumpfile reads the flattened form.
            again = f"makedumpfile -R vmcore <{core.name}"
            return None, f"{e.message}; it may help to put it in order: {again}"
        return None, e.message
    return None, "neither drgn nor crash is installed"


def _drgn() -> list[str] | None:
    found = shutil.which("drgn")
    if found is not None:
        return [found]
    beside = Path(sys.executable).with_name("drgn")
    return [str(beside)] if beside.is_file() else None
