"""Crashes of a real guest whose dumps go over SSH and HTTPS, after each mistake with crashkernel=.

The guest's first process is a script of ours in place of systemd: it does one step per boot. The
servers are this machine's, on its loopback, which the guest sees as 10.0.2.2.
"""

from __future__ import annotations

import http.server
import io
import json
import os
import re
import shutil
import socket
import ssl
import subprocess
import tarfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tegu.host.kdump import make_report
from tegu.image import build_definition
from tegu.kernel import last_built, load_recipe
from tegu.lab import QemuMachine, QemuOptions
from tegu.store import Store

ROOT = Path(__file__).parents[2]
GATEWAY = "10.0.2.2"  # QEMU's user network: this machine

DEFINITION = """\
include = [{include}]
overlay = ["files"]
[system]
name = "tegu-kdump-net"
[packages]
install = ["curl", "makedumpfile", "openssh-client"]
{local}
[kernel]
{kernel}
cmdline = ["init=/usr/lib/kdump-test"]
"""

STEPS = r"""#!/bin/sh
export PATH=/usr/sbin:/usr/bin:/sbin:/bin HOME=/root
exec >/dev/console 2>&1 </dev/null
mount -t proc proc /proc; mount -t sysfs sys /sys; mount -t tmpfs tmpfs /run
hostname web
modprobe -q virtio_net
ip link set eth0 up
ip addr add 10.0.2.15/24 dev eth0
ip route add default via 10.0.2.2
# Through a pipe: quiet but for what matters.
tell() { echo "@@ $1"; shift; { "$@" 2>&1; echo "@@ end $?"; } | cat; }
next() { echo "$1" >/step; }
again() { sync; echo b >/proc/sysrq-trigger; sleep 60; }
settings() { cp "/setup/$1.toml" /etc/tegu/kdump.toml; }
case $(cat /step 2>/dev/null) in
'')
    mkdir -p /setup /etc/tegu /root/.ssh
    for disk in /sys/block/vd*; do
        [ "$(cat $disk/serial)" != setup ] || tar -xf /dev/${disk##*/} -C /setup
    done
    cp /setup/key /setup/known_hosts /root/.ssh; chmod 600 /root/.ssh/key
    cat /setup/ca.pem >>/etc/ssl/certs/ca-certificates.crt
    echo 10.0.2.2 store.test >>/etc/hosts
    tell nothing tegu kdump on
    tell few tegu kdump on --reserve --size 64M
    next small; again ;;
small)
    tell small tegu kdump on
    settings ssh
    tell reserve tegu kdump on --reserve --json
    next ssh; again ;;
ssh)
    : >/root/.ssh/empty
    sed -i s/known_hosts\"/empty\"/ /etc/tegu/kdump.toml
    tell stranger tegu kdump on
    settings ssh
    tell on tegu kdump on --json
    next https
    tegu kdump test --yes ;;
https)
    tell sent tegu kdump test --result
    settings https
    tell on tegu kdump on --json
    next never
    tegu kdump test --yes ;;
esac
echo '@@ the kernel did not crash'
echo o >/proc/sysrq-trigger
sleep 60
"""

SSHD = """\
AuthorizedKeysFile {place}/authorized
HostKey {place}/host_key
ListenAddress 127.0.0.1
PasswordAuthentication no
PidFile none
Port {port}
StrictModes no
UsePAM no
"""


class ObjectStore(http.server.BaseHTTPRequestHandler):
    """Takes what comes with its length, as object stores do; keeps it in `place`."""

    place: Path

    def do_PUT(self) -> None:
        length = self.headers.get("Content-Length")
        if length is None or self.headers.get("Transfer-Encoding"):
            self.send_error(411)
            return
        with (self.place / Path(self.path).name).open("wb") as f:
            left = int(length)
            while left and (data := self.rfile.read(min(left, 1 << 20))):
                left -= f.write(data)
        self.send_response(200 if left == 0 else 400)
        # Else it ends with the connection, and Python's TLS does not say that it closes.
        self.send_header("Content-Length", "0")
        self.end_headers()

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002 - its name there
        pass


