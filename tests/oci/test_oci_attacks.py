"""Attempts to break out of a container at the moments when the runtime is in reach.

Each is a known hole of a runtime; here each must fail, and leave the host as it was.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from tests.oci.conftest import COMMAND, Runtime, until

PYTHON = "/usr/bin/python3"
ALL = ["CAP_SYS_ADMIN", "CAP_SYS_PTRACE", "CAP_DAC_OVERRIDE", "CAP_DAC_READ_SEARCH", "CAP_MKNOD"]

pytestmark = pytest.mark.skipif(
    not Path(PYTHON).exists(), reason="the attackers are written in Python, which /usr has not"
)


def strong(config: dict[str, Any]) -> None:
    """Give the container more than most get, but not the host."""
    for name in ("bounding", "effective", "permitted", "inheritable"):
        config["process"]["capabilities"][name] = ALL
    config["process"]["noNewPrivileges"] = False


# Keeps hold of the file that this program runs from, lets go of it by becoming another program ...
KEEP = """
import os
fd = os.open("/proc/self/exe", os.O_PATH)
os.set_inheritable(fd, True)
os.execv("/usr/bin/python3", ["python3", "-c", open("/tmp/try").read(), str(fd)])
"""
# ... and tries to write to it, now that nobody runs it; for longer than the runtime needs to end.
TRY = """
import ctypes, errno, os, sys, time
fd = int(sys.argv[1])
seen = set()
libc = ctypes.CDLL(None, use_errno=True)
class Attr(ctypes.Structure):
    _fields_ = [(n, ctypes.c_uint64) for n in ("set", "clr", "propagation", "userns")]
while not os.path.exists("/tmp/stop"):
    # mount_setattr(2): make the mount that the file is seen through writable again.
    attr = Attr(0, 1, 0, 0)
    if libc.syscall(442, fd, b"", 0x1000, ctypes.byref(attr), 32) == 0:
        seen.add("MOUNT CHANGED")
    for flags in (os.O_WRONLY, os.O_RDWR, os.O_WRONLY | os.O_APPEND):
        try:
            os.close(os.open(f"/proc/self/fd/{fd}", flags))
            seen.add("OPENED")
        except OSError as e:
            seen.add(errno.errorcode[e.errno])
    with open("/tmp/new", "w") as f:
        f.write(" ".join(sorted(seen)))
    os.rename("/tmp/new", "/tmp/seen")
    time.sleep(0.05)
"""


@pytest.mark.parametrize("script", [False, True])
def test_the_runtime_cannot_be_overwritten(oci: Runtime, script: bool) -> None:
    """CVE-2019-5736: /proc/self/exe as the program, or as a script's interpreter.

    The runtime runs from a copy of the interpreter of its own, for a file that others run cannot
    be written to in any case (ETXTBSY) and would hide what is asked here.
    """
    copy = oci.directory / "python-copy"
    shutil.copy(Path(sys.executable).resolve(), copy)
    before = copy.read_bytes()
    command = [str(copy), "-I", "-S", *COMMAND[3:], "--root", str(oci.root)]
    bundle = oci.bundle("/proc/self/exe", "/tmp/keep", change=strong)
    root, name = bundle / "rootfs", oci.name()
    if script:
        bundle = oci.bundle("/tmp/keep", change=strong)
        root = bundle / "rootfs"
    (root / "tmp/keep").write_text("#!/proc/self/exe\n" + KEEP)
    (root / "tmp/keep").chmod(0o755)
    (root / "tmp/try").write_text(TRY)
    words = ["run", "--detach", "--bundle", str(bundle), name]
    subprocess.run([*command, *words], check=True, stdin=subprocess.DEVNULL, timeout=120)
    seen = root / "tmp/seen"
    # The kernel asks first whether it is being run, then whether the mount may be written to.
    until(lambda: seen.exists() and ("EROFS" in seen.read_text() or "OPENED" in seen.read_text()))
    (root / "tmp/stop").touch()
    assert set(seen.read_text().split()) <= {"EROFS", "ETXTBSY"}
    assert copy.read_bytes() == before


# Looks at every new process of the container for what a runtime might leave open.
WATCH = """
import os, time, sys
mine = os.getpid()
own = os.stat("/proc/self/exe").st_ino
end = time.monotonic() + 600
found = set()
print("ready", flush=True)
while time.monotonic() < end and not os.path.exists("/tmp/stop"):
    for name in os.listdir("/proc"):
        if not name.isdecimal() or int(name) == mine:
            continue
        try:
            for fd in os.listdir(f"/proc/{name}/fd"):
                to = os.readlink(f"/proc/{name}/fd/{fd}")
                if to.startswith("/") and not to.startswith(("/dev", "/proc")):
                    try:
                        if os.path.isdir(f"/proc/{name}/fd/{fd}/."):
                            found.add(f"DIRECTORY {to}")
                    except OSError:
                        pass
        except OSError as e:
            pass
        try:
            exe = os.readlink(f"/proc/{name}/exe")
            if "python" in exe:
                found.add("SEEN")
                os.close(os.open(f"/proc/{name}/exe", os.O_WRONLY))
                found.add("OPENED")
        except OSError:
            pass
        try:
            with open(f"/proc/{name}/environ", "rb") as f:
                if b"SECRET_OF_THE_HOST" in f.read():
                    found.add("ENVIRONMENT")
        except OSError:
            pass
