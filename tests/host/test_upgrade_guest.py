"""A real machine from our own repository goes from release to release, back, and through a cut.

The image is built from packages of our recipes, published by our repository. In the guest a service
does one step at each boot; what it knows lies in /home, which comes along when the root goes back.
"""

from __future__ import annotations

import json
import os
import random
import shutil
import time
from pathlib import Path

import pytest

from tegu.image import build_definition
from tegu.lab import QemuMachine, QemuOptions
from tegu.packages.recipe import build_packages
from tegu.packages.recipe.load import find_recipe
from tegu.packages.repo import Repository, add, make_key, publish
from tegu.store import Store

CUTS = int(os.environ.get("TEGU_TEST_CUTS", "1"))
BOOT = 1500

DEFINITION = """\
overlay = ["files"]
[system]
name = "tegu"
version = "26.11"
[packages]
tegu = false
install = [
  "apt", "btrfs-progs", "dbus", "kmod", "procps", "systemd", "systemd-sysv", "tegu", "tegu-extra",
  "tegu-release", "udev",
]
[[repository]]
uri = {uri}
suite = "dev"
keyring = {keyring}
priority = 990
[kernel]
cmdline = ["console=ttyS0,115200n8", "quiet", "no_timer_check", "cryptomgr.notests"]
[units]
enable = ["steps.service"]
# Nobody logs in; on a busy host these run out of time and fail.
mask = ["serial-getty@ttyS0.service", "getty@tty1.service", "systemd-logind.service"]
[image]
filesystem = "btrfs"
size = "4G"
firmware = ["bios"]
"""

EXTRA = """\
name = "tegu-extra"
version = "1"
revision = 0
summary = "something that changes with each release"
formats = ["deb"]
{units}
[[file]]
path = "/usr/share/tegu-extra/release"
content = "{version}"
"""

BAD = """
[[file]]
path = "/usr/lib/systemd/system/tegu-extra.service"
content = "[Service]\\nExecStart=/bin/false\\n[Install]\\nWantedBy=multi-user.target\\n"
"""

SERVICE = """\
[Service]
ExecStart=/usr/lib/steps
[Install]
WantedBy=multi-user.target
"""

STEPS = r"""#!/bin/sh
export PATH=/usr/sbin:/usr/bin:/sbin:/bin HOME=/root
exec >/dev/ttyS0 2>&1 </dev/null
say() { echo "@@ $*"; }
version() { sed -n 's/^VERSION_ID="\(.*\)"/\1/p' /usr/lib/os-release; }
status() { sed -n 's/^ "status": "\(.*\)".*/\1/p' /var/lib/tegu/upgrade/state.json; }
while :; do
    case $(status 2>/dev/null) in trial | trying) sleep 1 ;; *) break ;; esac
done
say boot "$(version)" "$(status 2>/dev/null)" data="$(cat /home/data 2>/dev/null)" \
    half="$(dpkg --audit | wc -l)" \
    "$(dpkg-query -W -f '${Version} ' tegu-extra tegu-release)" \
    extra="$(cat /usr/share/tegu-extra/release)" "$(dpkg --verify tegu-extra | wc -l)" end
to() {
    echo "$1" >/home/data
    echo "$1" >/home/step
    ln -sfn "/srv/$1" /srv/repo
    sync
    say upgrading "$1"
    tegu upgrade --json 2>&1 | tr -d '\n'
    echo
    say upgraded "$1"
    systemctl reboot
}
case $(cat /home/step 2>/dev/null) in
'') to v12 ;;
v12)
    [ "$(status)" = failed ] || to v13 ;;
v13)
    if [ "$(version)" = 26.13 ]; then
        tegu history
        say finished
        systemctl poweroff
    else
        to v13
    fi ;;
esac
"""


