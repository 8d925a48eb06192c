"""What config.json asks for, looked at from inside the container."""

from __future__ import annotations

import errno
import json
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import pytest
from tests.oci.conftest import SCRIPT, Runtime

from tegu.oci.example import example


def test_process(oci: Runtime) -> None:
    def change(config: dict[str, Any]) -> None:
        process = config["process"]
        process["user"] = {"uid": 12, "gid": 34, "umask": 0o027, "additionalGids": [56, 78]}
        process["cwd"] = "/made/on/the/way"
        process["env"].append("A=b c")
        process["oomScoreAdj"] = 321
        process["rlimits"] = [
            {"type": "RLIMIT_NOFILE", "soft": 123, "hard": 234},
            {"type": "RLIMIT_CORE", "soft": 0, "hard": 0},
        ]
        process["ioPriority"] = {"class": "IOPRIO_CLASS_IDLE", "priority": 0}
        process["scheduler"] = {"policy": "SCHED_BATCH", "nice": 5}
        for name in ("bounding", "permitted", "effective", "inheritable", "ambient"):
            process["capabilities"][name] = ["CAP_KILL", "CAP_NET_RAW"]
        process["capabilities"]["bounding"] = ["CAP_KILL", "CAP_NET_RAW", "CAP_CHOWN"]
        config["hostname"] = "inner"
        config["domainname"] = "example.org"
        config["linux"]["sysctl"] = {"net.ipv4.ip_forward": "1", "kernel.shmmax": "4096"}
        config["linux"]["personality"] = {"domain": "LINUX32"}

    script = (
        "id; umask; pwd; echo $A; cat /proc/self/oom_score_adj; ulimit -Sn; ulimit -Hn; ulimit -c;"
        " grep -E '^(Cap|NoNew)' /proc/self/status; cat /proc/sys/kernel/hostname"
        " /proc/sys/kernel/domainname /proc/sys/net/ipv4/ip_forward /proc/sys/kernel/shmmax;"
        " cat /proc/self/personality 2>/dev/null; uname -m; cat /sys/class/net/lo/flags;"
        " cut -d' ' -f41 /proc/self/stat"
    )
    lines = oci.sh(script, change).splitlines()
    assert lines[0].startswith("uid=12")
    assert "56" in lines[0]
    assert "78" in lines[0]
    assert lines[1:8] == ["0027", "/made/on/the/way", "b c", "321", "123", "234", "0"]
    two, three = f"{1 << 5 | 1 << 13:016x}", f"{1 << 5 | 1 << 13 | 1:016x}"
    status = dict(line.split() for line in lines[8:14])
    sets = [status[f"Cap{n}:"] for n in ("Inh", "Prm", "Eff", "Bnd", "Amb")]
    assert sets == [two, two, two, three, two]
    assert status["NoNewPrivs:"] == "1"
    assert lines[14:18] == ["inner", "example.org", "1", "4096"]
    assert "0x9" in lines  # lo: up
    assert lines[-1] == "3"  # SCHED_BATCH


def test_mounts(oci: Runtime) -> None:
    source = oci.directory / "source"
    (source / "below").mkdir(parents=True)
    (source / "file").write_text("text\n")

    def change(config: dict[str, Any]) -> None:
        config["mounts"] += [
            {"destination": "/data", "source": str(source), "options": ["bind", "ro", "nodev"]},
            {"destination": "/one", "source": str(source / "file"), "options": ["bind"]},
            {"destination": "/up", "type": "tmpfs", "source": "up",
             "options": ["tmpcopyup", "size=1m", "nosuid", "noexec"]},
            {"destination": "/shared", "source": str(source), "options": ["bind", "rshared"]},
        ]  # fmt: skip
        config["root"]["readonly"] = True
        config["linux"]["rootfsPropagation"] = "shared"
        config["linux"]["maskedPaths"] = ["/masked", "/up/kept", "/not/there"]
        config["linux"]["readonlyPaths"] = ["/up/dir", "/not/there/either"]

    script = (
        "cat /data/file /one; touch /data/x 2>&1; touch /x 2>&1; ls /up; cat /up/kept; ls /masked;"
        " touch /up/new && echo made; touch /up/dir/x 2>&1; stat -c %a:%u /up/dir;"
        " grep -E ' /(data|up|shared|one)? ' /proc/self/mountinfo"
    )
    bundle = oci.bundle("sh", "-c", script, change=change)
    (bundle / "rootfs/masked").mkdir()
    (bundle / "rootfs/masked/secret").touch()
    (bundle / "rootfs/up/dir").mkdir(parents=True)
    (bundle / "rootfs/up/dir").chmod(0o751)
    os.chown(bundle / "rootfs/up/dir", 7, 7)
    (bundle / "rootfs/up/kept").write_text("kept")
    done = oci("run", "--bundle", str(bundle), oci.name())
    lines = done.stdout.splitlines()
    assert lines[:2] == ["text", "text"]
    assert all("Read-only file system" in line for line in lines[2:4])
    assert lines[4:7] == ["dir", "kept", "made"]
    assert "Read-only" in lines[7]
    assert lines[8] == "751:7"
    by_place = {line.split()[4]: line for line in lines[9:]}
    assert "ro,nodev" in by_place["/data"]
    assert "shared:" in by_place["/shared"]
    assert "shared:" in by_place["/"]
    assert "shared:" not in by_place["/data"]
    assert "nosuid,noexec" in by_place["/up"]
    assert sorted(p.name for p in (bundle / "rootfs/up").iterdir()) == ["dir", "kept"]