print(sorted(found), flush=True)
"""


def test_a_watcher_inside_sees_nothing_of_exec(oci: Runtime) -> None:
    """CVE-2016-9962, CVE-2019-5736: the new process is in reach of the container's others."""
    bundle, name = oci.bundle("sleep", "1000"), oci.name()
    oci("run", "--detach", "--bundle", str(bundle), name, capture_output=False)
    words = [*COMMAND, "--root", str(oci.root), "exec", name, PYTHON, "-c", WATCH]
    watcher = subprocess.Popen(words, stdout=subprocess.PIPE, text=True)
    assert watcher.stdout is not None
    assert watcher.stdout.readline() == "ready\n"
    env = os.environ | {"SECRET_OF_THE_HOST": "1"}
    for _ in range(5):
        oci("exec", name, "true", env=env)
    (bundle / "rootfs/tmp/stop").touch()
    found = watcher.stdout.read()
    watcher.wait()
    for word in ("OPENED", "DIRECTORY", "ENVIRONMENT"):
        assert word not in found


def test_no_directory_of_the_host_as_working_directory(oci: Runtime) -> None:
    """CVE-2024-21626: a descriptor that the runtime left open, entered by process.cwd."""
    for number in (3, 5, 6, 7, 8, 9, 10, 12):
        for path in (f"/proc/self/fd/{number}", f"/proc/self/fd/{number}/../../.."):
            done = oci.run(
                "pwd",
                change=lambda c, p=path: c["process"].update(cwd=p),  # type: ignore[misc]
                check=False,
            )
            assert done.returncode == 1, (path, done.stdout)
            assert path in done.stderr, done.stderr


def test_nor_by_exec(oci: Runtime) -> None:
    """The same, with `exec --cwd`, and by a link in the container that leads there."""
    bundle, name = oci.bundle("sleep", "1000"), oci.name()
    for number in range(3, 16):
        (bundle / f"rootfs/tmp/link{number}").symlink_to(f"/proc/self/fd/{number}")
    extra = os.open("/", os.O_RDONLY | os.O_DIRECTORY)
    try:
        oci("run", "--detach", "-b", str(bundle), name, capture_output=False, pass_fds=[extra])
        for number in range(3, 16, 3):
            for path in (f"/proc/self/fd/{number}", f"/tmp/link{number}"):
                done = oci("exec", "--cwd", path, name, "pwd", check=False, pass_fds=[extra])
                assert done.returncode == 1, (path, done.stdout)
                assert "process.cwd" in done.stderr
        first = Path(f"/proc/{oci.state(name)['pid']}")
        assert sorted(p.name for p in (first / "fd").iterdir()) == ["0", "1", "2"]
        assert (first / "cwd").stat().st_ino == (bundle / "rootfs").stat().st_ino
    finally:
        os.close(extra)


def test_links_in_the_image_lead_no_mount_out(oci: Runtime) -> None:
    """A destination is followed inside the root, whatever stands there."""
    outside = oci.directory / "outside"
    outside.mkdir()
    source = oci.directory / "source"
    source.mkdir()
    (source / "file").write_text("from the host\n")

    bundle = oci.bundle("sh", "-c", "cat /a/x/file /b/file")
    root = bundle / "rootfs"
    (root / "a").symlink_to(outside)
    (root / "b").symlink_to("../../../../../../../../" + str(outside) + "/made")
    config = json.loads((bundle / "config.json").read_text())
    for destination in ("/a/x", "/b"):
        config["mounts"].append(
            {"destination": destination, "source": str(source), "options": ["bind"]}
        )
    (bundle / "config.json").write_text(json.dumps(config))
    # The link's target is not there: what is in the way is refused, and nothing is made outside.
    done = oci("run", "--bundle", str(bundle), oci.name(), check=False)
    assert list(outside.iterdir()) == []
    (root / str(outside).lstrip("/") / "made").mkdir(parents=True)
    done = oci("run", "--bundle", str(bundle), oci.name())
    assert done.stdout.startswith("from the host\nfrom the host\n")
    assert list(outside.iterdir()) == []


