"""Attempts to break out of a box, to look around or to disturb: each must fail.

A box's programs here are this machine's Python, with ctypes to reach what Python does not offer.
"""

from __future__ import annotations

import ctypes
import os
import socket
import threading
from collections.abc import Callable
from pathlib import Path

import pytest
from tests.sandbox.conftest import Served, descendants, marked_sleep, pids_of, until

from tegu.errors import SandboxError
from tegu.sandbox import Sandbox, run, wire, wireless
from tegu.sandbox.client import Result, box_spec, supervisor
from tegu.sandbox.launch import connect
from tegu.sandbox.spec import BoxSpec, RunSpec

# Numbers of asm/unistd_64.h and asm-generic/unistd.h; those from 424 on are common.
_MACHINE = os.uname().machine
_X86 = _MACHINE == "x86_64"
NUMBERS = {
    "ptrace": 101 if _X86 else 117,
    "keyctl": 250 if _X86 else 219,
    "add_key": 248 if _X86 else 217,
    "request_key": 249 if _X86 else 218,
    "userfaultfd": 323 if _X86 else 282,
    "io_uring_setup": 425,
    "bpf": 321 if _X86 else 280,
    "perf_event_open": 298 if _X86 else 241,
    "open_by_handle_at": 304 if _X86 else 265,
    "mount": 165 if _X86 else 40,
    "umount2": 166 if _X86 else 39,
    "pivot_root": 155 if _X86 else 41,
    "unshare": 272 if _X86 else 97,
    "setns": 308 if _X86 else 268,
    "fsopen": 430,
    "open_tree": 428,
    "mount_setattr": 442,
    "init_module": 175 if _X86 else 105,
    "kexec_load": 246 if _X86 else 104,
    "reboot": 169 if _X86 else 142,
    "swapon": 167 if _X86 else 224,
    "settimeofday": 164 if _X86 else 170,
    "process_vm_writev": 311 if _X86 else 271,
    "pidfd_getfd": 438,
    "sethostname": 170 if _X86 else 161,
    "quotactl": 179 if _X86 else 60,
    "acct": 163 if _X86 else 89,
    "syslog": 103 if _X86 else 116,
}


def python(box: Sandbox | None, script: str) -> Result:
    """Run a Python script in a box, or in one of its own."""
    start = run if box is None else box.run
    return start(["python3", "-c", script], timeout=60)


@pytest.mark.parametrize("name", NUMBERS)
def test_dangerous_system_calls_are_refused(box: Sandbox, name: str) -> None:
    script = (
        "import ctypes, errno; libc = ctypes.CDLL(None, use_errno=True); "
        f"r = libc.syscall({NUMBERS[name]}, 0, 0, 0, 0, 0, 0); e = ctypes.get_errno(); "
        "print(r, errno.errorcode.get(e))"
    )
    assert python(box, script).text.strip() in ("-1 EPERM", "-1 ENOSYS")


def test_clone_makes_no_namespaces(box: Sandbox) -> None:
    number = 56 if _X86 else 220
    for flag in (0x10000000, 0x20000000, 0x40000000, 0x00020000):
        script = (
            "import ctypes, os; libc = ctypes.CDLL(None, use_errno=True); "
            f"r = libc.syscall({number}, {flag} | 17, 0, 0, 0, 0); "
            "os._exit(9) if r == 0 else print(r, ctypes.get_errno())"
        )
        assert python(box, script).text.startswith("-1 ")
    script = (
        "import ctypes; libc = ctypes.CDLL(None, use_errno=True); "
        "print(libc.syscall(435, (ctypes.c_uint64 * 11)(0x10000000), 88), ctypes.get_errno())"
    )
    assert python(box, script).text.split() == ["-1", "38"]


@pytest.mark.skipif(not _X86, reason="32-bit calls on a 64-bit kernel are of x86 only")
def test_the_32_bit_door_is_shut(box: Sandbox) -> None:
    # mov eax, 20 (getpid); int 0x80; ret
    script = (
        "import ctypes, mmap; m = mmap.mmap(-1, 4096, prot=7); "
        "m.write(bytes.fromhex('b814000000cd80c3')); "
        "a = ctypes.addressof(ctypes.c_char.from_buffer(m)); "
        "print('passed', ctypes.CFUNCTYPE(ctypes.c_int)(a)())"
    )
    done = python(box, script)
    assert "passed" not in done.text
    assert done.signal == 31  # SIGSYS


