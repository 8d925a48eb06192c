#!/usr/bin/env python3
"""Asks the running kernel for each facility of the cloud kernel, by using it. Speaks TAP.

Needs root and nothing but Python and what the server image has; the interfaces are the kernel's own
(bpf(2), io_uring_setup(2), dm-ioctl.h ...), so that no library stands between. Usage:
facilities.py [NAME ...]; without names all of them.
"""

import base64
import contextlib
import ctypes
import errno
import fcntl
import glob
import hashlib
import mmap
import os
import platform
import select
import signal
import socket
import struct
import subprocess
import sys
import tempfile
import time
import zlib
from pathlib import Path

LIBC = ctypes.CDLL(None, use_errno=True)
SYS_BPF, SYS_KEXEC_FILE_LOAD = 321, 320  # x86-64
SYS_IO_URING_SETUP, SYS_IO_URING_ENTER = 425, 426
CGROUP = Path("/sys/fs/cgroup")
TESTS = {}


def facility(function):
    TESTS[function.__name__.replace("_", "-")] = function
    return function


def syscall(number, *arguments):
    result = LIBC.syscall(number, *arguments)
    if result < 0:
        code = ctypes.get_errno()
        raise OSError(code, os.strerror(code))
    return result


def run(*argv):
    done = subprocess.run(argv, capture_output=True, text=True)
    assert done.returncode == 0, f"{' '.join(argv)}: {done.stderr.strip()}"
    return done.stdout.strip()


def append(path, line):
    """Add a line to a file of the kernel's that cannot be sought in, as Python's "a" would."""
    fd = os.open(path, os.O_WRONLY | os.O_APPEND)
    try:
        os.write(fd, f"{line}\n".encode())
    finally:
        os.close(fd)


def until(what, seconds=60):
    """Wait for `what` to hold; returns its last value."""
    deadline = time.monotonic() + seconds
    while not (value := what()) and time.monotonic() < deadline:
        time.sleep(0.1)
    return value


def root_disk():
    """Return the name and the numbers of the disk that holds the root file system."""
    device = os.stat("/").st_dev
    path = Path(f"/sys/dev/block/{os.major(device)}:{os.minor(device)}").resolve()
    if (path / "partition").exists():
        path = path.parent
    return path.name, (path / "dev").read_text().strip()


@contextlib.contextmanager
def cgroup(controllers):
    """Yield a new control group with these controllers."""
    (CGROUP / "cgroup.subtree_control").write_text(" ".join(f"+{c}" for c in controllers))
    group = CGROUP / f"facilities-{os.getpid()}"
    group.mkdir()
    try:
        yield group
    finally:
        assert until(lambda: not (group / "cgroup.procs").read_text()), "processes are left"
        group.rmdir()


@contextlib.contextmanager
def loop(content):
    """Yield a read-only loop device with `content`."""
    with tempfile.NamedTemporaryFile(dir="/run") as file:
        file.write(content)
        file.flush()
        device = run("losetup", "--find", "--show", "--read-only", file.name)
        try:
            yield device
        finally:
            run("losetup", "--detach", device)


# --- Control groups and pressure -----------------------------------------------------------------


@facility
def psi():
    """A trigger on CPU pressure fires when there are more busy tasks than processors."""
    fd = os.open("/proc/pressure/cpu", os.O_RDWR | os.O_NONBLOCK)
    os.write(fd, b"some 100000 1000000\0")
    children = []
    try:
        for _ in range(3 * os.cpu_count()):
            if (pid := os.fork()) == 0:
                while True:
                    pass
            children.append(pid)
        poll = select.poll()
        poll.register(fd, select.POLLPRI)
        assert poll.poll(60_000), "no pressure was reported"
    finally:
        for pid in children:
            os.kill(pid, signal.SIGKILL)
            os.waitpid(pid, 0)
        os.close(fd)


@facility
def io_cost():
    """io.cost is switched on for the root disk, and off."""
    _, numbers = root_disk()
    file = CGROUP / "io.cost.qos"
    file.write_text(f"{numbers} enable=1 ctrl=auto")
    try:
        assert f"{numbers} enable=1" in file.read_text(), file.read_text()
        with cgroup(["io"]) as group:
            (group / "io.weight").write_text("default 50")
            assert "default 50" in (group / "io.weight").read_text()
    finally:
        file.write_text(f"{numbers} enable=0")


