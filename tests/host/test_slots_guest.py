"""A real machine of the immutable layout: forwards, back by itself, through cuts, back by hand.

The slot images are signed, and come over HTTP. In the guest a service does one step at each boot;
what it knows lies in /home. The loader, the firmware and the initrd are the real ones.
"""

from __future__ import annotations

import functools
import http.server
import os
import random
import re
import shutil
import tarfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tegu.image import build_definition
from tegu.lab import QemuMachine, QemuOptions
from tegu.packages.repo import make_key
from tegu.packages.repo.sign import load_signers
from tegu.store import Store

CUTS = int(os.environ.get("TEGU_TEST_CUTS", "2"))
BOOT = 1800

DEFINITION = """\
overlay = ["files"]
[system]
name = "tegu"
version = "{version}"
[packages]
install = [
  "dbus", "gpgv", "iproute2", "kmod", "procps", "systemd", "systemd-sysv", "udev",
]
[kernel]
cmdline = ["console=ttyS0,115200n8", "quiet", "no_timer_check", "cryptomgr.notests"{words}]
[units]
enable = [{units}]
# Nobody logs in; on a busy host these run out of time and fail.
mask = ["serial-getty@ttyS0.service", "getty@tty1.service", "systemd-logind.service"]
[image]
layout = "immutable"
slot_size = "320M"
size = "2G"
formats = [{formats}]
{rest}
"""

BAD_UNIT = """
[[file]]
path = "/usr/lib/systemd/system/bad.service"
content = "[Service]\\nExecStart=/bin/false\\n[Install]\\nWantedBy=multi-user.target\\n"
"""

NEW = """
[[file]]
path = "/var/lib/brought/by"
content = "26.14"
[[user]]
name = "brought"
uid = 1500
"""

CONFIG = """\
source = "{url}/{{release}}"
keyring = "/run/test/slots.gpg"
"""

SERVICE = """\
[Service]
ExecStart=/usr/lib/steps
[Install]
WantedBy=multi-user.target
"""

# A busy host is no reason for a unit to fail.
TIMEOUTS = """\
[Manager]
DefaultTimeoutStartSec=900s
DefaultDeviceTimeoutSec=900s
"""

# The steps come on a disk of their own, so that they may change without another image.
START = """\
#!/bin/sh
until [ -e /dev/disk/by-id/virtio-source ]; do sleep 1; done
mkdir -p /run/test
tar -C /run/test -xf /dev/disk/by-id/virtio-source
exec sh /run/test/steps
"""

STEPS = r"""
export PATH=/usr/sbin:/usr/bin:/sbin:/bin HOME=/root
exec >/dev/ttyS0 2>&1 </dev/null
say() { echo "@@ $*"; }
version() { sed -n 's/^VERSION_ID="\(.*\)"/\1/p' /usr/lib/os-release; }
status() { sed -n 's/^ "status": "\(.*\)".*/\1/p' /var/lib/tegu/upgrade/state.json; }
while :; do
    case $(status 2>/dev/null) in trial | trying) sleep 1 ;; *) break ;; esac
done
mount /efi
say boot "$(version)" slot="$(cat /run/tegu/slot)" "$(status 2>/dev/null)" \
    home="$(cat /home/data 2>/dev/null)" var="$(cat /var/lib/app/data 2>/dev/null)" \
    etc="$(cat /etc/mine 2>/dev/null)" me="$(grep -c ^me: /etc/passwd)" \
    brought="$(cat /var/lib/brought/by 2>/dev/null)/$(grep -c ^brought: /etc/passwd)" \
    packages="$(dpkg-query -W -f x tegu)" end
counted=$(ls /sys/firmware/efi/efivars | grep -c BootCountPath)
say files counted="$counted" $(cd /efi/EFI/Linux && echo *)
umount /efi
until ls -d /sys/class/net/e* >/dev/null 2>&1; do sleep 1; done
for nic in /sys/class/net/e*; do
    ip link set "${nic##*/}" up
    ip address add 10.0.2.15/24 dev "${nic##*/}"
    ip route add default via 10.0.2.2
done
to() {
    echo "$1" >/home/step
    echo "$1" >/home/data
    sync
    say upgrading "$1"
    tegu upgrade --to "$1" --json 2>&1 | tr -d '\n'
    echo
    say upgraded "$1"
    systemctl reboot
}
case $(cat /home/step 2>/dev/null) in
'')
    mkdir -p /etc/tegu /var/lib/app
    cp /run/test/upgrade.toml /etc/tegu/
    echo mine >/etc/mine
    echo kept >/var/lib/app/data
    echo 'me:x:1000:1000::/home/me:/bin/sh' >>/etc/passwd
    (: >/x) && say "the root can be written to"
    tegu upgrade --to 26.10 --json 2>&1 | tr -d '\n'
    echo
    to 26.12 ;;
26.12) to 26.13 ;;
26.13) to 26.14 ;;
26.14)
    if [ "$(version)" = 26.14 ]; then
        echo last >/home/step
        tegu rollback --json | tr -d '\n'
        echo
        block=$(($(blockdev --getsz /dev/dm-0) / 16))
        dd if=/dev/dm-0 of=/dev/null bs=4096 skip=$block count=1 iflag=direct && say "readable"
        root=$(sed 's/.*tegu.slots=//; s/ .*//; s/.*,//; s/:.*//' /proc/cmdline)
        dd if=/dev/urandom of="/dev/disk/by-partuuid/$root" bs=4096 seek=$block count=1 \
            conv=notrunc oflag=direct 2>/dev/null && say "tampered with"
        dd if=/dev/dm-0 of=/dev/null bs=4096 skip=$block count=1 iflag=direct ||
            say "a tampered block is refused"
        sync
        systemctl reboot
    else
        to 26.14
    fi ;;
last)
    tegu history | cat
    say finished
    systemctl poweroff ;;
esac
"""


