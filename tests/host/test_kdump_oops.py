"""What is read out of a kernel's last words."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tegu.errors import TeguError
from tegu.host.kdump import make_report
from tegu.host.kdump.known import known_bugs, match_known
from tegu.host.kdump.oops import read_log
from tegu.host.kdump.report import find_dump

MODULE_FAULT = """\
[   10.000000] systemd[1]: Hostname set to <web-1>.
[   20.000000] WARNING: CPU: 0 PID: 9 at mm/slub.c:1 kfree+0x1/0x2
[   20.000001] CPU: 0 UID: 0 PID: 9 Comm: warned Not tainted 6.12.107-tegu #1
[   20.000002] ---[ end trace 0000000000000000 ]---
[   70.100000] tegu_fault: loading out-of-tree module taints kernel.
[   70.200000] BUG: kernel NULL pointer dereference, address: 0000000000000010
[   70.200100] #PF: supervisor write access in kernel mode
[   70.200200] #PF: error_code(0x0002) - not-present page
[   70.200300] PGD 0 P4D 0
[   70.200400] Oops: Oops: 0002 [#1] PREEMPT SMP NOPTI
[   70.2005] CPU: 1 UID: 0 PID: 700 Comm: insmod Kdump: loaded Tainted: G  W  O  6.12.107-tegu #1
[   70.200600] Tainted: [W]=WARN, [O]=OOT_MODULE
[   70.200700] Hardware name: QEMU Standard PC (Q35 + ICH9, 2009), BIOS 1.16.2
[   70.200800] RIP: 0010:tegu_fault_write+0x5/0xff0 [tegu_fault]
[   70.200900] Code: Unable to access opcode bytes at 0xffffffffc0000000.
[   70.201000] RSP: 0018:ffffb0c4c0617b60 EFLAGS: 00010246
[   70.202000] Call Trace:
[   70.202100]  <TASK>
[   70.202200]  ? __die_body+0x1a/0x60
[   70.202300]  tegu_fault_init+0x12/0x20 [tegu_fault]
[   70.202400]  do_one_initcall+0x44/0x200
[   70.202500]  </TASK>
[   70.202600] Modules linked in: tegu_fault(O+) zram virtio_balloon [last unloaded: x]
[   70.202700] CR2: 0000000000000010
[   70.202800] ---[ end trace 0000000000000000 ]---
[   70.202900] RIP: 0010:later+0x5/0xff0
[   70.203000] Kernel panic - not syncing: Fatal exception
[   70.203100] Kernel Offset: 0x1d000000 from 0xffffffff81000000
"""

SYSRQ = """\
[  100.000000] sysrq: Trigger a crash
[  100.000100] Kernel panic - not syncing: sysrq triggered crash
[  100.000200] CPU: 0 UID: 0 PID: 612 Comm: python3 Kdump: loaded Not tainted 6.12.107-tegu #1
[  100.000300] Hardware name: QEMU
[  100.000400] Call Trace:
[  100.000500]  <TASK>
[  100.000600]  panic+0x10e/0x290
[  100.000700]  sysrq_handle_crash+0x15/0x20
[  100.000800]  </TASK>
"""

# As makedumpfile writes it: with the task that printed.
CALLERS = re.sub(r"^(\[ *[0-9.]+\]) ", r"\1 [    T612] ", SYSRQ, flags=re.MULTILINE)
CALLERS += "[  100.000900] [    T612] RIP: 0033:0x7fb08c3673a7\n"

ARM = """\
[    5.000000] Unable to handle kernel NULL pointer dereference at virtual address 0000000000000000
[    5.000100] Internal error: Oops: 0000000096000044 [#1] SMP
[    5.000200] Modules linked in: a b
[    5.000300] CPU: 3 UID: 0 PID: 44 Comm: sh Kdump: loaded Tainted: G S                 6.12.0 #1
[    5.000400] Hardware name: QEMU KVM Virtual Machine
[    5.000500] pc : sysrq_handle_crash+0x24/0x30
[    5.000600] lr : sysrq_handle_crash+0x10/0x30
[    5.000700] Call trace:
[    5.000800]  sysrq_handle_crash+0x24/0x30 (P)
[    5.000900]  __handle_sysrq+0xac/0x1c0
[    5.001000] Code: d503201f
[    5.001100] ---[ end trace 0000000000000000 ]---
[    5.001200] Kernel panic - not syncing: Oops: Fatal exception
"""


def test_a_module_that_faults() -> None:
    crash = read_log(MODULE_FAULT)
    assert crash.cause == "BUG: kernel NULL pointer dereference, address: 0000000000000010"
    assert crash.panic == "Fatal exception"
    assert crash.time == 70.2
    assert (crash.task, crash.pid, crash.cpu) == ("insmod", 700, 1)
    assert crash.kernel == "6.12.107-tegu"
    assert crash.taint == "WO"
    assert crash.where == "tegu_fault_write+0x5"
    assert [str(f) for f in crash.trace] == [
        "? __die_body+0x1a",
        "tegu_fault_init+0x12 [tegu_fault]",
        "do_one_initcall+0x44",
    ]
    assert crash.modules == ("tegu_fault(O+)", "zram", "virtio_balloon")
    assert crash.hardware == "QEMU Standard PC (Q35 + ICH9, 2009), BIOS 1.16.2"


def test_an_exception_before_there_were_oopses_in_its_line() -> None:
    crash = read_log(
        "[    8.1] int3: 0000 [#1] PREEMPT SMP NOPTI\n[    8.1] RIP: 0010:netif_rx+0x42/0x120\n"
        "[    8.2] Kernel panic - not syncing: Fatal exception in interrupt\n"
    )
    assert (crash.cause, crash.where) == ("int3: 0000 [#1] PREEMPT SMP NOPTI", "netif_rx+0x42")


@pytest.mark.parametrize("text", [SYSRQ, CALLERS])
def test_sysrq(text: str) -> None:
    crash = read_log(text)
    assert crash.where is None
    assert crash.reason == "sysrq: Trigger a crash"
    assert (crash.task, crash.pid, crash.taint) == ("python3", 612, "")
    assert [f.function for f in crash.trace] == ["panic", "sysrq_handle_crash"]
    assert [bug.name for bug in match_known(SYSRQ, crash.where)] == ["sysrq"]


def test_what_the_kernel_survived_is_not_the_reason() -> None:
    lockup = "[   {}.0] watchdog: BUG: soft lockup - CPU#0 stuck for 45s! [tegu:98]\n"
    lockup += "[   {}.1] CPU: 0 UID: 0 PID: 98 Comm: tegu Not tainted 6.12.107-tegu #1\n"
    for second in (20, 99):
        assert read_log(lockup.format(second, second) + SYSRQ).task == "python3"
    assert read_log(lockup.format(20, 20) + MODULE_FAULT).task == "insmod"
    panic = "[   21.0] Kernel panic - not syncing: softlockup: hung tasks\n"
    crash = read_log(lockup.format(20, 20) + panic)
    assert crash.reason == "BUG: soft lockup - CPU#0 stuck for 45s! [tegu:98]"
    assert crash.panic == "softlockup: hung tasks"


def test_arm64() -> None:
    crash = read_log(ARM)
    assert crash.cause is not None and crash.cause.startswith("Unable to handle kernel NULL")
    assert crash.where == "sysrq_handle_crash+0x24"
    assert (crash.task, crash.cpu, crash.taint) == ("sh", 3, "S")
    assert [f.function for f in crash.trace] == ["sysrq_handle_crash", "__handle_sysrq"]
    assert crash.modules == ("a", "b")


def test_a_panic_without_a_fault() -> None:
    text = (
        "[    1.5] Kernel panic - not syncing: VFS: Unable to mount root fs on unknown-block(0,0)\n"
    )
    crash = read_log(text)
    assert crash.cause is None
    assert crash.reason == "VFS: Unable to mount root fs on unknown-block(0,0)"
    assert crash.task is None and crash.trace == ()
    assert [bug.name for bug in match_known(text, None)] == ["no-root"]


def test_a_log_without_a_crash() -> None:
    crash = read_log("[    0.0] Linux version 6.12\n[    1.0] usb: ready\n")
    assert crash.reason is None and crash.time is None


@given(st.text(max_size=300), st.integers(0, 2000))
def test_any_log_is_read(noise: str, cut: int) -> None:
    read_log(noise)
    read_log(MODULE_FAULT[:cut] + noise)


def test_known_bugs_are_whole() -> None:
    names = [bug.name for bug in known_bugs()]
    assert len(names) == len(set(names))
    for bug in known_bugs():
        re.compile(bug.match)
        re.compile(bug.where)
        assert bug.reference.startswith("https://docs.kernel.org/"), bug.name
        assert not re.search(bug.match, "BUG: kernel NULL pointer dereference"), bug.name


def test_what_came_before_the_crash_is_not_its_cause(tmp_path: Path) -> None:
    log = tmp_path / "dmesg.txt"
    log.write_text("[    1.0] note: sysrq: Trigger a crash\n" + MODULE_FAULT)
    assert make_report(tmp_path).known == ()


def test_reports_of_directories_and_logs(tmp_path: Path) -> None:
    place = tmp_path / "2026-01-01T00-00-00Z"
    place.mkdir()
    (place / "dmesg.txt").write_text(SYSRQ)
    (place / "about.json").write_text('{"kernel": "6.12.107-tegu"}')
    (place / "capture.log").write_text("[1.0] log saved\n")
    assert find_dump(None, tmp_path) == place
    assert find_dump(Path(place.name), tmp_path) == place
    found = make_report(place)
    assert found.kernel == "6.12.107-tegu"
    assert found.capture == ("[1.0] log saved",)
    assert found.debugger is None and found.debugger_note == "only the log was saved"
    assert make_report(place / "dmesg.txt").crash == found.crash


def test_what_is_no_dump(tmp_path: Path) -> None:
    with pytest.raises(TeguError, match="there is no dump in"):
        find_dump(None, tmp_path)
    with pytest.raises(TeguError, match="there is no dump x"):
        find_dump(Path("x"), tmp_path)
    with pytest.raises(TeguError, match="is not a dump"):
        make_report(tmp_path)
    (tmp_path / "vmcore").write_bytes(b"\0" * 5000)
    with pytest.raises(TeguError, match="not a kernel's core"):
        make_report(tmp_path / "vmcore")