def test_no_raw_packet_or_vsock_sockets(box: Sandbox) -> None:
    script = """
import socket
for family, kind in ((2, 3), (10, 3), (17, 3), (17, 2), (40, 1), (38, 5), (16, 3)):
    for protocol in (0, 1, 9, 12, 15, 16):
        try:
            s = socket.socket(family, kind | 0x80000, protocol)
        except OSError:
            continue
        if (family, protocol) != (16, 0):
            print("open", family, kind, protocol)
"""
    assert python(box, script).text == ""


def test_privileges_cannot_be_gained(box: Sandbox) -> None:
    status = box.run("grep -E '^(Cap|NoNewPrivs|Seccomp:)' /proc/self/status").text
    values = dict(line.split(":\t") for line in status.splitlines())
    assert values["NoNewPrivs"] == "1"
    assert values["Seccomp"] == "2"
    dangerous = sum(1 << n for n in (1 + 1, 12, 13, 16, 17, 19, 21, 22, 24, 25, 27, 34, 38, 39))
    for name in ("CapPrm", "CapEff", "CapInh", "CapAmb"):
        assert int(values[name], 16) & dangerous == 0
    script = (
        "import ctypes; libc = ctypes.CDLL(None, use_errno=True); "
        "h = (ctypes.c_uint32 * 2)(0x20080522, 0); d = (ctypes.c_uint32 * 6)(*[0xffffffff] * 6); "
        "print(libc.capset(h, d), libc.prctl(24, 0, 0, 0, 0) >= 0)"
    )
    assert python(box, script).text.split()[0] == "-1"


def test_no_program_brings_capabilities_along(box: Sandbox) -> None:
    """Neither root's rule of execve(2) nor set-user-ID files nor file capabilities give any."""
    script = """
import os, shutil, struct, subprocess
for name in ("suid", "caps"):
    shutil.copy("/bin/grep", f"/tmp/{name}")
os.chmod("/tmp/suid", 0o6755)
try:
    # VFS_CAP_REVISION_2, all permitted and effective (linux/capability.h)
    words = (0x02000001, 0xffffffff, 0, 0xffffffff, 0)
    os.setxattr("/tmp/caps", "security.capability", struct.pack("<5I", *words))
except OSError:
    pass
def demote():
    os.setresgid(1000, 1000, 1000)
    os.setresuid(1000, 1000, 1000)
for program in ("/tmp/suid", "/tmp/caps", "/bin/grep"):
    for before in (None, demote):
        done = subprocess.run([program, "-E", "^(CapEff|CapPrm|Uid)", "/proc/self/status"],
                              preexec_fn=before, capture_output=True, text=True)
        print(before is None, *done.stdout.split())
"""
    lines = python(box, script).text.splitlines()
    assert len(lines) == 6
    kept = int(box.run("grep CapPrm /proc/self/status").text.split()[1], 16)
    for line in lines:
        as_root, _, uid, effective_uid, _, _, _, permitted, _, effective = line.split()
        allowed = kept if as_root == "True" else 0
        assert int(permitted, 16) & ~allowed == 0
        assert int(effective, 16) & ~allowed == 0
        assert uid == effective_uid


def test_root_in_a_box_is_nobody_on_the_host(served: Served, box: Sandbox) -> None:
    if os.geteuid() != 0:
        pytest.skip("the supervisor runs as this user, which is then root in the box")
    sleep = marked_sleep()
    process = box.start(sleep)  # held: a program whose `Process` is dropped is killed
    assert until(lambda: bool(pids_of(sleep)))
    for pid in pids_of(sleep):
        uid = int(Path(f"/proc/{pid}/status").read_text().split("Uid:")[1].split()[0])
        assert uid >= 0x6F00_0000
    process.kill()
    process.wait()


