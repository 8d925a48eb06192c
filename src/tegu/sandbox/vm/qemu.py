"""QEMU's `microvm` machine (docs/system/i386/microvm): no firmware, no PCI, virtio over MMIO.

Memory is a file. The guest that is booted for a template maps it shared, so that saving writes the
devices' state only (the capability x-ignore-shared of docs/devel/migration); guests restored from
it map it private and copy a page when they write to it.
"""

from __future__ import annotations

import ctypes
import mmap
import os
import platform
import re
import select
import shutil
import signal
import socket
import time
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

from tegu.emulator.arch import tcg_threads
from tegu.errors import SandboxError, UnsupportedError
from tegu.files import write_atomic
from tegu.linux import confine, libc
from tegu.process import run
from tegu.sandbox.vm.driver import BOOT_DEADLINE, Machine
from tegu.sandbox.vm.qmp import Monitor

__all__ = ["Qemu", "QemuVm", "find_binary"]

_RESTORE_DEADLINE = 60.0
_PATH = "/usr/local/bin:/usr/bin:/bin:/usr/local/sbin:/usr/sbin:/sbin"
_CHANNEL, _MONITOR, _DISK, _ROOT, _MEMORY, _KERNEL, _INITRD = range(10, 17)
_FIRST_USER = 0x6FFF_8000
_USERS = 0x7FF0
"""User ids of emulators on the host, above those of the class process (tegu.sandbox.bare)."""
_KVM = Path("/dev/kvm")
_COMMAND_LINE = "quiet panic=-1 reboot=t console=none random.trust_cpu=1"
_RDTSC = bytes.fromhex("0f31 48c1e220 4809d0 c3")  # rdtsc; shl rdx,32; or rax,rdx; ret
_JIT_MEBIBYTES = 32
"""What QEMU may keep of translated code. Without a limit it takes up to a gigabyte."""


def find_binary(state: Path | None = None) -> tuple[str, str]:
    """Return (path, version) of the emulator; asked once for each binary if `state` is given.

    Raises UnsupportedError.
    """
    import json

    path = shutil.which("qemu-system-x86_64", path=_PATH)
    if path is None:
        raise UnsupportedError(
            "QEMU is not installed (qemu-system-x86_64)",
            hint="install the package qemu-system-x86",
        )
    about = os.stat(os.path.realpath(path))  # noqa: PTH116
    mark = [path, about.st_ino, about.st_size, about.st_mtime_ns]
    note = None if state is None else state / "qemu.json"
    if note is not None:
        with suppress(OSError, ValueError, TypeError, KeyError):
            known = json.loads(note.read_bytes())
            if known["binary"] == mark:
                return path, str(known["version"])
    said = run([path, "--version"], timeout=60).stdout
    found = re.search(r"version (\d+\.\d+\.\d+)", said)
    version = found[1] if found else "unknown"
    if note is not None:
        with suppress(OSError):
            write_atomic(note, json.dumps({"binary": mark, "version": version}))
    return path, version