@facility
def io_latency():
    """A control group gets a latency target for the root disk."""
    _, numbers = root_disk()
    with cgroup(["io"]) as group:
        (group / "io.latency").write_text(f"{numbers} target=20000")
        assert f"{numbers} target=20000" in (group / "io.latency").read_text()


@facility
def bfq():
    """The root disk's queue is scheduled by bfq, reads, and goes back."""
    name, _ = root_disk()
    file = Path(f"/sys/block/{name}/queue/scheduler")
    before = file.read_text().partition("[")[2].partition("]")[0]
    file.write_text("bfq")
    try:
        assert "[bfq]" in file.read_text()
        with cgroup(["io"]) as group:
            assert (group / "io.bfq.weight").exists() or (group / "io.weight").exists()
        run("dd", f"if=/dev/{name}", "of=/dev/null", "bs=64k", "count=64", "iflag=direct")
    finally:
        file.write_text(before)


@facility
def cgroup_writeback():
    """What a group has written is charged to it when somebody else writes it back."""
    _, numbers = root_disk()
    size = 16 << 20

    def written(group):
        for line in (group / "io.stat").read_text().splitlines():
            if line.startswith(f"{numbers} "):
                return int(dict(w.split("=") for w in line.split()[1:])["wbytes"])
        return 0

    path = Path("/var/tmp") / f"facilities-{os.getpid()}"
    with cgroup(["io", "memory"]) as group:
        before = written(group)
        if (pid := os.fork()) == 0:
            (group / "cgroup.procs").write_text(str(os.getpid()))
            path.write_bytes(os.urandom(size))
            os._exit(0)
        assert os.waitpid(pid, 0)[1] == 0
        try:
            os.sync()
            charged = until(lambda: written(group) - before >= size)
            assert charged, f"{written(group) - before} of {size} bytes were charged"
        finally:
            path.unlink(missing_ok=True)


@facility
def namespaces():
    """One process gets one of each namespace, without privilege but its own user namespace."""
    if (pid := os.fork()) == 0:
        try:
            os.setuid(65534)
            os.unshare(
                os.CLONE_NEWUSER
                | os.CLONE_NEWNS
                | os.CLONE_NEWNET
                | os.CLONE_NEWIPC
                | os.CLONE_NEWUTS
                | os.CLONE_NEWPID
                | os.CLONE_NEWCGROUP
                | os.CLONE_NEWTIME
            )
        except OSError as e:
            os._exit(e.errno)
        os._exit(0)
    code = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    assert code == 0, os.strerror(code)


# --- eBPF ----------------------------------------------------------------------------------------


class Btf:
    """The kernel's types (Documentation/bpf/btf.rst)."""

    SIZES = {
        1: (4, 0),
        3: (12, 0),
        4: (0, 12),
        5: (0, 12),
        6: (0, 8),
        13: (0, 8),
        14: (4, 0),
        15: (0, 12),
        17: (4, 0),
        19: (0, 12),
    }
    STRUCT, FUNC = 4, 12

    def __init__(self):
        data = Path("/sys/kernel/btf/vmlinux").read_bytes()
        magic, _, _, head, types, length, strings, _ = struct.unpack_from("<HBBIIIII", data)
        assert magic == 0xEB9F, "no BTF"
        self.data, self.strings = data, head + strings
        self.found = {}
        position, end, number = head + types, head + types + length, 1
        while position < end:
            name, info, size = struct.unpack_from("<III", data, position)
            kind, count = info >> 24 & 31, info & 0xFFFF
            if kind in (self.STRUCT, self.FUNC):
                self.found[kind, self.text(name)] = (number, position, count, size)
            fixed, each = self.SIZES.get(kind, (0, 0))
            position += 12 + fixed + each * count
            number += 1

    def text(self, offset):
        start = self.strings + offset
        return self.data[start : self.data.index(b"\0", start)].decode()

    def id(self, kind, name):
        assert (kind, name) in self.found, f"BTF has no {name}"
        return self.found[kind, name][0]

    def size(self, name):
        self.id(self.STRUCT, name)
        return self.found[self.STRUCT, name][3]

    def offset(self, name, member):
        """Return where a member is in its structure, in bytes."""
        self.id(self.STRUCT, name)
        _, position, count, _ = self.found[self.STRUCT, name]
        for index in range(count):
            text, _, bits = struct.unpack_from("<III", self.data, position + 12 + 12 * index)
            if self.text(text) == member:
                return (bits & 0xFFFFFF) // 8
        raise AssertionError(f"{name} has no {member}")