@pytest.mark.parametrize("privileged", [True, False])
def test_a_filter_of_system_calls(oci: Runtime, privileged: bool) -> None:
    """With no_new_privs, and without it: then CAP_SYS_ADMIN is only there to load the filter."""

    def change(config: dict[str, Any]) -> None:
        config["process"]["noNewPrivileges"] = not privileged
        config["process"]["user"]["uid"] = 1000
        config["linux"]["seccomp"] = {
            "defaultAction": "SCMP_ACT_ALLOW",
            "architectures": ["SCMP_ARCH_X86_64", "SCMP_ARCH_X86", "SCMP_ARCH_AARCH64"],
            "syscalls": [
                {"names": ["mkdir", "mkdirat"], "action": "SCMP_ACT_ERRNO", "errnoRet": errno.EXDEV}
            ],
        }

    script = "mkdir /tmp/x 2>&1; grep -E '^(Seccomp|CapPrm|NoNewPrivs):' /proc/self/status"
    lines = oci.sh(script, change).splitlines()
    assert "cross-device" in lines[0]
    status = dict(line.split() for line in lines[1:])
    assert status["Seccomp:"] == "2"
    assert status["NoNewPrivs:"] == str(int(not privileged))
    assert int(status["CapPrm:"], 16) >> 21 & 1 == 0


def test_a_user_namespace(oci: Runtime) -> None:
    ids = [{"containerID": 0, "hostID": 1000000, "size": 65536}]

    def change(config: dict[str, Any]) -> None:
        config["linux"]["namespaces"].append({"type": "user"})
        config["linux"]["uidMappings"] = ids
        config["linux"]["gidMappings"] = ids
        config["process"]["user"] = {"uid": 5, "gid": 6, "additionalGids": [7]}

    script = "id -u; id -G; cat /proc/self/uid_map; ls -l /dev/null; echo x >/dev/null && echo null"
    bundle = oci.bundle("sh", "-c", script, change=change)
    for path in (bundle, *bundle.parents):
        if path == Path("/tmp"):
            break
        path.chmod(0o755)
    os.chown(bundle / "rootfs", 1000000, 1000000)
    for path in (bundle / "rootfs").rglob("*"):
        os.chown(path, 1000000, 1000000, follow_symlinks=False)
    lines = oci("run", "--bundle", str(bundle), oci.name()).stdout.splitlines()
    assert lines[:2] == ["5", "6 7"]
    assert lines[2].split() == ["0", "1000000", "65536"]
    assert "1, 3" in lines[3]
    assert lines[4] == "null"


def test_time_of_its_own(oci: Runtime) -> None:
    if not Path("/proc/self/ns/time").exists():
        pytest.skip("this kernel has no time namespaces")

    def change(config: dict[str, Any]) -> None:
        config["linux"]["namespaces"].append({"type": "time"})
        config["linux"]["timeOffsets"] = {"boottime": {"secs": 10**7, "nanosecs": 0}}

    assert float(oci.sh("cat /proc/uptime", change).split()[0]) > 10**7


def test_devices(oci: Runtime) -> None:
    def change(config: dict[str, Any]) -> None:
        config["linux"]["devices"] = [
            {"path": "/dev/net/mine", "type": "c", "major": 1, "minor": 5, "fileMode": 0o644,
             "uid": 3, "gid": 4},
            {"path": "/pipe", "type": "p"},
        ]  # fmt: skip

    script = (
        "stat -c '%F %a %u %g %t,%T' /dev/net/mine /dev/null; stat -c %F /pipe;"
        " readlink /dev/fd /dev/ptmx; head -c 2 /dev/net/mine | wc -c"
    )
    lines = oci.sh(script, change).splitlines()
    assert lines[0] == "character special file 644 3 4 1,5"
    assert lines[1] == "character special file 666 0 0 1,3"
    assert lines[2:] == ["fifo", "/proc/self/fd", "pts/ptmx", "2"]