def test_nothing_of_the_host_is_in_view(box: Sandbox) -> None:
    script = """
import os
seen = set()
for d in os.listdir("/proc"):
    if d.isdigit():
        seen.add(open(f"/proc/{d}/comm").read().strip())
print(sorted(seen))
for p in ("/home", "/root/.ssh", "/work", "/etc/shadow", "/etc/machine-id", "/run/systemd"):
    if os.path.exists(p): print("sees", p)
print([m.split()[1] for m in open("/proc/mounts")])
"""
    lines = python(box, script).text.splitlines()
    assert not [line for line in lines if line.startswith("sees")]
    assert len(eval(lines[0])) <= 2
    assert set(eval(lines[-1])) <= {
        *("/", "/usr", "/bin", "/sbin", "/lib", "/lib32", "/lib64", "/libx32"),
        *("/dev", "/dev/shm", "/dev/pts", "/proc"),
        *(f"/dev/{n}" for n in ("null", "zero", "full", "random", "urandom", "tty")),
    }


def test_proc_of_the_kernel_cannot_be_written(box: Sandbox) -> None:
    script = """
import os
for path in ("/proc/sys/kernel/core_pattern", "/proc/sys/kernel/hostname", "/proc/sysrq-trigger",
             "/proc/sys/vm/drop_caches", "/proc/sys/kernel/modprobe", "/proc/sys/fs/file-max",
             "/proc/sys/net/ipv4/ip_forward", "/proc/sys/kernel/ns_last_pid", "/proc/irq",
             "/proc/acpi/wakeup", "/proc/mtrr", "/proc/sys/kernel/overflowuid"):
    try:
        fd = os.open(path, os.O_WRONLY)
        os.write(fd, b"1")
        print("wrote", path)
    except OSError:
        pass
for path in ("/proc/kcore", "/proc/kmsg", "/proc/kpageflags", "/proc/timer_list", "/dev/mem",
             "/proc/1/mem", "/proc/1/environ", "/proc/1/root/etc", "/proc/1/fd/60"):
    try:
        os.open(path, os.O_RDONLY)
        print("opened", path)
    except OSError:
        pass
try:
    print("entries", os.listdir("/proc/1/fd"))
except OSError:
    pass
"""
    assert python(box, script).text == ""


def test_mounts_of_the_box_cannot_be_changed(box: Sandbox) -> None:
    for command in (
        "mount -t tmpfs none /tmp",
        "mount -o remount,rw /usr",
        "umount /usr",
        "umount /proc",
        "mount --bind / /mnt",
        "unshare -rm true",
        "chroot / mount -t proc none /proc",
    ):
        assert box.run(command).exit_code != 0
    assert box.run("touch /usr/x || touch /dev/x").exit_code != 0


def test_device_nodes_cannot_be_made(box: Sandbox) -> None:
    for command in ("mknod /tmp/d b 254 0", "mknod /tmp/c c 1 1"):
        assert box.run(command).exit_code != 0


def test_chroot_does_not_lead_out(box: Sandbox) -> None:
    script = """
import os
os.makedirs("/tmp/jail", exist_ok=True)
fd = os.open("/", os.O_RDONLY)
os.chroot("/tmp/jail")
os.fchdir(fd)
for _ in range(64):
    os.chdir("..")
os.chroot(".")
print(sorted(os.listdir("/")))
"""
    inside = {e.name for e in box.files.list("/")}
    assert set(eval(python(box, script).text)) == inside


def test_the_first_process_cannot_be_traced_or_read(box: Sandbox) -> None:
    script = """
import ctypes, os
libc = ctypes.CDLL(None, use_errno=True)
print(libc.ptrace(16, 1, 0, 0), libc.ptrace(0x4206, 1, 0, 0))
for name in ("exe", "cwd", "root"):
    try:
        print("read", os.readlink(f"/proc/1/{name}"))
    except OSError:
        pass
"""
    assert python(box, script).text.split("\n")[0] == "-1 -1"
    assert "read" not in python(box, script).text


def test_the_supervisors_program_cannot_be_overwritten(path: Path, tmp_path: Path) -> None:
    """CVE-2019-5736: a box's program that is a link to /proc/self/exe, and waits to write."""
    script = """
import os
for path in ("/proc/self/exe", "/proc/1/exe"):
    for flags in (os.O_WRONLY, os.O_RDWR, os.O_WRONLY | os.O_TRUNC):
        try:
            os.open(path, flags)
            print("opened", path)
        except OSError:
            pass
"""
    with Sandbox.create() as box:
        box.files.write("/tmp/evil", "#!/proc/self/exe\n" + script)
        box.run("chmod 755 /tmp/evil; ln -s /proc/self/exe /tmp/self").check()
        assert "opened" not in python(box, script).text
        for program in ("/tmp/evil", "/tmp/self"):
            try:
                assert "opened" not in box.run([program, "-c", script]).text
            except SandboxError as e:
                assert "cannot start" in e.message