def bpf(command, attributes):
    buffer = ctypes.create_string_buffer(attributes.ljust(144, b"\0"), 144)
    return syscall(SYS_BPF, command, buffer, 144)


def bpf_map(kind, key, value, entries, **more):
    return bpf(
        0,
        struct.pack(
            "<IIIIIII16sIIIIII",
            kind,
            key,
            value,
            entries,
            0,
            0,
            0,
            b"",
            0,
            more.get("btf_fd", 0),
            0,
            0,
            more.get("type_id", 0),
            0,
        ),
    )


def bpf_load(kind, code, attach_type=0, btf_id=0):
    program = ctypes.create_string_buffer(code, len(code))
    license_ = ctypes.create_string_buffer(b"GPL")
    log = ctypes.create_string_buffer(1 << 16)
    head = struct.pack(
        "<IIQQIIQ",
        kind,
        len(code) // 8,
        ctypes.addressof(program),
        ctypes.addressof(license_),
        1,
        len(log),
        ctypes.addressof(log),
    )
    head = head.ljust(68, b"\0") + struct.pack("<I", attach_type)
    try:
        return bpf(5, head.ljust(108, b"\0") + struct.pack("<I", btf_id))
    except OSError as e:
        raise AssertionError(f"{e.strerror}: {log.value.decode()[-300:]}") from e


def instruction(code, dst=0, src=0, offset=0, value=0):
    return struct.pack("<BBhi", code, src << 4 | dst, offset, value)


def counting(map_fd):
    """A program that adds one to the map's first value."""
    return b"".join(
        [
            instruction(0x62, 10, offset=-4),  # *(u32 *)(r10 - 4) = 0
            instruction(0xBF, 2, 10),
            instruction(0x07, 2, value=-4),  # r2 = r10 - 4
            instruction(0x18, 1, 1, value=map_fd),
            instruction(0),  # r1 = map
            instruction(0x85, value=1),  # bpf_map_lookup_elem
            instruction(0x15, 0, offset=2),  # if r0 == 0 goto +2
            instruction(0xB7, 1, value=1),
            instruction(0xDB, 0, 1),  # lock *(u64 *)r0 += r1
            instruction(0xB7, 0),
            instruction(0x95),  # return 0
        ]
    )


def first_value(map_fd):
    key, value = ctypes.create_string_buffer(4), ctypes.create_string_buffer(8)
    bpf(1, struct.pack("<IIQQ", map_fd, 0, ctypes.addressof(key), ctypes.addressof(value)))
    return struct.unpack("<Q", value.raw)[0]


@facility
def fentry():
    """A program at the entry of a function, found by its type, counts calls."""
    counter = bpf_map(2, 4, 8, 1)
    target = Btf().id(Btf.FUNC, "do_sys_openat2")
    program = bpf_load(26, counting(counter), 24, target)
    link = bpf(17, struct.pack("<QI", 0, program))
    before = first_value(counter)
    for _ in range(100):
        Path("/etc/hostname").exists()
        os.close(os.open("/etc/os-release", os.O_RDONLY))
    assert first_value(counter) - before >= 100, first_value(counter)
    for fd in (link, program, counter):
        os.close(fd)


@facility
def core():
    """Types tell where a structure's members are: what makes one object run on every kernel."""
    btf = Btf()
    assert 0 < btf.offset("task_struct", "pid") < btf.size("task_struct")
    assert glob.glob("/sys/kernel/btf/*"), "modules have no types"


@facility
def kprobe():
    """A probe on a kernel function, through tracefs, says which file is opened."""
    trace = Path("/sys/kernel/tracing")
    if not (trace / "kprobe_events").exists():
        run("mount", "-t", "tracefs", "tracefs", str(trace))
    append(trace / "kprobe_events", "p:facilities/opened do_sys_openat2 path=+0($arg2):ustring")
    try:
        (trace / "events/facilities/opened/enable").write_text("1")
        with contextlib.suppress(FileNotFoundError):
            open("/tmp/a-file-that-is-not-there").close()
        assert "a-file-that-is-not-there" in (trace / "trace").read_text()
    finally:
        (trace / "events/facilities/opened/enable").write_text("0")
        append(trace / "kprobe_events", "-:facilities/opened")


