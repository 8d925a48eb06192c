"""A real crash in a guest of Tegu Linux with the distribution's kernel: dump, report, memory back.

The guest's first process is a script of ours in place of systemd: it does one step per boot. What
happens on a full disk is in test_kdump_capture.py.
"""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from tegu.image import build_definition
from tegu.lab import QemuMachine, QemuOptions
from tegu.store import Store

ROOT = Path(__file__).parents[2]

DEFINITION = """\
include = [{include}]
overlay = ["files"]
[system]
name = "tegu-kdump"
[packages]
install = ["makedumpfile"]
[kernel]
cmdline = ["crashkernel=224M", "init=/usr/lib/kdump-test"]
"""

STEPS = r"""#!/bin/sh
export PATH=/usr/sbin:/usr/bin:/sbin:/bin HOME=/root
exec >/dev/console 2>&1 </dev/null
mount -t proc proc /proc; mount -t sysfs sys /sys; mount -t tmpfs tmpfs /run
hostname guest
say() { echo "@@ $1"; }
show() { say "$1"; shift; "$@" | cat; say end; }
case $(cat /step 2>/dev/null) in
'')
    echo crashed >/step
    show on tegu kdump on --json
    tegu kdump test --yes ;;
crashed)
    show result tegu kdump test --result --json
    show report tegu kdump report --json
    for core in /var/crash/*/vmcore; do
        show core tegu kdump report --json "$core"
        head -c 2000 "$core" >/run/cut
    done
    show cut tegu kdump report --json /run/cut
    tegu kdump on >/dev/null
    show off tegu kdump off --json
    show refused tegu kdump on --json ;;
esac
say finished
sync
echo o >/proc/sysrq-trigger
sleep 60
"""


@pytest.mark.slow
@pytest.mark.timeout(3000)
def test_crashes(shared_store: Store, tmp_path: Path) -> None:
    steps = tmp_path / "files/usr/lib/kdump-test"
    steps.parent.mkdir(parents=True)
    steps.write_text(STEPS)
    steps.chmod(0o755)
    definition = tmp_path / "tegu.toml"
    definition.write_text(DEFINITION.format(include=json.dumps(str(ROOT / "distro/tegu.toml"))))
    built = build_definition(definition, store=shared_store)
    options = QemuOptions(image=built.path, memory=768 << 20, cpus=1, firmware="bios")
    with QemuMachine(options) as machine:
        machine.wait_for_exit(2700)
        console = machine.console().replace("\r", "")
    assert "@@ finished" in console, console[-3000:]
    said: dict[str, list[dict[str, object]]] = {}
    for name, text in re.findall(r"^@@ (\w+)\n(.*?)^@@ end$", console, re.MULTILINE | re.DOTALL):
        # The kernel may say something in between, on a line of its own.
        body = text[text.index("{") : text.rindex("}") + 1]
        said.setdefault(name, []).append(json.loads(re.sub(r"^\[ *\d+\.\d+\].*\n", "", body)))

    assert all(on["loaded"] for on in said["on"])
    assert len(said["core"]) == 1
    for report in (*said["report"], *said["core"]):
        crash = report["crash"]
        assert isinstance(crash, dict)
        assert crash["reason"] == "sysrq: Trigger a crash"
        assert any("sysrq_handle_crash" in frame for frame in crash["trace"])
        assert [bug["name"] for bug in report["known"]] == ["sysrq"]  # type: ignore[attr-defined]
    (result,) = said["result"]
    assert isinstance(result["memory"], int) and result["memory"] > 1 << 20
    assert "cut off" in str(said["cut"])
    (off,) = said["off"]
    assert off["released"] == 224 << 20
    assert int(str(off["total_after"])) - int(str(off["total_before"])) > 200 << 20
    assert "was given back" in str(said["refused"])
