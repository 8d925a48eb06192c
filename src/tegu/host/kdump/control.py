"""Crash dumps on, off, tried, and how they stand."""

from __future__ import annotations

import ctypes
import json
import os
import platform
import re
import shutil
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from tegu import __version__
from tegu.boot.build import kernel_file
from tegu.errors import TeguError, UnsupportedError
from tegu.files import write_atomic
from tegu.host.config import CMDLINE
from tegu.host.kdump.cmdline import capture_cmdline, option, with_option
from tegu.host.kdump.config import Settings
from tegu.host.kdump.dumps import Dump, list_dumps, prepare, prune
from tegu.host.kdump.initrd import build_capture_initrd, capture_conf, require_known
from tegu.host.kdump.memory import Need, advise, estimate
from tegu.host.kdump.network import Route, route_to
from tegu.host.kdump.place import DiskPlace, find_place
from tegu.host.kernel import KernelChange, update_kernels
from tegu.linux import kexec, libc

__all__ = ["Off", "Status", "crash_now", "reserve", "status", "test_result", "turn_off", "turn_on"]

STATE = Path("/var/lib/tegu/kdump")
UNIT = Path("/usr/lib/systemd/system/tegu-kdump.service")
ENABLED = Path("/etc/systemd/system/multi-user.target.wants/tegu-kdump.service")
_PANIC_ON_OOPS = Path("/proc/sys/kernel/panic_on_oops")
_OOPS_BEFORE = Path("/run/tegu/panic-on-oops")
_ARCHITECTURES = {"x86_64": "x86-64", "aarch64": "arm64"}
_BUFFER_SIZE = 10  # SYSLOG_ACTION_SIZE_BUFFER, syslog(2)
# An initrd that has not been made yet, packed and unpacked.
_GUESS = (5 << 20, 13 << 20)


@dataclass(frozen=True, slots=True)
class Status:
    """How crash dumps stand; sizes in bytes. `needed` and `recommended` are estimates."""

    loaded: bool
    enabled: bool
    reserved: int
    needed: int
    recommended: int
    crashkernel: str | None
    kernel: str
    target: str
    free: int | None
    after: str
    dumps: tuple[Dump, ...]
    removed: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Off:
    """What `turn_off` gave back: bytes released, and MemTotal (bytes) before and after."""

    released: int
    total_before: int
    total_after: int


def _need_root(what: str) -> None:
    if os.geteuid() != 0:
        raise TeguError(f"only root can {what}", hint="try again with sudo")


def mem_total() -> int:
    """Return MemTotal of proc_meminfo(5) in bytes."""
    match = re.search(r"^MemTotal:\s+(\d+) kB$", Path("/proc/meminfo").read_text(), re.MULTILINE)
    assert match is not None, "every kernel says MemTotal"
    return int(match[1]) * 1024


def _kernel() -> Path:
    release = platform.release()
    path = kernel_file(Path("/"), release)
    if path is None:
        raise UnsupportedError(
            f"the running kernel's image is not installed (/boot/vmlinuz-{release})",
            hint="reboot if the kernel was updated or removed, then try again",
        )
    return path


def _need(settings: Settings) -> Need:
    with _kernel().open("rb") as f:
        image = kexec.image_memory(f.read(4096))
    packed, unpacked = _GUESS
    with suppress(FileNotFoundError, ValueError, KeyError, TypeError):
        state = json.loads((STATE / "state.json").read_text())
        packed, unpacked = int(state["packed"]), int(state["unpacked"])
    network = settings.target.kind != "local"
    return estimate(image, packed, unpacked, mem_total(), network=network)


def require_reservation(reserved: int, cmdline: str, recommended: int) -> None:
    """Raise TeguError when nothing is reserved, saying why and what to do."""
    if reserved:
        return
    asked = option(cmdline, "crashkernel")
    if asked is None:
        raise TeguError(
            "no memory is reserved for a capture kernel: there is no crashkernel= on the kernel's"
            " command line",
            hint=f"`tegu kdump on --reserve` sets crashkernel={recommended >> 20}M; then reboot",
        )
    raise TeguError(
        f"the memory of crashkernel={asked} is not reserved: it was given back (`tegu kdump off`),"
        " or the kernel could not reserve it",
        hint="reboot to have it again; if it stays so, `dmesg | grep -i crash` tells why",
    )


def check_size(need: Need, reserved: int) -> None:
    """Raise TeguError, with the size to ask for, when the reservation is too small."""
    if need.total > reserved:
        raise TeguError(
            f"the reserved memory is too small: {reserved >> 20} MiB, and the capture kernel needs"
            f" about {-(-need.total >> 20)} MiB",
            hint=f"`tegu kdump on --reserve` sets crashkernel={advise(need) >> 20}M; then reboot",
        )