@facility
def xdp():
    """A program drops packets before the stack sees them, until it is taken away."""
    if (pid := os.fork()) == 0:
        try:
            _xdp()
        except (AssertionError, OSError) as e:
            print(f"# {e}", flush=True)
            os._exit(1)
        os._exit(0)
    assert os.waitpid(pid, 0)[1] == 0


def _xdp():
    os.unshare(os.CLONE_NEWNET)
    run("ip", "link", "set", "lo", "up")
    program = bpf_load(6, instruction(0xB7, 0, value=1) + instruction(0x95), 37)  # XDP_DROP
    index = socket.if_nametoindex("lo")
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as s:
        s.bind(("127.0.0.1", 0))
        s.settimeout(2)

        def arrives():
            s.sendto(b"x", s.getsockname())
            try:
                return s.recv(1) == b"x"
            except TimeoutError:
                return False

        assert arrives(), "the loopback does not work"
        link = bpf(28, struct.pack("<IIII", program, index, 37, 2))  # XDP_FLAGS_SKB_MODE
        assert not arrives(), "the packet was not dropped"
        os.close(link)
        assert until(arrives), "packets are still dropped"


@facility
def sched_ext():
    """A scheduler made of nothing but defaults takes over, runs the machine, and leaves."""
    btf = Btf()
    outer, inner = "bpf_struct_ops_sched_ext_ops", "sched_ext_ops"
    # A map of operations needs some types of its own: an integer.
    raw = struct.pack("<HBBIIIII", 0xEB9F, 1, 0, 24, 0, 16, 16, 5)
    raw += struct.pack("<IIII", 1, 1 << 24, 4, 32) + b"\0int\0"
    buffer = ctypes.create_string_buffer(raw, len(raw))
    types = bpf(18, struct.pack("<QQII", ctypes.addressof(buffer), 0, len(raw), 0))
    operations = bpf_map(26, 4, btf.size(outer), 1, btf_fd=types, type_id=btf.id(4, outer))
    value = bytearray(btf.size(outer))
    at = btf.offset(outer, "data") + btf.offset(inner, "name")
    value[at : at + 10] = b"facilities"
    key = ctypes.create_string_buffer(4)
    content = ctypes.create_string_buffer(bytes(value), len(value))
    state = Path("/sys/kernel/sched_ext/state")
    place = struct.pack(
        "<IIQQQ", operations, 0, ctypes.addressof(key), ctypes.addressof(content), 0
    )
    bpf(2, place)
    try:
        assert until(lambda: state.read_text().strip() == "enabled"), state.read_text()
        assert Path("/sys/kernel/sched_ext/root/ops").read_text().startswith("facilities")
        run("true")
    finally:
        bpf(3, struct.pack("<IIQ", operations, 0, ctypes.addressof(key)))
    assert until(lambda: state.read_text().strip() == "disabled"), state.read_text()


# --- Disks and file systems ----------------------------------------------------------------------

# mkfs.erofs of a directory with the file `hello`, which says "from erofs".
EROFS = (
    "c-muN7zLwX6pU2x=;7A~zS8_>n1O5_1{DS-ENU2WYiFd?eik5p>&V2Q1Lgk*0%Um=IL!oSs{+~TP_{bI33_^Z8L2rr"
    "`MAtq(#XibjbuKuqtlA=a}`pH^3#gBMiav*7zLwX6pVsVFbYP&C>Ztt0QrU&AO"
)


@facility
def erofs():
    """A read-only image of erofs is mounted and read."""
    content = zlib.decompress(base64.b85decode(EROFS))
    with loop(content) as device, tempfile.TemporaryDirectory() as directory:
        run("mount", "-t", "erofs", "-o", "ro", device, directory)
        try:
            assert (Path(directory) / "hello").read_text() == "from erofs\n"
        finally:
            run("umount", directory)


def dm(command, name, device=0, flags=0, payload=b"", targets=0):
    """One ioctl of the device mapper (linux/dm-ioctl.h); returns the device's number."""
    size = 312 + len(payload)
    head = struct.pack(
        "<3I5iIIQ128s129s7x",
        4,
        0,
        0,
        size,
        312,
        targets,
        0,
        flags,
        0,
        0,
        device,
        name.encode(),
        b"",
    )
    buffer = bytearray(head + payload)
    with open("/dev/mapper/control", "rb") as control:
        fcntl.ioctl(control, 3 << 30 | 312 << 16 | 0xFD << 8 | command, buffer, True)
    return struct.unpack_from("<Q", buffer, 40)[0]