def build(place: Path, version: str, store: Store, **more: str) -> Path:
    """Build one version; returns the directory of its slot image, or its disk."""
    directory = place / version
    shutil.rmtree(directory, ignore_errors=True)
    files = directory / "files"
    system = "etc/systemd/system"
    for path in ("usr/lib", system, f"{system}.conf.d"):
        (files / path).mkdir(parents=True)
    (files / "usr/lib/steps").write_text(START)
    (files / "usr/lib/steps").chmod(0o755)
    (files / "etc/systemd/system/steps.service").write_text(SERVICE)
    (files / f"{system}.conf.d/timeouts.conf").write_text(TIMEOUTS)
    values = {"words": "", "units": '"steps.service"', "formats": '"raw", "slot"', "rest": ""}
    definition = directory / "tegu.toml"
    definition.write_text(DEFINITION.format(version=version, **(values | more)))
    built = build_definition(definition, store=store)
    if version == "26.11":
        return built.path
    (slot,) = built.path.parent.glob("*.slot")
    return slot


@contextmanager
def served(directory: Path) -> Iterator[str]:
    """Serve the directory on loopback; yields the URL that a guest reaches it by."""
    handler = functools.partial(http.server.SimpleHTTPRequestHandler, directory=str(directory))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        try:
            yield f"http://10.0.2.2:{server.server_port}"
        finally:
            server.shutdown()
            thread.join()


def publish(slot: Path, target: Path, key: Path) -> None:
    """Put a slot image where it is served, signed."""
    shutil.copytree(slot, target)
    text = (target / "slot.json").read_bytes()
    (target / "slot.json.asc").write_text(load_signers([str(key)], key.parent).detach_sign(text))