def turn_on(settings: Settings, *, say: Callable[[str], None] = lambda _: None) -> Status:
    """Load the capture kernel, keep space for the log, and do so again at each boot.

    Needs no reboot when memory is reserved. Raises TeguError when none is, when it is too small,
    or the target cannot be used; what was loaded before then stays.
    """
    _need_root("turn crash dumps on")
    machine = platform.machine()
    architecture = _ARCHITECTURES.get(machine)
    if architecture is None:
        raise UnsupportedError(f"crash dumps on {machine}")
    running = Path("/proc/cmdline").read_text()
    reserved = kexec.crash_size()
    require_reservation(reserved, running, advise(_need(settings)))
    kernel = _kernel()
    say("looking at the target")
    place, route, drivers = _look_at_target(settings)
    say("making the capture initrd")
    made = build_capture_initrd(
        settings,
        platform.release(),
        architecture=architecture,
        conf=capture_conf(settings, place, route, platform.node() or "machine"),
        fstype=place.fstype if place is not None else None,
        drivers=drivers,
    )
    with kernel.open("rb") as f:
        image = kexec.image_memory(f.read(4096))
    network = route is not None
    need = estimate(image, len(made.data), made.unpacked, mem_total(), network=network)
    check_size(need, reserved)
    removed: list[str] = []
    if settings.target.kind == "local":
        say("keeping space for the log")
        directory = Path(settings.target.path)
        about = {
            "kernel": platform.release(),
            "machine": machine,
            "host": platform.node(),
            "boot_id": Path("/proc/sys/kernel/random/boot_id").read_text().strip(),
            "memory": mem_total(),
            "reserved": reserved,
            "tegu": __version__,
        }
        prepare(directory, log_bytes=_log_reserve(), about=about)
        removed = prune(directory, keep=settings.keep, max_size=settings.max_size)
    STATE.mkdir(mode=0o700, parents=True, exist_ok=True)
    write_atomic(STATE / "initrd", made.data, mode=0o600)
    say("loading the capture kernel")
    cmdline = capture_cmdline(running, machine)
    kexec.load_crash_kernel(kernel, STATE / "initrd", cmdline)
    _panic_on_oops()
    sizes = {"packed": len(made.data), "unpacked": made.unpacked, "cmdline": cmdline}
    write_atomic(STATE / "state.json", json.dumps(sizes, indent=2, sort_keys=True) + "\n")
    _enable()
    return status(settings, removed=tuple(removed))


def _look_at_target(settings: Settings) -> tuple[DiskPlace | None, Route | None, list[str]]:
    """Return where dumps go for another kernel, and the driver modules that lead there."""
    target = settings.target
    if target.kind == "local":
        directory = Path(target.path)
        try:
            directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        except OSError as e:
            raise TeguError(f"cannot make the directory {directory}: {e.strerror}") from e
        place = find_place(directory)
        return place, None, _drivers(directory)
    if target.kind == "ssh":
        require_known(settings)
    route = route_to(target.host, target.port)
    return None, route, [route.module] if route.module else []


def _drivers(directory: Path) -> list[str]:
    """Return the modules of the devices from the disk of `directory` up to the bus."""
    device = directory.stat().st_dev
    place = Path(f"/sys/dev/block/{os.major(device)}:{os.minor(device)}").resolve()
    found = [
        module.resolve().name
        for parent in (place, *place.parents)
        for module in (parent / "driver/module", parent / "device/driver/module")
        if module.exists()
    ]
    return list(dict.fromkeys(reversed(found)))


def _log_reserve() -> int:
    """Bytes for the log as text: twice the kernel's buffer, whose records have no time stamps."""
    size = libc.call("klogctl", ctypes.c_int(_BUFFER_SIZE), None, ctypes.c_int(0), what="syslog")
    return max(1 << 20, 2 * size)


def _panic_on_oops() -> None:
    """A fault in the kernel ends one process and leaves the rest in doubt: dump it instead."""
    before = _PANIC_ON_OOPS.read_text().strip()
    if not _OOPS_BEFORE.exists():
        _OOPS_BEFORE.parent.mkdir(parents=True, exist_ok=True)
        write_atomic(_OOPS_BEFORE, before + "\n")
    _PANIC_ON_OOPS.write_text("1\n")


def _enable() -> None:
    if UNIT.exists() and not ENABLED.is_symlink():
        ENABLED.parent.mkdir(parents=True, exist_ok=True)
        ENABLED.symlink_to(UNIT)