@facility
def dm_verity():
    """Sealed blocks are read; a block that was changed is not."""
    blocks = [bytes([n]) * 4096 for n in (1, 2)]
    salt = b"salt"
    tree = b"".join(hashlib.sha256(salt + b).digest() for b in blocks).ljust(4096, b"\0")
    root = hashlib.sha256(salt + tree).hexdigest()

    def read(content):
        with loop(content) as device:
            name = f"facilities-{os.getpid()}"
            table = f"1 {device} {device} 4096 4096 2 2 sha256 {root} {salt.hex()}".encode()
            padded = table + b"\0" * (8 - len(table) % 8)
            spec = struct.pack("<QQiI16s", 0, 16, 0, 40 + len(padded), b"verity") + padded
            number = dm(3, name)
            try:
                dm(9, name, flags=1, payload=spec, targets=1)  # DM_READONLY_FLAG
                dm(6, name)
                minor = (number & 0xFF) | (number >> 12 & 0xFFF00)
                assert until(Path(f"/dev/dm-{minor}").exists), "no device appeared"
                with open(f"/dev/dm-{minor}", "rb", buffering=0) as f:
                    return [os.pread(f.fileno(), 4096, at) for at in (0, 4096)]
            finally:
                until(lambda: _removed(name))

    assert read(b"".join(blocks) + tree) == blocks
    try:
        read(blocks[0] + b"!" + blocks[1][1:] + tree)
    except OSError as e:
        assert e.errno == errno.EIO, e
    else:
        raise AssertionError("a changed block was read")


def _removed(name):
    try:
        dm(4, name)
    except OSError as e:
        if e.errno == errno.EBUSY:
            return False  # udev looks at it
        raise
    return True


# --- Network -------------------------------------------------------------------------------------


@facility
def bbr():
    """A connection uses BBR, paced by fq."""
    run("tc", "qdisc", "replace", "dev", "lo", "root", "fq")
    try:
        with socket.create_server(("127.0.0.1", 0)) as server, socket.socket() as client:
            client.setsockopt(socket.IPPROTO_TCP, socket.TCP_CONGESTION, b"bbr")
            client.connect(server.getsockname())
            peer, _ = server.accept()
            with peer:
                client.sendall(b"x" * 100_000)
                got = 0
                while got < 100_000:
                    got += len(peer.recv(65536))
            used = client.getsockopt(socket.IPPROTO_TCP, socket.TCP_CONGESTION, 16)
            assert used.rstrip(b"\0") == b"bbr", used
    finally:
        run("tc", "qdisc", "delete", "dev", "lo", "root")


# --- Input, output and memory --------------------------------------------------------------------


@facility
def io_uring():
    """A file is read through the rings."""
    params = ctypes.create_string_buffer(120)
    ring = syscall(SYS_IO_URING_SETUP, 4, params)
    entries, cq_entries = struct.unpack_from("<II", params.raw)
    sq = struct.unpack_from("<7I", params.raw, 40)  # head tail mask entries flags dropped array
    cq = struct.unpack_from("<6I", params.raw, 80)  # head tail mask entries overflow cqes
    shared = mmap.mmap(ring, max(sq[6] + entries * 4, cq[5] + cq_entries * 16), mmap.MAP_SHARED)
    queue = mmap.mmap(ring, entries * 64, mmap.MAP_SHARED, offset=0x10000000)
    wanted = Path("/etc/os-release").read_bytes()
    target = ctypes.create_string_buffer(len(wanted))
    file = os.open("/etc/os-release", os.O_RDONLY)
    # IORING_OP_READ from the start of the file
    queue[:40] = struct.pack(
        "<BBHiQQIIQ", 22, 0, 0, file, 0, ctypes.addressof(target), len(wanted), 0, 42
    )
    shared[sq[6] : sq[6] + 4] = struct.pack("<I", 0)
    shared[sq[1] : sq[1] + 4] = struct.pack("<I", 1)
    assert syscall(SYS_IO_URING_ENTER, ring, 1, 1, 1, None, 0) == 1
    data, result = struct.unpack_from("<Qi", shared, cq[5])
    assert (data, result) == (42, len(wanted)), (data, result)
    assert target.raw == wanted
    os.close(file)
    os.close(ring)