@pytest.mark.slow
@pytest.mark.timeout(10800)
def test_forwards_back_and_cut(shared_store: Store, tmp_path: Path, monkeypatch) -> None:
    if not os.environ.get("TEGU_TEST_UPGRADE"):
        pytest.skip("it boots emulated machines ten times, which takes long: TEGU_TEST_UPGRADE=1")
    monkeypatch.delenv("XDG_RUNTIME_DIR", raising=False)
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    key, keyring = tmp_path / "signing.key", tmp_path / "slots.gpg"
    make_key(key, "Test <test@tegu.invalid>", days=100)
    keyring.write_bytes(load_signers([str(key)], tmp_path).public)
    make = functools.partial(build, tmp_path / "made", store=shared_store)
    disk = make("26.11")
    www = tmp_path / "www"
    bad = '"steps.service", "bad.service"'
    publish(make("26.12", units=bad, rest=BAD_UNIT), www / "26.12", key)
    publish(make("26.13", words=', "init=/bin/false"'), www / "26.13", key)
    publish(make("26.14", rest=NEW), www / "26.14", key)
    # Not signed for what it says now.
    shutil.copytree(www / "26.14", www / "26.10")
    text = (www / "26.10/slot.json").read_text()
    (www / "26.10/slot.json").write_text(text.replace("26.14", "26.10"))
    seed = random.randrange(1 << 30)
    print(f"power is cut at moments of seed {seed}")
    moments = random.Random(seed)
    said, took = "", 60.0
    source = tmp_path / "source"
    with served(www) as url:
        (tmp_path / "steps").write_text(STEPS)
        (tmp_path / "upgrade.toml").write_text(CONFIG.format(url=url))
        with tarfile.open(source, "w") as archive:
            for name in ("steps", "upgrade.toml", "slots.gpg"):
                archive.add(tmp_path / name, name)
        for cut in range(CUTS + 1):
            options = QemuOptions(
                image=disk, name="slots", persist=True, memory=768 << 20, cpus=1, firmware="uefi",
                extra=(
                    "-drive", f"file={source},format=raw,if=none,id=source,readonly=on",
                    "-device", "virtio-blk-pci,drive=source,serial=source",
                ),
            )  # fmt: skip
            with QemuMachine(options) as machine:
                try:
                    if cut == 0:
                        machine.wait_for_console(r"@@ upgrading 26.12", timeout=2 * BOOT)
                        started = time.monotonic()
                        machine.wait_for_console(r"@@ upgraded 26.12", timeout=BOOT)
                        took = time.monotonic() - started
                        print(f"an upgrade takes {took:.0f} s")
                    if cut < CUTS:
                        either = r"@@ (upgrading 26.14|finished)"
                        if "finished" in machine.wait_for_console(either, timeout=5 * BOOT):
                            break  # the last cut came when all was done
                        time.sleep(moments.uniform(0, took))
                        machine.kill()
                    else:
                        machine.wait_for_console(r"@@ finished", timeout=4 * BOOT)
                        machine.wait_for_exit(BOOT)
                finally:
                    said += machine.console().replace("\r", "")
                    (tmp_path / "console").write_text(said)
    lines = [line.removeprefix("@@ ") for line in said.splitlines() if line.startswith("@@ boot")]
    # The bad one is started again at once: whether it gets to say a word is chance.
    lines = [line for line in lines if not line.startswith("boot 26.12 ")]
    print("\n".join(lines))
    shown = "\n".join(lines)

    def line(version: str, slot: str, status: str, data: str, brought: str = "/0") -> str:
        return (
            f"boot {version} slot={slot} {status} home={data} var=kept etc=mine me=1"
            f" brought={brought} packages=x end"
        )

    assert re.fullmatch(
        r"boot 26.11 slot=a  home= var= etc= me=0 brought=/0 packages=x end", lines[0]
    )
    assert "the root can be written to" not in said
    assert "not signed by a key of slots.gpg" in said
    # A unit that fails, then a kernel that panics: each time N comes back by itself.
    assert lines[1] == line("26.11", "a", "rolled-back", "26.12"), shown
    assert lines[2] == line("26.11", "a", "rolled-back", "26.13"), shown
    assert "the unit bad.service has failed" in said
    assert "Attempted to kill init" in said
    good = line("26.14", "b", "done", "26.14", "26.14/1")
    for found in lines[3:-1]:
        # After each cut the machine is one or the other, whole; what was written is there.
        assert found in (line("26.11", "a", "rolled-back", "26.14"), good), shown
    assert good in lines, shown
    # The boot that was counted, and is so no more.
    assert "@@ files counted=1 tegu-1-26.11.efi tegu-" in said
    assert "@@ readable" in said
    assert "@@ tampered with" in said
    assert "@@ a tampered block is refused" in said
    assert lines[-1] == line("26.11", "a", "rolled-back", "26.14", "26.14/1"), shown
    histories = said[said.rindex("@@ boot 26.11") :]
    for what in ("not well", "did not come up", "by hand"):
        assert what in histories, histories