def test_masks_are_the_null_device_itself(oci: Runtime) -> None:
    """CVE-2025-31133: the image's own /dev/null, a link, is not what masks."""
    victim = oci.directory / "victim"
    victim.write_text("host\n")

    def change(config: dict[str, Any]) -> None:
        config["mounts"] = [m for m in config["mounts"] if not m["destination"].startswith("/dev")]
        config["linux"]["maskedPaths"] = ["/proc/version", "/tmp/secret", "/proc/acpi"]

    bundle = oci.bundle(
        "sh", "-c", "ls -lL /proc/version /tmp/secret; cat /tmp/secret", change=change
    )
    root = bundle / "rootfs"
    (root / "tmp/secret").write_text("secret")
    (root / "dev/null").symlink_to("/proc/sys/kernel/core_pattern")
    done = oci("run", "--bundle", str(bundle), oci.name(), check=False)
    # A node that is something else is refused by name ...
    assert done.returncode == 1
    assert "/dev/null" in done.stderr or "null is there already" in done.stderr
    (root / "dev/null").unlink()
    # ... and a mask through a link in the image masks what the link leads to inside.
    (root / "tmp/real").write_text("secret")
    (root / "tmp/secret").unlink()
    (root / "tmp/secret").symlink_to("/tmp/real")
    done = oci("run", "--bundle", str(bundle), oci.name())
    lines = done.stdout.splitlines()
    assert len(lines) == 2, lines
    assert all(line.startswith("crw-rw-rw-") and "1, 3" in line for line in lines)
    assert victim.read_text() == "host\n"


def test_a_console_that_is_a_link_is_refused(oci: Runtime) -> None:
    """CVE-2025-52565: the terminal is mounted at /dev/console, which the image may provide."""
    victim = oci.directory / "victim"
    victim.write_text("host\n")

    def change(config: dict[str, Any]) -> None:
        config["process"]["terminal"] = True
        config["mounts"] = [m for m in config["mounts"] if m["destination"] != "/dev"]

    bundle = oci.bundle("true", change=change)
    (bundle / "rootfs/dev/console").symlink_to("/proc/sysrq-trigger")
    done = oci("run", "--bundle", str(bundle), oci.name(), check=False, input="")
    assert done.returncode == 1
    assert "/dev/console" in done.stderr


@pytest.mark.parametrize("destination", ["/proc/sys", "/proc/self/attr", "/proc/version"])
def test_nothing_is_mounted_over_what_the_runtime_writes(oci: Runtime, destination: str) -> None:
    """CVE-2019-16884, CVE-2025-52881: a mount in /proc that swallows or redirects our writes."""

    def change(config: dict[str, Any]) -> None:
        source = "/etc" if destination != "/proc/version" else "/etc/passwd"
        config["mounts"].append({"destination": destination, "source": source, "options": ["bind"]})

    done = oci.run("true", change=change, check=False)
    assert done.returncode == 1
    assert "must not cover that in /proc" in done.stderr


@pytest.mark.parametrize(
    "name", ["kernel.core_pattern", "vm.swappiness", "net/../kernel/core_pattern", "fs.file-max"]
)
def test_settings_of_the_host_are_out_of_reach(oci: Runtime, name: str) -> None:
    before = Path("/proc/sys/kernel/core_pattern").read_text()

    def change(config: dict[str, Any]) -> None:
        config["linux"]["sysctl"] = {name: "1"}

    done = oci.run("true", change=change, check=False)
    assert done.returncode != 0
    assert f"linux.sysctl.{name}" in done.stderr
    assert Path("/proc/sys/kernel/core_pattern").read_text() == before


@pytest.mark.parametrize("name", ["..", ".", "../x", "a/b", "", "a\n", "a b", "x" * 300])
def test_ids_are_no_paths(oci: Runtime, name: str) -> None:
    bundle = oci.bundle("true")
    for words in (("run", "--bundle", str(bundle), name), ("delete", "--force", name)):
        done = oci(*words, check=False)
        assert done.returncode == 2
        assert "container id" in done.stderr


def test_devices_that_were_not_given_cannot_be_opened(oci: Runtime) -> None:
    """CAP_MKNOD makes nodes, but the device rules keep them shut.

    No driver has these numbers: what is let through says so, and so shows that the rules count.
    """

    def change(config: dict[str, Any]) -> None:
        strong(config)
        config["linux"]["resources"]["devices"].append(
            {"allow": True, "type": "c", "major": 511, "minor": 1, "access": "r"}
        )

    script = (
        "cd /tmp; mknod a c 511 1; mknod b c 511 2; cat a; cat b; echo x >a; "
        "head -c1 /dev/zero | wc -c"
    )
    done = oci.run("sh", "-c", script, change=change, check=False)
    if done.returncode and "linux.resources.devices" in done.stderr:
        pytest.skip("no control group for devices may be made here")
    errors = done.stderr.splitlines()
    assert "No such device" in errors[0]
    assert "not permitted" in errors[1]
    assert "not permitted" in errors[2]
    assert done.stdout.split() == ["1"]