@facility
def idle_pages():
    """Pages are marked idle, and those that are touched are seen to be."""
    count = 256
    memory = mmap.mmap(-1, count * 4096, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    memory.madvise(mmap.MADV_NOHUGEPAGE)

    def touch():
        for page in range(count):
            memory[page * 4096] = 1

    touch()
    address = ctypes.addressof(ctypes.c_char.from_buffer(memory))
    with open("/proc/self/pagemap", "rb") as f:
        f.seek(address // 4096 * 8)
        frames = [e & (1 << 55) - 1 for e in struct.unpack(f"<{count}Q", f.read(count * 8))]
    with open("/sys/kernel/mm/page_idle/bitmap", "r+b", buffering=0) as bitmap:

        def idle():
            found = 0
            for frame in frames:
                bitmap.seek(frame // 64 * 8)
                found += struct.unpack("<Q", bitmap.read(8))[0] >> frame % 64 & 1
            return found

        for frame in frames:
            bitmap.seek(frame // 64 * 8)
            bitmap.write(struct.pack("<Q", 1 << frame % 64))
        # A few pages may not be on a list of the kernel's yet; those cannot be marked.
        marked = idle()
        assert marked > count // 2, f"{marked} of {count} pages could be marked"
        # The processor may remember that the pages were used: changing their protection and back
        # makes it forget, as the kernel itself does not for this.
        for protection in (mmap.PROT_READ, mmap.PROT_READ | mmap.PROT_WRITE):
            LIBC.mprotect(ctypes.c_void_p(address), ctypes.c_size_t(count * 4096), protection)
        touch()
        assert idle() < marked // 4, f"{idle()} of {marked} pages still count as idle"


# --- Kernels -------------------------------------------------------------------------------------


@facility
def kexec():
    """A kernel is loaded for a quick restart, and unloaded."""
    release = platform.release()
    images = [f"/boot/vmlinuz-{release}", *sorted(glob.glob("/boot/vmlinuz*"))]
    image = next(path for path in images if os.path.exists(path))
    loaded = Path("/sys/kernel/kexec_loaded")
    line = b"console=ttyS0\0"
    kernel = os.open(image, os.O_RDONLY)
    try:
        syscall(SYS_KEXEC_FILE_LOAD, kernel, -1, len(line), line, 4)  # KEXEC_FILE_NO_INITRAMFS
        assert loaded.read_text().strip() == "1"
    finally:
        os.close(kernel)
        syscall(SYS_KEXEC_FILE_LOAD, -1, -1, 0, None, 1)  # KEXEC_FILE_UNLOAD
    assert loaded.read_text().strip() == "0"


@facility
def livepatch():
    """A function of the running kernel is replaced, and put back."""
    modules = Path("/usr/lib/linux-selftests/livepatch")
    before = Path("/proc/cmdline").read_text()
    state = Path("/sys/kernel/livepatch/livepatch_sample")
    run("insmod", str(modules / "livepatch-sample.ko"))
    try:
        assert until(lambda: (state / "transition").read_text().strip() == "0"), "it stalls"
        assert Path("/proc/cmdline").read_text() == "this has been live patched\n"
        (state / "enabled").write_text("0")
        assert until(lambda: not state.exists()), "it does not go"
        assert Path("/proc/cmdline").read_text() == before
    finally:
        if state.exists():
            (state / "enabled").write_text("0")
        until(lambda: subprocess.run(["rmmod", "livepatch-sample"]).returncode == 0)


def main():
    names = sys.argv[1:] or list(TESTS)
    unknown = [n for n in names if n not in TESTS]
    if unknown:
        print(f"Bail out! no test {unknown[0]}; there are {', '.join(TESTS)}")
        return 2
    print("TAP version 13")
    print(f"1..{len(names)}")
    failed = 0
    for number, name in enumerate(names, 1):
        try:
            TESTS[name]()
        except (AssertionError, OSError, struct.error, StopIteration) as e:
            failed += 1
            print(f"# {type(e).__name__}: {e}")
            print(f"not ok {number} {name}", flush=True)
        else:
            print(f"ok {number} {name}", flush=True)
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