def turn_off(*, keep_memory: bool = False) -> Off:
    """Unload the capture kernel and give its memory back, now and at later boots.

    With `keep_memory` the reservation stays, so that `turn_on` needs no reboot.
    """
    _need_root("turn crash dumps off")
    before = mem_total()
    if kexec.crash_loaded():
        kexec.unload_crash_kernel()
    ENABLED.unlink(missing_ok=True)
    (STATE / "initrd").unlink(missing_ok=True)
    with suppress(FileNotFoundError):
        _PANIC_ON_OOPS.write_text(_OOPS_BEFORE.read_text())
        _OOPS_BEFORE.unlink()
    released = 0 if keep_memory else kexec.release_crash_memory()
    return Off(released, before, mem_total())


def reserve(settings: Settings, size: int | None = None) -> tuple[int, Need, list[KernelChange]]:
    """Set crashkernel= in the boot files, of `size` bytes or what is recommended, and turn on at
    the next boot; return the size, an estimate of what is needed, and the changed files.

    Raises UnsupportedError when the boot files are not made by tegu; what was there then stays.
    """
    _need_root("change the boot files")
    need = _need(settings)
    chosen = advise(need) if size is None else size
    path = Path("/") / CMDLINE
    try:
        old = path.read_text()
    except FileNotFoundError:
        raise UnsupportedError(
            f"this machine has no {path}: its boot files are not made by tegu",
            hint=f"add crashkernel={chosen >> 20}M to its boot loader's configuration and reboot",
        ) from None
    write_atomic(path, with_option(old, "crashkernel", f"{chosen >> 20}M") + "\n")
    try:
        changes = update_kernels()
    except BaseException:
        write_atomic(path, old)
        raise
    _enable()
    return chosen, need, changes


def status(settings: Settings, *, removed: tuple[str, ...] = ()) -> Status:
    """Return how crash dumps stand; raises UnsupportedError when the kernel has none."""
    need = _need(settings)
    local = settings.target.kind == "local"
    directory = Path(settings.target.path)
    free = None
    if local:
        with suppress(OSError):
            there = next(p for p in (directory, *directory.parents) if p.exists())
            free = shutil.disk_usage(there).free
    dumps: tuple[Dump, ...] = ()
    if local:
        dumps = tuple(list_dumps(directory))
    return Status(
        loaded=kexec.crash_loaded(),
        enabled=ENABLED.is_symlink(),
        reserved=kexec.crash_size(),
        needed=need.total,
        recommended=advise(need),
        crashkernel=option(Path("/proc/cmdline").read_text(), "crashkernel"),
        kernel=platform.release(),
        target=str(settings.target),
        free=free,
        after=settings.after,
        dumps=dumps,
        removed=removed,
    )


def crash_now(settings: Settings) -> None:
    """Crash this machine's kernel by sysrq, as a test; `test_result` says afterwards what came.

    Raises TeguError when no capture kernel is loaded; otherwise it does not return.
    """
    _need_root("crash the kernel")
    if not kexec.crash_loaded():
        raise TeguError(
            "no capture kernel is loaded: a crash would leave nothing", hint="tegu kdump on"
        )
    STATE.mkdir(mode=0o700, parents=True, exist_ok=True)
    boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    write_atomic(STATE / "test.json", json.dumps({"boot_id": boot, "time": time.time()}) + "\n")
    os.sync()
    Path("/proc/sysrq-trigger").write_text("c")
    raise TeguError("the kernel did not crash: sysrq did nothing")


def test_result(settings: Settings) -> Dump | None:
    """Return what the last `crash_now` left, or None when nothing came.

    Raises TeguError when there was no test, or the machine has not crashed since.
    """
    try:
        test = json.loads((STATE / "test.json").read_text())
        boot, when = str(test["boot_id"]), float(test["time"])
    except (FileNotFoundError, ValueError, KeyError, TypeError):
        raise TeguError("there was no test yet", hint="tegu kdump test") from None
    if boot == Path("/proc/sys/kernel/random/boot_id").read_text().strip():
        raise TeguError("the machine has not restarted since the test")
    if settings.target.kind != "local":
        raise TeguError(f"the dump went to {settings.target}: look there")
    for dump in list_dumps(Path(settings.target.path)):
        about = dump.path / "about.json"
        with suppress(FileNotFoundError, ValueError, KeyError, TypeError):
            if (
                json.loads(about.read_text())["boot_id"] == boot
                and dump.path.stat().st_mtime >= when - 60
            ):
                return dump
    return None