def test_what_the_kernel_lacks_is_left_out_with_a_warning(oci: Runtime) -> None:
    def change(config: dict[str, Any]) -> None:
        config["process"]["capabilities"]["permitted"].append("CAP_OF_ANOTHER_WORLD")

    done = oci.run("true", change=change)
    assert "process.capabilities: left out: CAP_OF_ANOTHER_WORLD" in done.stderr


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["nosuch"], "executable file 'nosuch' not found in $PATH: no such file or directory"),
        (["/nosuch"], "cannot start /nosuch: no such file or directory"),
        (["/etc"], "cannot start /etc: permission denied"),
        (["/proc/version"], "cannot start /proc/version: permission denied"),
    ],
)
def test_programs_that_do_not_start(oci: Runtime, args: list[str], message: str) -> None:
    done = oci.run(*args, check=False)
    assert (done.returncode, done.stderr) == (1, f"tegu-oci: {message}\n")


def test_a_file_that_is_no_program_fails_at_start(oci: Runtime) -> None:
    bundle = oci.bundle("/tmp/file")
    (bundle / "rootfs/tmp/file").write_bytes(b"\x7fELF nonsense")
    (bundle / "rootfs/tmp/file").chmod(0o755)
    done = oci("run", "--bundle", str(bundle), oci.name(), check=False)
    assert done.stderr == "tegu-oci: cannot start /tmp/file: exec format error\n"


@pytest.mark.parametrize(
    ("mount", "message"),
    [
        ({"source": "/nosuch", "options": ["bind"]}, "mounts[0].source: /nosuch: no such file"),
        ({"type": "nosuchfs"}, "mounts[0]: nosuchfs on /m: no such device"),
        ({"type": "tmpfs", "options": ["nosuch=1"]}, "mounts[0]: tmpfs on /m: invalid argument"),
        ({}, "mounts[0].type: missing"),
    ],
)
def test_mounts_that_cannot_be(oci: Runtime, mount: dict[str, Any], message: str) -> None:
    def change(config: dict[str, Any]) -> None:
        config["mounts"].insert(0, {"destination": "/m", **mount})

    done = oci.run("true", change=change, check=False)
    assert done.returncode == 1
    assert message in done.stderr


def test_a_plain_user_makes_containers() -> None:
    """Without privileges: ids mapped by newuidmap, the runtime in a sealed copy, no groups."""
    if os.geteuid() != 0 or shutil.which("newuidmap") is None or shutil.which("setpriv") is None:
        pytest.skip("needs root to become another user, newuidmap and setpriv")
    made = Path(tempfile.mkdtemp(prefix="tegu-o", dir="/tmp"))
    try:
        shutil.copytree(SCRIPT.parents[1], made / "tegu", ignore=shutil.ignore_patterns("lab"))
        for name in ("proc", "sys", "dev", "tmp", "usr", "etc"):
            (made / "rootfs" / name).mkdir(parents=True)
        (made / "rootfs/bin").symlink_to("usr/bin")
        for name in ("lib", "lib64"):
            if Path("/", name).is_symlink():
                (made / "rootfs" / name).symlink_to(Path("/", name).readlink())
        config = example(rootless=True)
        config["process"]["terminal"] = False
        config["process"]["args"] = ["sh", "-c", "id -u; cat /proc/self/uid_map"]
        for name in ("uidMappings", "gidMappings"):
            config["linux"][name][0]["hostID"] = 65534
        usr = {"destination": "/usr", "source": "/usr", "options": ["rbind", "ro"]}
        config["mounts"].append(usr)
        (made / "config.json").write_text(json.dumps(config))
        made.chmod(0o755)
        for path in (made, made / "rootfs", *(made / "rootfs").iterdir()):
            os.chown(path, 65534, 65534, follow_symlinks=False)
        user = ["setpriv", "--reuid", "65534", "--regid", "65534", "--clear-groups"]
        python = [
            str(Path(sys.executable).resolve()),
            "-I",
            "-S",
            str(made / "tegu/oci/__main__.py"),
        ]
        words = ["--root", str(made / "state"), "run", "--bundle", str(made), "plain"]
        done = subprocess.run([*user, *python, *words], capture_output=True, text=True, check=False)
        if "namespaces" in done.stderr and "permitted" in done.stderr:
            pytest.skip(f"users may not make namespaces here: {done.stderr.strip()}")
        assert done.returncode == 0, done.stderr
        assert done.stdout.split() == ["0", "0", "65534", "1"]
        assert list((made / "state").iterdir()) == []
    finally:
        shutil.rmtree(made, ignore_errors=True)