def test_the_interpreter_of_the_supervisor_is_on_a_read_only_mount(served: Served) -> None:
    text = Path(f"/proc/{served.supervisor}/mountinfo").read_text()
    for line in text.splitlines():
        fields = line.split()
        kind, flags = fields[fields.index("-") + 1], fields[5].split(",")
        if fields[4] == str(served.state):  # what it keeps: no program, and no box sees it
            assert {"noexec", "nosuid", "nodev"} <= set(flags)
        elif kind not in ("proc", "cgroup", "cgroup2"):
            assert "ro" in flags


def test_no_descriptor_and_no_directory_leaks_in(path: Path, box: Sandbox) -> None:
    """CVE-2024-21626: a descriptor of the host that is still open, or a directory through it."""
    script = """
import os
print(sorted(os.listdir("/proc/self/fd"), key=int), os.getcwd())
for fd in range(3, 1024):
    try:
        os.fchdir(fd)
        print("entered", fd, os.getcwd())
    except OSError:
        pass
"""
    for where in (None, box):
        seen = python(where, script).text
        assert seen.splitlines()[0] == "['0', '1', '2', '3'] /"
        assert "entered" not in seen
    inside = {e.name for e in box.files.list("/")}
    for number in range(3, 70):
        with pytest.raises(SandboxError):
            run(["pwd"], cwd=f"/proc/self/fd/{number}", box=box_spec(init=False))
        for start in (run, box.run):
            try:
                seen = start(["ls"], cwd=f"/proc/self/fd/{number}/..").text
            except SandboxError:
                continue
            assert set(seen.split()) - {"tmp"} <= inside  # a first process holds its own "/"


@pytest.mark.parametrize("flags", [os.O_DIRECTORY, os.O_DIRECTORY | os.O_PATH, os.O_PATH])
def test_a_directory_cannot_be_handed_in(path: Path, flags: int, tmp_path: Path) -> None:
    target = tmp_path if flags & os.O_DIRECTORY else Path(os.devnull)
    fd, null = os.open(target, flags), os.open(os.devnull, os.O_RDWR)
    request = {"op": "once", "n": 1, "run": {"argv": ["ls", "/proc/self/fd/0/"]}}
    try:
        with connect(path) as link:
            wire.send(link, request, [fd, null, null])
            answer, _ = wire.receive(link)
    finally:
        os.close(fd)
        os.close(null)
    assert answer is not None
    assert "a directory is no stream" in answer["error"]["message"]


def test_signals_do_not_reach_the_host(box: Sandbox) -> None:
    victim = os.fork()
    if victim == 0:
        threading.Event().wait(60)
        os._exit(0)
    try:
        python(box, f"import os\ntry: os.kill({victim}, 9)\nexcept OSError: pass")
        python(None, "import os, signal\nsignal.signal(15, lambda *a: 0)\nos.kill(-1, 15)")
        python(box, "import os\ntry: os.kill(0, 9)\nexcept OSError: pass")
        assert os.waitpid(victim, os.WNOHANG) == (0, 0)
    finally:
        os.kill(victim, 9)
        os.waitpid(victim, 0)
    assert box.run(["true"]).exit_code == 0


def test_abstract_sockets_of_the_host_and_of_neighbours(path: Path, box: Sandbox) -> None:
    name = f"\0tegu-attack-{os.getpid()}"
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(name)
    listener.listen()
    connect = (
        "import socket; s = socket.socket(socket.AF_UNIX)\n"
        "try: s.connect(NAME); print('connected')\nexcept OSError as e: print('no')"
    )
    with listener:
        assert python(box, connect.replace("NAME", repr(name))).text == "no\n"
    with Sandbox.create() as neighbour:
        serve = (
            "import socket, sys; s = socket.socket(socket.AF_UNIX); s.bind('\\0neighbour'); "
            "s.listen(); print('up', flush=True); sys.stdin.read()"
        )
        process = neighbour.start(["python3", "-c", serve])
        assert next(process.output()) == ("stdout", b"up\n")
        assert python(box, connect.replace("NAME", "'\\0neighbour'")).text == "no\n"
        process.kill()


