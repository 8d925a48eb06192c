"""What a debugger says of a dump: how it is called, and what its errors become."""

from __future__ import annotations

from pathlib import Path

import pytest

from tegu.host.kdump.debugger import debugger_view

# Stands for drgn; tests of drgn's own view need a core and its kernel's symbols, 400 MB.
DRGN = """\
#!/bin/sh
[ "$1 $2 $4" = "-q -c -s" ] && [ -f "$3" ] && [ -f "$5" ] && [ -f "$6" ] || exit 2
case $(cat "$5") in
ours) echo "crashed: cat (pid 7)" ;;
other) echo "the debug symbols are not of the kernel that crashed" >&2; exit 1 ;;
*) echo "unknown format" >&2; exit 1 ;;
esac
"""


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    programs = tmp_path / "bin"
    programs.mkdir()
    (programs / "drgn").write_text(DRGN)
    (programs / "drgn").chmod(0o755)
    monkeypatch.setenv("PATH", f"{programs}:/usr/bin:/bin")
    (tmp_path / "vmcore").touch()
    (tmp_path / "vmcore.flat").touch()
    for name in ("ours", "other", "odd"):
        (tmp_path / name).write_text(name)
    return tmp_path


def test_drgn_reads_both_forms(place: Path) -> None:
    for core in ("vmcore", "vmcore.flat"):
        view, by = debugger_view(place / core, "6.12.107-tegu", place / "ours")
        assert (view, by) == ("crashed: cat (pid 7)", "drgn")


def test_why_there_is_nothing(place: Path) -> None:
    flat = place / "vmcore.flat"
    view, why = debugger_view(flat, None, place / "other")
    assert view is None
    assert why.endswith("the debug symbols are not of the kernel that crashed")
    view, why = debugger_view(flat, None, place / "odd")
    assert view is None
    assert why.endswith("put it in order: makedumpfile -R vmcore <vmcore.flat")
    _, why = debugger_view(place / "vmcore", None, place / "odd")
    assert why.endswith("unknown format")
    assert debugger_view(flat, None, place / "no") == (None, f"{place / 'no'} does not exist")
    assert debugger_view(flat, "1.2-none", None) == (
        None,
        "no debug symbols for 1.2-none (vmlinux)",
    )