@contextmanager
def object_store(place: Path) -> Iterator[int]:
    """Serve HTTPS as store.test with the certificate `ca.pem`; yields the port."""
    key, certificate = place.parent / "ca.key", place.parent / "ca.pem"
    subprocess.run(
        [
            *("openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "3"),
            *("-subj", "/CN=store.test", "-addext", "subjectAltName=DNS:store.test"),
            *("-keyout", str(key), "-out", str(certificate)),
        ],
        check=True,
        capture_output=True,
    )
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate, key)
    ObjectStore.place = place
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), ObjectStore) as server:
        server.socket = context.wrap_socket(server.socket, server_side=True)
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield server.server_address[1]
        server.shutdown()


def sshd(place: Path) -> tuple[Path, dict[str, str]]:
    """Return sshd and its environment: this machine's, or out of its package without installing."""
    found = shutil.which("sshd", path="/usr/sbin:/usr/bin")
    if found is not None:
        return Path(found), {}
    packages = ["openssh-server", "libwrap0"]
    download = ["apt-get", "download", "-q", *packages]
    if subprocess.run(download, cwd=place, capture_output=True).returncode != 0:
        pytest.skip("needs sshd, and its package cannot be fetched")
    for deb in place.glob("*.deb"):
        subprocess.run(["dpkg-deb", "-x", str(deb), str(place / "sshd")], check=True)
    libraries = [str(p.parent) for p in place.glob("sshd/**/libwrap.so.0")]
    return place / "sshd/usr/sbin/sshd", {"LD_LIBRARY_PATH": ":".join(libraries)}


@contextmanager
def ssh_server(place: Path) -> Iterator[int]:
    """Run sshd as this user, for the key `key`; yields the port."""
    program, env = sshd(place)
    for name in ("host_key", "key"):
        keygen = ["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(place / name)]
        subprocess.run(keygen, check=True)
    shutil.copy(place / "key.pub", place / "authorized")
    with socket.create_server(("127.0.0.1", 0)) as free:
        port: int = free.getsockname()[1]
    (place / "config").write_text(SSHD.format(place=place, port=port))
    command = ["sh", "-c", 'exec "$@"', "sh", str(program), "-D", "-e", "-f", f"{place}/config"]
    if os.geteuid() == 0:
        # As root it wants a user and a directory of its own; both only where it runs.
        users = Path("/etc/passwd").read_text()
        users += "" if "\nsshd:" in users else "sshd:x:110:65534::/run/sshd:/usr/sbin/nologin\n"
        (place / "passwd").write_text(users)
        command[0:0] = ["unshare", "--mount"]
        command[4] = (
            f"mount --bind {place}/passwd /etc/passwd && mount -t tmpfs tmpfs /run"
            ' && mkdir /run/sshd && exec "$@"'
        )
    with (place / "sshd.log").open("wb") as log:
        child = subprocess.Popen(command, env={**os.environ, **env}, stderr=log)
        try:
            while "Server listening" not in (place / "sshd.log").read_text():
                assert child.poll() is None, (place / "sshd.log").read_text()
                time.sleep(0.05)
            yield port
        finally:
            child.terminate()
            child.wait()


def definition(store: Store, tmp_path: Path) -> Path:
    """Return a definition with our kernel when there is one, else the distribution's."""
    named = os.environ.get("TEGU_KERNEL_DEB")
    deb = Path(named) if named else last_built(store, load_recipe().release)
    local, kernel = "", ""
    if deb is not None:
        local = f"local = [{json.dumps(str(deb))}]"
        kernel = f'package = "{deb.name.partition("_")[0]}"\ninitrd = "none"'
    steps = tmp_path / "files/usr/lib/kdump-test"
    steps.parent.mkdir(parents=True)
    steps.write_text(STEPS)
    steps.chmod(0o755)
    path = tmp_path / "tegu.toml"
    include = json.dumps(str(ROOT / "distro/tegu.toml"))
    path.write_text(DEFINITION.format(include=include, local=local, kernel=kernel))
    return path


def setup_disk(place: Path, ssh: int, https: int) -> None:
    """Write `setup.tar`, a disk for the guest: keys and settings."""
    host_key = " ".join((place / "host_key.pub").read_text().split()[:2])
    keys = 'ssh_key = "/root/.ssh/key"\nssh_known_hosts = "/root/.ssh/known_hosts"\n'
    target = f"ssh://{_user()}@{GATEWAY}:{ssh}{place}/dumps"
    files = {
        "key": (place / "key").read_bytes(),
        "ca.pem": (place / "ca.pem").read_bytes(),
        "known_hosts": f"[{GATEWAY}]:{ssh} {host_key}\n".encode(),
        "ssh.toml": f'target = "{target}"\n{keys}'.encode(),
        "https.toml": f'target = "https://store.test:{https}/x/"\nafter = "poweroff"\n'.encode(),
    }
    with tarfile.open(place / "setup.tar", "w") as tar:
        for name, content in files.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))


