"""Work in namespaces: cut off, and gone with its caller."""

from __future__ import annotations

import os
import secrets
import signal
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path

import pytest

from tegu.errors import BuildError, StoreError, VerifyError
from tegu.linux import mount, overlay, run_isolated
from tegu.process import CommandError, run


def test_it_is_root_and_the_first_process_with_no_network() -> None:
    def work(_: object) -> tuple[int, int, list[str]]:
        rows = Path("/proc/net/dev").read_text().splitlines()[2:]
        return os.getpid(), os.getuid(), [row.split(":")[0].strip() for row in rows]

    pid, uid, interfaces = run_isolated(work)
    assert (pid, uid) == (1, 0)
    assert "eth0" not in interfaces


def test_mounts_stay_inside(tmp_path: Path) -> None:
    def work(_: object) -> bool:
        mount("tmpfs", tmp_path)
        (tmp_path / "inside").touch()
        return (tmp_path / "inside").exists()

    assert run_isolated(work)
    assert not (tmp_path / "inside").exists()


def test_errors_come_out_as_they_are() -> None:
    def work(_: object) -> None:
        raise VerifyError("not signed", hint="sign it")

    with pytest.raises(VerifyError, match="not signed") as caught:
        run_isolated(work)
    assert caught.value.hint == "sign it"


def test_a_bug_inside_is_one_line_with_its_place() -> None:
    def work(_: object) -> None:
        raise ZeroDivisionError("oops")

    with pytest.raises(BuildError, match=r"ZeroDivisionError: oops \(test_namespaces.py:\d+\)"):
        run_isolated(work)


def test_a_full_disk_inside_is_a_store_error(tmp_path: Path) -> None:
    def work(_: object) -> None:
        mount("tmpfs", tmp_path, data="size=64k")
        (tmp_path / "big").write_bytes(b"x" * (1 << 20))

    with pytest.raises(StoreError, match="no space left"):
        run_isolated(work)


def test_events_arrive_in_order() -> None:
    seen: list[int] = []

    def work(report: object) -> str:
        for n in range(5):
            report(n)  # type: ignore[operator]
        return "done"

    assert run_isolated(work, on_event=seen.append) == "done"
    assert seen == [0, 1, 2, 3, 4]


def test_being_killed_is_told() -> None:
    with pytest.raises(BuildError, match="was killed"):
        run_isolated(lambda _: os.kill(os.getpid(), signal.SIGKILL) or os._exit(9))


def test_an_interrupt_ends_everything_inside(tmp_path: Path) -> None:
    seconds = f"973.{secrets.randbits(60)}"  # that no other test, worker or session sleeps
    code = f"""
import subprocess, time
from pathlib import Path
from tegu.linux import run_isolated
def work(report):
    subprocess.Popen(["sleep", {seconds!r}])
    Path({str(tmp_path / "started")!r}).touch()
    time.sleep(600)
run_isolated(work)
"""
    caller = subprocess.Popen([sys.executable, "-c", code], stderr=subprocess.DEVNULL)
    deadline = time.monotonic() + 300
    while not (tmp_path / "started").exists():
        assert time.monotonic() < deadline
        time.sleep(0.02)
    caller.send_signal(signal.SIGINT)
    caller.wait(timeout=300)
    while _runs(["sleep", seconds]):
        assert time.monotonic() < deadline + 300
        time.sleep(0.02)


def _runs(argv: list[str]) -> bool:
    wanted = "".join(f"{word}\0" for word in argv).encode()
    for entry in Path("/proc").glob("[0-9]*/cmdline"):
        with suppress(OSError):  # it has ended
            if entry.read_bytes() == wanted:
                return True
    return False


def test_overlay_takes_names_with_colons_and_commas(tmp_path: Path) -> None:
    odd = tmp_path / "a:b,c"
    for name in ("low1", "low2", "up", "work", "root"):
        (odd / name).mkdir(parents=True)
    (odd / "low1" / "x").write_text("top")
    (odd / "low2" / "x").write_text("below")
    (odd / "low2" / "y").write_text("y")

    def work(_: object) -> tuple[str, str]:
        overlay([odd / "low1", odd / "low2"], odd / "root", upper=odd / "up", work=odd / "work")
        (odd / "root" / "y").unlink()
        return (odd / "root" / "x").read_text(), str((odd / "root" / "y").exists())

    assert run_isolated(work) == ("top", "False")
    assert (odd / "low2" / "y").read_text() == "y"


def test_a_command_past_its_time_is_ended() -> None:
    with pytest.raises(CommandError, match="did not end within"):
        run(["sleep", "60"], timeout=0.2)


def test_a_missing_command_is_one_line() -> None:
    with pytest.raises(CommandError, match="cannot start /no/such/program"):
        run(["/no/such/program"])