def tsc_khz() -> int:
    """Return how fast this processor's time stamp counter runs, measured over 20 ms.

    An emulated guest reads the host's counter, and on a machine without a PIT channel to measure
    it with must be told.
    """
    with mmap.mmap(-1, mmap.PAGESIZE, prot=mmap.PROT_READ | mmap.PROT_WRITE | mmap.PROT_EXEC) as m:
        m.write(_RDTSC)
        entry = ctypes.c_char.from_buffer(m)
        read = ctypes.CFUNCTYPE(ctypes.c_uint64)(ctypes.addressof(entry))
        try:
            first, began = read(), time.monotonic_ns()
            time.sleep(0.02)
            last, ended = read(), time.monotonic_ns()
        finally:
            del entry
    return int((last - first) * 1_000_000 // (ended - began))


class QemuVm:
    """A QEMU process of ours; it ends with us."""

    def __init__(
        self, pid: int, channel: socket.socket, monitor: Monitor, said: int, memory_mode: int
    ) -> None:
        self.pid = pid
        self._memory_mode = memory_mode
        self.channel = channel
        self._monitor = monitor
        self._said = said

    def watched(self) -> int:
        """Return the descriptor on which news of the machine come."""
        return self._monitor.fileno()

    def check(self) -> None:
        """Raise SandboxError when the machine has ended or failed."""
        try:
            events = self._monitor.heard()
        except SandboxError as e:
            raise self.failed(e.message) from e
        for event in events:
            if event in ("SHUTDOWN", "RESET", "GUEST_PANICKED"):
                raise self.failed(f"the guest ended ({event.lower()})")

    def failed(self, what: str) -> SandboxError:
        """Return an error with the last that QEMU said."""
        size = os.fstat(self._said).st_size
        text = os.pread(self._said, 4096, max(0, size - 4096)).decode(errors="replace")
        lines = [line.strip() for line in text.splitlines() if line.strip()]
        tail = f": {lines[-1].removeprefix('qemu-system-x86_64: ')}" if lines else ""
        return SandboxError(f"the virtual machine: {what}{self._fate()}{tail}")

    def _fate(self) -> str:
        """Return which signal ended QEMU, if one has."""
        for _ in range(50):  # its sockets close before it can be waited for
            with suppress(ChildProcessError):
                pid, status = os.waitpid(self.pid, os.WNOHANG)
                if pid:
                    number = -os.waitstatus_to_exitcode(status)
                    return f" by {signal.Signals(number).name}" if number > 0 else ""
            if select.select([self._monitor], [], [], 0)[0]:
                time.sleep(0.002)
            else:
                return ""
        return ""

    def save(self, directory: Path) -> None:
        """Write the devices' state; memory is the shared file that the machine began with."""
        end = time.monotonic() + BOOT_DEADLINE
        state = os.open(directory / "state", os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC)
        try:
            self.begin_save(state, end)
            self.saved(end)
        finally:
            os.close(state)
        # Only who is let into the directory reaches it, and emulators by a descriptor.
        (directory / "memory").chmod(self._memory_mode)

    def ignore_shared(self, deadline: float, *, on: bool = True) -> None:
        """Leave memory that is a shared file out of what is saved or loaded, or do not."""
        self._monitor.ask(
            "migrate-set-capabilities",
            deadline=deadline,
            capabilities=[{"capability": "x-ignore-shared", "state": on}],
        )

    def greet(self, deadline: float) -> None:
        """Wait until QEMU is there."""
        try:
            self._monitor.greet(deadline)
        except SandboxError as e:
            raise self.failed(e.message) from e

    def begin_load(self, source: int, deadline: float) -> None:
        """Begin to read memory and state from a descriptor."""
        self._monitor.ask("getfd", deadline=deadline, fd=source, fdname="in")
        self._monitor.ask("migrate-incoming", deadline=deadline, uri="fd:in")

    def loaded(self, deadline: float, *, run: bool) -> None:
        """Wait until all is read; with `run`, see to it that the machine runs."""
        try:
            if not run:
                self._monitor.wait_migration(deadline)
            elif self._monitor.wait_status(deadline) != "running":
                self._monitor.ask("cont", deadline=deadline)
        except SandboxError as e:
            raise self.failed(e.message) from e

    def begin_save(self, link: int, deadline: float) -> None:
        """Begin to write memory and state to a descriptor."""
        self._monitor.ask("getfd", deadline=deadline, fd=link, fdname="out")
        self._monitor.ask("migrate", deadline=deadline, uri="fd:out")

    def saved(self, deadline: float) -> None:
        """Wait until all is written; the machine is stopped then."""
        try:
            self._monitor.wait_migration(deadline)
        except SandboxError as e:
            raise self.failed(e.message) from e

    def pause(self) -> None:
        """Stop its processors."""
        self._monitor.ask("stop", deadline=time.monotonic() + 10)

    def resume(self) -> None:
        """Let them go on."""
        self._monitor.ask("cont", deadline=time.monotonic() + 10)

    def kill(self) -> None:
        """End it at once, and wait for that."""
        self.channel.close()
        with suppress(ProcessLookupError):
            os.kill(self.pid, signal.SIGKILL)
        with suppress(ChildProcessError):
            os.waitpid(self.pid, 0)


class Qemu:
    """The driver."""

    name = "qemu"

    def __init__(self, path: str, version: str, accelerator: str) -> None:
        self.path = path
        self.version = version
        self.accelerator = accelerator
        self._numbers = tuple(int(n) for n in re.findall(r"\d+", version))

    def boot(self, machine: Machine, memory: Path, disk: int) -> QemuVm:
        """Start a guest whose memory is the new file `memory`."""
        line = _COMMAND_LINE
        if machine.accelerator == "tcg":
            # Faults of the host's processor do not reach into an emulated one.
            line += f" mitigations=off tsc_early_khz={tsc_khz()}"
        vm = self._start(
            machine,
            disk,
            memory,
            share=True,
            more=["-kernel", _fd(_KERNEL), "-initrd", _fd(_INITRD), "-append", line],
        )
        try:
            vm.greet(time.monotonic() + _RESTORE_DEADLINE)
            vm.ignore_shared(time.monotonic() + 10)
        except BaseException:
            vm.kill()
            raise
        return vm

    def restore(self, machine: Machine, directory: Path, disk: int) -> QemuVm:
        """Start a guest from what was saved, copying on write."""
        end = time.monotonic() + _RESTORE_DEADLINE
        memory = directory / "memory"
        vm = self._start(machine, disk, memory, share=False, more=["-incoming", "defer"])
        try:
            source = os.open(directory / "state", os.O_RDONLY | os.O_CLOEXEC)
            try:
                vm.greet(end)
                vm.ignore_shared(end)
                vm.begin_load(source, end)
                vm.loaded(end, run=True)
            finally:
                os.close(source)
        except BaseException:
            vm.kill()
            raise
        return vm

    def save_copy(self, vm: QemuVm, machine: Machine, directory: Path, disk: int) -> None:
        """Save a machine whose memory is private, in the form of one whose memory is a file.

        Its memory goes through a socket into a second QEMU that never runs, and that one is saved.
        `vm` is stopped when this returns, and may be resumed.
        """
        end = time.monotonic() + BOOT_DEADLINE
        memory = directory / "memory"
        other = self._start(machine, disk, memory, share=True, more=["-incoming", "defer", "-S"])
        try:
            other.greet(end)
            ours, theirs = socket.socketpair()
            try:
                vm.ignore_shared(end, on=False)
                other.begin_load(theirs.fileno(), end)
                vm.begin_save(ours.fileno(), end)
                other.loaded(end, run=False)
                vm.saved(end)
            finally:
                ours.close()
                theirs.close()
            other.ignore_shared(end)
            other.save(directory)
        finally:
            other.kill()

    def _memory(self, machine: Machine, *, share: bool) -> str:
        options = f"memory-backend-file,id=ram,size={machine.memory},mem-path={_fd(_MEMORY)}"
        if share:
            return f"{options},share=on"
        # What is restored need not write to the file; QEMU before 8.2 knows no such form.
        return f"{options},share=off" + (",readonly=on,rom=off" if self._reads_only else "")

    @property
    def _reads_only(self) -> bool:
        return self._numbers >= (8, 2)

    def _arguments(self, machine: Machine, memory: str, more: Sequence[str]) -> list[str]:
        tcg = machine.accelerator == "tcg"
        cpu = ("max,-cx16" if self._numbers < (8,) else "max") if tcg else "host"
        board = "microvm,acpi=off,rtc=on,isa-serial=off,x-option-roms=off,memory-backend=ram"
        board += ",pit=on,pic=on" if tcg else ""
        accelerator = "kvm"
        if tcg:
            threads = tcg_threads(self._numbers, machine.cpus)
            accelerator = f"tcg,thread={threads},tb-size={_JIT_MEBIBYTES}"
        return [
            self.path,
            *("-machine", board, "-accel", accelerator, "-cpu", cpu),
            *("-object", memory, "-m", f"{machine.memory // 2**20}M"),
            *("-smp", str(machine.cpus), "-nodefaults", "-no-user-config", "-no-reboot"),
            *("-display", "none", "-name", "tegu-box", "-add-fd", f"fd={_DISK},set=1"),
            *("-add-fd", f"fd={_ROOT},set=2"),
            *("-blockdev", _disk("root", "/dev/fdset/2", read_only=True)),
            *("-device", "virtio-blk-device,drive=root,serial=tegu-root"),
            *("-blockdev", _disk("data", "/dev/fdset/1", read_only=False)),
            *("-device", "virtio-blk-device,drive=data,serial=tegu-data"),
            *("-device", "virtio-serial-device,max_ports=2"),
            *("-chardev", f"socket,id=channel,fd={_CHANNEL}"),
            *("-device", "virtserialport,chardev=channel,name=tegu"),
            *("-chardev", f"socket,id=monitor,fd={_MONITOR}"),
            *("-mon", "chardev=monitor,mode=control"),
            *("-sandbox", "on,obsolete=deny,elevateprivileges=deny,spawn=deny"),
            *more,
        ]

    def _start(
        self, machine: Machine, disk: int, memory: Path, *, share: bool, more: Sequence[str]
    ) -> QemuVm:
        user = _user(machine.accelerator)
        ours, theirs = socket.socketpair()
        monitor, monitor_theirs = socket.socketpair()
        said = os.memfd_create("qemu", os.MFD_CLOEXEC)
        # Users of theirs may not walk to these files: they get them as descriptors.
        wanted = {_ROOT: machine.root, _KERNEL: machine.kernel, _INITRD: machine.initrd}
        files = {n: os.open(path, os.O_RDONLY | os.O_CLOEXEC) for n, path in wanted.items()}
        flags = os.O_RDWR | os.O_CREAT | os.O_CLOEXEC
        files[_MEMORY] = os.open(memory, flags, 0o600)
        places = {
            **files,
            _CHANNEL: theirs.fileno(),
            _MONITOR: monitor_theirs.fileno(),
            _DISK: disk,
            2: said,
        }
        try:
            if share and user:
                os.fchown(files[_MEMORY], user[0], -1)
            backend = self._memory(machine, share=share)
            pid = _spawn(self._arguments(machine, backend, more), places, user)
        except BaseException:
            ours.close()
            monitor.close()
            os.close(said)
            raise
        finally:
            theirs.close()
            monitor_theirs.close()
            for fd in files.values():
                os.close(fd)
        mode = 0o444 if self._reads_only else 0o666
        return QemuVm(pid, ours, Monitor(monitor), said, mode)


def _fd(number: int) -> str:
    return f"/proc/self/fd/{number}"


def _user(accelerator: str) -> tuple[int, int] | None:
    """Return the user and group that an emulator of root's supervisor runs as: nobody else's.

    None where ids cannot be given away, or where only root may use KVM.
    """
    if os.geteuid() != 0 or Path("/proc/self/uid_map").read_text().split() != [
        *("0", "0", "4294967295")
    ]:
        return None
    user = _FIRST_USER + os.getpid() % _USERS
    if accelerator != "kvm":
        return user, user
    about = _KVM.stat()
    if about.st_mode & 0o060 != 0o060:
        return None
    return user, about.st_gid


def _disk(name: str, path: str, *, read_only: bool) -> str:
    flag = "on" if read_only else "off"
    return (
        f"driver=raw,node-name={name},read-only={flag},file.driver=file,file.filename={path},"
        f"file.locking=off,file.read-only={flag}"
    )


def _spawn(arguments: list[str], places: dict[int, int], user: tuple[int, int] | None) -> int:
    """Start QEMU with descriptors at their places; it is killed when we end."""
    parent = os.getpid()
    pid = os.fork()
    if pid:
        return pid
    try:
        os.setsid()
        high = {to: os.dup(fd) for to, fd in places.items()}
        null = os.open(os.devnull, os.O_RDWR)
        for number in (0, 1):
            os.dup2(null, number)
        up = {to: _above(fd) for to, fd in high.items()}
        for to, fd in up.items():
            os.dup2(fd, to)
        libc.close_range(max(places) + 1)
        for number in range(3, max(places) + 1):
            if number not in places:
                with suppress(OSError):
                    os.close(number)
        if user is not None:
            os.setgroups([])
            os.setresgid(user[1], user[1], user[1])
            os.setresuid(user[0], user[0], user[0])
        confine.no_new_privileges()
        libc.parent_death_signal(signal.SIGKILL)  # after the change of ids, which undoes it
        if os.getppid() != parent:
            os._exit(1)
        os.execve(arguments[0], arguments, {"PATH": os.defpath})
    except BaseException:  # noqa: BLE001 - a forked child must never return into the caller
        os._exit(127)
    os._exit(127)


def _above(fd: int) -> int:
    import fcntl

    return fcntl.fcntl(fd, fcntl.F_DUPFD, 64)


def supported() -> str:
    """Return why QEMU cannot run microVMs on this architecture, or nothing."""
    machine = platform.machine()
    return "" if machine == "x86_64" else f"QEMU's microvm is of x86-64, and this is {machine}"