def _user() -> str:
    import pwd

    return pwd.getpwuid(os.geteuid()).pw_name


@pytest.mark.slow
@pytest.mark.timeout(3000)
def test_dumps_leave_the_machine(shared_store: Store, tmp_path: Path) -> None:
    for program in ("openssl", "ssh-keygen", "unshare"):
        if shutil.which(program) is None:
            pytest.skip(f"needs {program}")
    objects, dumps = tmp_path / "objects", tmp_path / "dumps"
    objects.mkdir()
    built = build_definition(definition(shared_store, tmp_path), store=shared_store)
    with ssh_server(tmp_path) as ssh, object_store(objects) as https:
        setup_disk(tmp_path, ssh, https)
        disk = f"file={tmp_path}/setup.tar,format=raw,if=none,id=setup,readonly=on"
        options = QemuOptions(
            image=built.path,
            memory=640 << 20,
            cpus=1,
            firmware="bios",
            extra=("-drive", disk, "-device", "virtio-blk-pci,drive=setup,serial=setup"),
        )
        with QemuMachine(options) as machine:
            machine.wait_for_exit(2700)
            console = machine.console().replace("\r", "")
    said: dict[str, tuple[str, int]] = {}
    for name, text, code in re.findall(
        r"^@@ (\w+)\n(.*?)^@@ end (\d+)$", console, re.MULTILINE | re.DOTALL
    ):
        said.setdefault(name, (re.sub(r"^\[ *\d+\.\d+\].*\n", "", text, flags=re.M), int(code)))
    assert set(said) >= {"nothing", "few", "small", "reserve", "stranger", "on"}, console[-3000:]

    text, code = said["nothing"]
    assert code != 0 and "there is no crashkernel= on the kernel's command line" in text
    assert "`tegu kdump on --reserve` sets crashkernel=" in text
    text, code = said["few"]
    assert code == 0 and "64 MiB are too few: about" in text
    text, code = said["small"]
    assert code != 0 and "the reserved memory is too small: 64 MiB" in text
    assert "`tegu kdump on --reserve` sets crashkernel=" in text
    for name in ("nothing", "small", "stranger"):
        # What failed and the remedy, a line each.
        assert len(said[name][0].splitlines()) == 2, said[name]
    reserved = json.loads(said["reserve"][0])
    assert reserved["crashkernel"] >= reserved["needed"] > 64 << 20
    assert "the key of 10.0.2.2 is not in /root/.ssh/empty" in said["stranger"][0]

    captured = "\n".join(x for x in console.splitlines() if x.startswith("tegu-kdump: "))
    (dump,) = dumps.iterdir()
    assert dump.name.startswith("web-")
    assert sorted(p.name for p in dump.iterdir()) == ["capture.log", "dmesg.txt", "vmcore.flat"]
    assert "memory sent" in (dump / "capture.log").read_text()
    assert "look there" in said["sent"][0]
    there = sorted(p.name for p in objects.iterdir())
    assert there == ["dmesg.txt", "vmcore.flat"], captured
    for place in (dump, objects):
        assert make_report(place).crash.reason == "sysrq: Trigger a crash"
        flat = place / "vmcore.flat"
        # The flattened form's end mark is there, so all before it is, too.
        assert flat.stat().st_size > 1 << 20
        assert flat.read_bytes().startswith(b"makedumpfile\0")
        assert flat.read_bytes().endswith(b"\xff" * 16)