def test_nothing_can_be_typed_into_a_terminal(path: Path) -> None:
    """TIOCSTI on a terminal that the host shares with the box (CVE-2016-2568)."""
    main, terminal = os.openpty()
    script = """
import fcntl, os, sys
for request in (0x5412, 0x100005412, 0x541C):
    try:
        fcntl.ioctl(0, request & 0xFFFFFFFF, b"x")
        print("typed")
    except OSError as e:
        print(e.errno)
import ctypes
libc = ctypes.CDLL(None, use_errno=True)
print(libc.syscall(NUMBER, 0, ctypes.c_ulong(0x700005412), b"x"), ctypes.get_errno())
""".replace("NUMBER", "16" if _X86 else "29")
    # The terminal itself is handed over as stdin, as `tegu run` does.
    out_r, out_w = os.pipe()
    link = connect(path)
    run_spec = RunSpec(["python3", "-c", script])
    request = {"op": "once", "n": 1, "box": BoxSpec().to_json(), "run": run_spec.to_json()}
    wire.send(link, request, [terminal, out_w, out_w])
    os.close(out_w)
    answer, _ = wire.receive(link)
    link.close()
    said = os.read(out_r, 65536).decode()
    for fd in (out_r, main, terminal):
        os.close(fd)
    assert answer is not None
    assert said.split() == ["1", "1", "1", "-1", "1"], said


def test_file_copies_are_not_led_out_by_links(box: Sandbox, tmp_path: Path) -> None:
    secret = tmp_path / "secret"
    secret.write_text("of the host")
    box.run(f"ln -s {secret} /tmp/a; ln -s ../../../..{secret} /tmp/b; ln -s / /tmp/c").check()
    for name in ("/tmp/a", "/tmp/b", f"/tmp/c{secret}", f"/../../..{secret}"):
        with pytest.raises(SandboxError, match="No such file"):
            box.files.read(name)
    for name in ("/proc/self/root", "/proc/1/root", "/proc/self/cwd", "/proc/self/fd/60"):
        with pytest.raises(SandboxError):
            box.files.read(f"{name}{secret}")
    with pytest.raises(SandboxError):
        box.files.write("/tmp/a", "overwritten")
    assert secret.read_text() == "of the host"


def test_a_race_of_links_does_not_lead_a_copy_out(box: Sandbox, tmp_path: Path) -> None:
    outside = tmp_path / "victim"
    outside.mkdir()
    (outside / "file").write_text("of the host")
    # A directory that turns into a link out of the box and back, as fast as it goes.
    script = f"""
import os
os.makedirs("/tmp/d", exist_ok=True)
open("/tmp/d/file", "w").write("of the box")
os.symlink("{outside}", "/tmp/l")
print("up", flush=True)
import ctypes
libc = ctypes.CDLL(None)
while True:
    libc.renameat2(-100, b"/tmp/d", -100, b"/tmp/l", 2)
"""
    racer = box.start(["python3", "-c", script])
    assert next(racer.output()) == ("stdout", b"up\n")
    seen = set()
    for i in range(300):
        try:
            box.files.write("/tmp/d/file", f"of the box {i}")
            seen.add(box.files.read("/tmp/d/file")[:10])
        except SandboxError:
            continue
    racer.kill()
    racer.wait()
    assert seen <= {b"of the box", b""}
    assert (outside / "file").read_text() == "of the host"
    assert [p.name for p in outside.iterdir()] == ["file"]


def test_a_fork_bomb_stays_in_its_box(path: Path) -> None:
    bomb = """
import os, time
n = 0
try:
    while True:
        if os.fork() == 0:
            time.sleep(60)
            os._exit(0)
        n += 1
except OSError as e:
    print(n, e.errno, flush=True)
"""
    done = run(["python3", "-c", bomb], timeout=60, box=box_spec(pids=50))
    count, number = map(int, done.text.split())
    assert number == 11  # EAGAIN
    assert count < 50
    wild = run(":(){ :|:& };:; sleep 1000", timeout=1.0, box=box_spec(pids=64))
    assert wild.exit_code != 0 or wild.timed_out
    assert run(["echo", "alive"]).text == "alive\n"