def repositories(place: Path, store: Store) -> Path:
    """Publish v11, v12 (with a unit that fails) and v13; returns the directory of them."""
    make_key(place / "signing.key", "Test <test@tegu.invalid>", days=100)
    repo = Repository.create(
        place / "repo",
        name="tegu",
        channels=["dev"],
        architectures=["amd64"],
        signers=[str(place / "signing.key")],
    )
    with repo, repo.locked():
        publish(repo)
        keyring = repo.public / "keyring.asc"
        values = {"keyring": str(keyring), "uri": "file:///srv/repo", "channel": "dev"}
        for number in (11, 12, 13):
            version = f"26.{number}"
            bad = number == 12
            recipe = place / f"extra-{number}.toml"
            units = 'units = ["tegu-extra.service"]' if bad else ""
            text = EXTRA.format(version=version, units=units) + (BAD if bad else "")
            recipe.write_text(text)
            out = place / f"debs-{number}"
            made_of = [(recipe, {}), (find_recipe("tegu-release"), values)]
            if number == 11:
                made_of.append((find_recipe("tegu"), {}))
            for path, given in made_of:
                build_packages(path, out, store, version=version, formats=["deb"], values=given)
            add(repo, "dev", [out])
            publish(repo)
            shutil.copytree(repo.public, place / f"v{number}")
    return place


@pytest.mark.slow
@pytest.mark.timeout(7200)
def test_forwards_back_and_cut(shared_store: Store, tmp_path: Path, monkeypatch) -> None:
    if not os.environ.get("TEGU_TEST_UPGRADE"):
        pytest.skip("it boots emulated machines five times, which takes long: TEGU_TEST_UPGRADE=1")
    monkeypatch.delenv("XDG_RUNTIME_DIR", raising=False)
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    place = repositories(tmp_path / "made", shared_store)
    files = tmp_path / "files"
    for number in (12, 13):
        shutil.copytree(place / f"v{number}", files / f"srv/v{number}")
    (files / "usr/lib").mkdir(parents=True)
    (files / "usr/lib/steps").write_text(STEPS)
    (files / "usr/lib/steps").chmod(0o755)
    (files / "etc/systemd/system").mkdir(parents=True)
    (files / "etc/systemd/system/steps.service").write_text(SERVICE)
    definition = tmp_path / "tegu.toml"
    definition.write_text(
        DEFINITION.format(
            uri=json.dumps((place / "v11").as_uri()),
            keyring=json.dumps(str(place / "v11/keyring.gpg")),
        )
    )
    built = build_definition(definition, store=shared_store)
    seed = random.randrange(1 << 30)
    print(f"power is cut at moments of seed {seed}")
    moments = random.Random(seed)
    said = ""
    for cut in range(CUTS + 1):
        options = QemuOptions(
            image=built.path, name="upgrades", persist=True, memory=768 << 20, cpus=1,
            firmware="bios", network="none",
        )  # fmt: skip
        with QemuMachine(options) as machine:
            if cut < CUTS:
                machine.wait_for_console(r"@@ upgrading v13", timeout=4 * BOOT)
                time.sleep(moments.uniform(0, 20))
                machine.kill()
            else:
                machine.wait_for_console(r"@@ finished", timeout=3 * BOOT)
                machine.wait_for_exit(BOOT)
            said += machine.console().replace("\r", "")
    lines = [line.removeprefix("@@ ") for line in said.splitlines() if line.startswith("@@ boot")]
    # The bad one is started again at once: whether it gets to say a word is chance.
    lines = [line for line in lines if not line.startswith("boot 26.12 failed")]
    print("\n".join(lines))
    shown = "\n".join(lines)
    # N; the bad N+1 is tried and gone back from by itself; then cuts, then the good one.
    assert lines[0] == "boot 26.11  data= half=0 26.11 26.11  extra=26.11 0 end", shown
    back = "boot 26.11 rolled-back data=v12 half=0 26.11 26.11  extra=26.11 0 end"
    assert lines[1] == back, shown
    for line in lines[2:]:
        # After each cut the machine is one or the other, whole; what was written is there.
        whole = [
            f"boot 26.{n} {s} data=v13 half=0 26.{n} 26.{n}  extra=26.{n} 0 end"
            for n, s in ((11, "rolled-back"), (13, "done"))
        ]
        assert line in whole, shown
    assert lines[-1].startswith("boot 26.13 done"), shown
    assert "the unit tegu-extra.service has failed" in said
