"""KVM is believed only when a guest has run."""

from __future__ import annotations

import json
import os
import stat
from pathlib import Path

import pytest

from tegu.emulator import kvm
from tegu.emulator.arch import facts_for
from tegu.emulator.binary import QemuBinary
from tegu.emulator.kvm import Kvm, check_kvm, probe, remember_broken

FACTS = facts_for(None)
VERSION = (9, 0, 0)


def fake_qemu(tmp_path: Path, body: str) -> QemuBinary:
    """A program that stands in for QEMU; $console is the file that the guest would write to."""
    path = tmp_path / "qemu-fake"
    path.write_text(
        '#!/bin/sh\necho x >> "$0.calls"\n'
        'for word; do case "$word" in file:*) console=${word#file:};; esac; done\n' + body + "\n"
    )
    path.chmod(0o755)
    return QemuBinary(str(path), VERSION)


def calls(qemu: QemuBinary) -> int:
    record = Path(f"{qemu.path}.calls")
    return len(record.read_text().splitlines()) if record.exists() else 0


@pytest.fixture
def device(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    path = tmp_path / "kvm"
    path.touch()
    return path


def test_a_guest_that_answers_is_proof(tmp_path: Path) -> None:
    qemu = fake_qemu(tmp_path, 'echo "tegu: guest runs" > "$console"')
    assert probe(FACTS, qemu) == Kvm(True, True)


def test_a_guest_that_hangs_is_broken_and_killed(tmp_path: Path) -> None:
    qemu = fake_qemu(tmp_path, f"echo $$ > {tmp_path}/pid; exec sleep 600")
    answer = probe(FACTS, qemu, deadline=0.6)
    assert not answer.works
    assert "did not start within 0.6 s" in answer.reason
    pid = int((tmp_path / "pid").read_text())
    assert not Path(f"/proc/{pid}").exists()
    assert answer.notice() == (
        "KVM is present but broken (a guest did not start within 0.6 s): using emulation"
    )


def test_an_internal_error_is_seen_while_qemu_still_runs(tmp_path: Path) -> None:
    qemu = fake_qemu(tmp_path, "echo 'KVM internal error. Suberror: 1' >&2; exec sleep 600")
    answer = probe(FACTS, qemu, deadline=60)
    assert answer == Kvm(True, False, "KVM internal error. Suberror: 1")


def test_an_abort_gives_qemus_own_reason(tmp_path: Path) -> None:
    qemu = fake_qemu(
        tmp_path, "echo 'qemu-system-x: error: failed to set MSR 0x10a' >&2; kill -ABRT $$"
    )
    assert probe(FACTS, qemu).reason == "failed to set MSR 0x10a"


def test_a_silent_abort_names_the_signal(tmp_path: Path) -> None:
    assert probe(FACTS, fake_qemu(tmp_path, "kill -SEGV $$")).reason == "QEMU was killed by SIGSEGV"


def test_an_exit_without_the_answer_is_no_proof(tmp_path: Path) -> None:
    answer = probe(FACTS, fake_qemu(tmp_path, 'echo "tegu: guest" > "$console"'))
    assert answer == Kvm(True, False, "the guest failed")


def test_the_answer_is_asked_for_once(tmp_path: Path, device: Path) -> None:
    qemu = fake_qemu(tmp_path, 'echo "tegu: guest runs" > "$console"')
    assert check_kvm(FACTS, qemu, device=device).works
    assert check_kvm(FACTS, qemu, device=device).works
    assert calls(qemu) == 1


def test_another_qemu_is_asked_again(tmp_path: Path, device: Path) -> None:
    qemu = fake_qemu(tmp_path, 'echo "tegu: guest runs" > "$console"')
    check_kvm(FACTS, qemu, device=device)
    check_kvm(FACTS, QemuBinary(qemu.path, (10, 0, 0)), device=device)
    assert calls(qemu) == 2


def test_a_failure_of_a_real_machine_is_remembered(tmp_path: Path, device: Path) -> None:
    qemu = fake_qemu(tmp_path, 'echo "tegu: guest runs" > "$console"')
    assert check_kvm(FACTS, qemu, device=device).works
    remember_broken(FACTS, qemu, "it stopped")
    assert check_kvm(FACTS, qemu, device=device) == Kvm(True, False, "it stopped")


@pytest.mark.parametrize("text", ["", "{", "[]", '{"a": 1}', '{"KEY": {"works": true}}'])
def test_a_damaged_cache_is_not_believed(tmp_path: Path, device: Path, text: str) -> None:
    qemu = fake_qemu(tmp_path, 'echo "tegu: guest runs" > "$console"')
    check_kvm(FACTS, qemu, device=device)
    cache = tmp_path / "cache" / "tegu" / "kvm.json"
    key = next(iter(json.loads(cache.read_text())))
    cache.write_text(text.replace("KEY", key))
    assert check_kvm(FACTS, qemu, device=device).works
    assert calls(qemu) == 2


def test_no_cache_directory_is_no_failure(
    tmp_path: Path, device: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    qemu = fake_qemu(tmp_path, 'echo "tegu: guest runs" > "$console"')
    assert check_kvm(FACTS, qemu, device=device).works


def test_without_a_device_there_is_no_kvm(tmp_path: Path) -> None:
    qemu = fake_qemu(tmp_path, "exit 1")
    answer = check_kvm(FACTS, qemu, device=tmp_path / "none")
    assert not answer.present
    assert calls(qemu) == 0
    assert (answer.notice() or "").startswith("no KVM (")


def test_a_device_that_may_not_be_opened(
    tmp_path: Path, device: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "access", lambda *_: False)  # chmod would not keep root out
    answer = check_kvm(FACTS, fake_qemu(tmp_path, ""), device=device)
    assert "may not be opened" in answer.reason
    assert not answer.present


@pytest.mark.skipif(not Path("/dev/kvm").exists(), reason="this machine has no /dev/kvm")
def test_this_machines_kvm_is_judged_by_a_real_guest(
    qemu: QemuBinary, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever the answer: it comes from a start, names a reason when it is no, and is kept."""
    assert stat.S_ISCHR(Path("/dev/kvm").stat().st_mode)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    answer = check_kvm(FACTS, qemu)
    assert answer.works == (answer.reason == "")
    if answer.present:
        monkeypatch.setattr(kvm, "probe", lambda *_, **__: pytest.fail("asked twice"))
        assert check_kvm(FACTS, qemu) == answer