def test_a_fork_bomb_of_many_users_stays_in_its_box(path: Path) -> None:
    """RLIMIT_NPROC counts for each user id, and root in a box may take others."""
    bomb = """
import os, time
reader, writer = os.pipe()
for uid in range(8):
    try:
        pid = os.fork()
    except OSError:
        break
    if pid == 0:
        os.setuid(uid)
        try:
            while True:
                if os.fork() == 0:
                    os.write(writer, b"x")
                    time.sleep(1000)
        except OSError:
            os.write(writer, b"end" )
            time.sleep(1000)
    said = b""
    while b"end" not in said:
        said += os.read(reader, 100)
print(sum(d.isdigit() for d in os.listdir("/proc")))
"""
    counted = next(f for f in supervisor("doctor") if f["name"] == "pids")
    for spec in (box_spec(pids=20), box_spec(pids=20, init=False)):
        count = int(run(["python3", "-c", bomb], box=spec).text)
        if "cgroup" in counted["detail"]:
            assert 15 < count <= 20
        else:
            assert "each user id" in counted["detail"]
            assert 20 < count <= 8 * 20


def test_a_neighbour_is_not_counted_in(path: Path) -> None:
    """Processes are counted for each box, although boxes share their ids on the host."""
    with Sandbox.create(pids=20) as one, Sandbox.create(pids=20) as other:
        sleep = marked_sleep()
        process = one.start(f"for i in $(seq 100); do {' '.join(sleep)} & done; wait")
        assert until(lambda: len(pids_of(sleep)) >= 15)
        assert other.run("true & true & wait; echo fine").text == "fine\n"
        process.kill()


def test_a_descriptor_bomb_is_bounded(box: Sandbox) -> None:
    script = """
import os, resource
fds = []
try:
    while True: fds.append(os.open("/dev/null", os.O_RDONLY))
except OSError as e:
    print(len(fds), e.errno)
for hard in (2048, 1 << 20):
    try:
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
        print("raised")
    except (OSError, ValueError):
        pass
"""
    done = python(box, script).text.splitlines()
    count, number = map(int, done[0].split())
    assert number == 24  # EMFILE
    assert count < 1024
    assert len(done) == 1


def test_a_message_of_many_descriptors_does_not_harm_the_supervisor(path: Path) -> None:
    link = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    link.connect(str(path))
    null = os.open(os.devnull, os.O_RDONLY)
    for _ in range(50):
        socket.send_fds(link, [b'{"op":"list","n":1}'], [null] * 60)
        link.recv(65536)
    os.close(null)
    link.close()
    assert run(["true"]).exit_code == 0


@pytest.mark.parametrize("receive", [wire.receive, wireless.receive])
def test_an_empty_message_leaves_no_descriptor(receive: Callable[..., object]) -> None:
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    reader, writer = os.pipe()
    with ours, theirs, os.fdopen(reader, "rb") as pipe:
        socket.send_fds(theirs, [b""], [writer])
        os.close(writer)
        receive(ours)
        assert pipe.read() == b""  # the end: nobody holds the writer


def test_the_first_process_cannot_be_killed_from_within(box: Sandbox) -> None:
    box.run("kill -9 1; kill -TERM 1; kill -STOP 1; kill -INT 1")
    assert box.run("echo still").text == "still\n"


def test_keys_of_the_host_are_out_of_reach(box: Sandbox) -> None:
    assert box.run("cat /proc/keys").stdout == b""


def test_shared_memory_is_a_boxs_own(path: Path, box: Sandbox) -> None:
    libc = ctypes.CDLL(None, use_errno=True)
    segment = libc.shmget(0x7E6, 4096, 0o1666)
    assert segment >= 0
    try:
        find = "import ctypes; print(ctypes.CDLL(None).shmget(0x7E6, 4096, 0))"
        assert python(box, find).text == "-1\n"
    finally:
        libc.shmctl(segment, 0, None)


def test_the_supervisor_has_no_stray_children(served: Served, box: Sandbox) -> None:
    sleep = marked_sleep()
    box.run(f"(setsid {' '.join(sleep)} &)")
    assert until(lambda: bool(pids_of(sleep)))
    assert set(pids_of(sleep)) <= descendants(served.keeper.pid)
    box.kill()
    assert until(lambda: not pids_of(sleep))
