"""Devices that are suspended and file systems that are frozen: let them go on."""

from __future__ import annotations

import os
import struct
import threading
from collections.abc import Callable
from pathlib import Path

from tegu.heal.finding import Finding
from tegu.heal.remedy import Refused, Remedy, RepairError, State
from tegu.heal.snapshot import parse_stat, text

__all__ = ["ResumeDevice", "Thaw"]

# struct dm_ioctl, linux/dm-ioctl.h: version[3], data_size, data_start, target_count, open_count,
# flags, event_nr, padding, dev, name[128], uuid[129], data[7].
_DM_IOCTL = struct.Struct("=3I2I I i 3I Q 128s 129s 7s")
_DM_DEV_SUSPEND = 0xC138FD06  # _IOWR(0xfd, 6, struct dm_ioctl of 312 bytes)
_DM_DEV_STATUS = 0xC138FD07
_SUSPEND_FLAG, _INACTIVE_PRESENT = 1 << 1, 1 << 6
_FITHAW = 0xC0045878  # linux/fs.h
_PATIENCE = 10.0
_FREEZERS = ("fsfreeze", "xfs_freeze", "lvcreate", "lvm", "dmsetup", "qemu-ga", "vgs")


class ResumeDevice(Remedy):
    """Resume a suspended device-mapper device, as `dmsetup resume` does."""

    name = "resume-device"
    summary = "resume a suspended device-mapper device"
    blast = "device"
    reversible = False  # to suspend it again would be the fault itself

    def prepare(self, finding: Finding) -> State:
        device = str(finding.target["device"])
        flags = device_flags(device)
        if not flags & _SUSPEND_FLAG:
            raise Refused(f"{device} is not suspended any more")
        if flags & _INACTIVE_PRESENT:
            raise Refused(f"{device} has a new table that waits to be put in: someone is at work")
        _nobody_at_work()
        return {}

    def plan(self, finding: Finding, state: State) -> list[str]:
        return [f"dmsetup resume {finding.target['device']}"]

    def apply(self, finding: Finding, state: State) -> None:
        _control(_DM_DEV_SUSPEND, str(finding.target["device"]))


class Thaw(Remedy):
    """Thaw a frozen file system."""

    name = "thaw"
    summary = "thaw a frozen file system"
    blast = "device"
    reversible = False

    def prepare(self, finding: Finding) -> State:
        mountpoint = str(finding.target["mountpoint"])
        if not Path(mountpoint).is_dir():
            raise Refused(f"{mountpoint} is not there any more")
        _nobody_at_work()
        return {}

    def plan(self, finding: Finding, state: State) -> list[str]:
        return [f"fsfreeze --unfreeze {finding.target['mountpoint']}"]

    def apply(self, finding: Finding, state: State) -> None:
        import fcntl

        fd = os.open(str(finding.target["mountpoint"]), os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            _bounded(lambda: fcntl.ioctl(fd, _FITHAW, 0), "thawing")
        finally:
            os.close(fd)


def device_flags(name: str) -> int:
    """Return a device's flags (linux/dm-ioctl.h); raises Refused for one that is not there."""
    try:
        answer = _control(_DM_DEV_STATUS, name)
    except OSError as e:
        raise Refused(f"{name}: {e.strerror}") from e
    return int(_DM_IOCTL.unpack_from(answer)[7])


def _control(command: int, name: str) -> bytes:
    import fcntl

    room = bytearray(_DM_IOCTL.size)
    _DM_IOCTL.pack_into(
        room, 0, 4, 0, 0, len(room), len(room), 0, 0, 0, 0, 0, 0, name.encode()[:127], b"", b""
    )
    fd = os.open("/dev/mapper/control", os.O_RDWR | os.O_CLOEXEC)
    try:
        _bounded(lambda: fcntl.ioctl(fd, command, room), name)
    finally:
        os.close(fd)
    return bytes(room)


def _nobody_at_work() -> None:
    """Refuse while a program runs that freezes or suspends for its work."""
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            process = parse_stat(text(entry / "stat"))
            if process is not None and process.comm in _FREEZERS and process.state != "Z":
                raise Refused(f"{process.comm}[{process.pid}] runs and may be about to let go")


def _bounded(action: Callable[[], object], what: str) -> None:
    """Run a system call that may never return; give it up after some seconds."""
    failed: list[OSError] = []

    def work() -> None:
        try:
            action()
        except OSError as e:
            failed.append(e)

    thread = threading.Thread(target=work, daemon=True)
    thread.start()
    thread.join(_PATIENCE)
    if thread.is_alive():
        raise RepairError(f"{what} did not end within {_PATIENCE:g} s")
    if failed:
        raise failed[0]
