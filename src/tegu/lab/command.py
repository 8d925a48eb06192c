"""QEMU's command line for a machine; the options are those of qemu-system(1)."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tegu.emulator.arch import MachineFacts, tcg_threads
from tegu.emulator.binary import QemuBinary
from tegu.lab.disk import Disk
from tegu.lab.options import Bus, QemuOptions
from tegu.lab.registry import MachineRecord

__all__ = ["Parts", "command_line"]


@dataclass(frozen=True, slots=True)
class Parts:
    """The files that a machine is put together from, and the accelerator ("kvm" or "tcg")."""

    accelerator: str
    disk: Disk | None
    seed: Path | None
    code: Path | None
    variables: Path | None


def command_line(
    options: QemuOptions,
    facts: MachineFacts,
    qemu: QemuBinary,
    record: MachineRecord,
    parts: Parts,
) -> list[str]:
    """Return the words that start the machine."""
    emulated = parts.accelerator == "tcg"
    cpu = facts.emulated_cpu(qemu.version) if emulated else facts.kvm_cpu
    accelerator, cpus = parts.accelerator, 1 if options.icount else options.cpus
    if emulated:
        # Counting instructions has no other way than to take turns.
        threads = "single" if options.icount else tcg_threads(qemu.version, cpus)
        accelerator += f",thread={threads}"
    out = [
        qemu.path,
        *("-name", f"{record.name},process=tegu-{record.name}"),
        *("-machine", facts.board, "-accel", accelerator, "-cpu", cpu),
        *("-m", f"{options.memory >> 20}M"),
        *("-smp", str(cpus)),
        *("-nodefaults", "-no-user-config", "-display", "none"),
        *("-qmp", f"unix:{_escape(record.monitor)},server=on,wait=off"),
        *_console(record),
        *("-device", "virtio-rng-pci"),
    ]
    if options.icount:
        out += ["-icount", "shift=2,sleep=off"]
    if parts.code is not None:
        out += _flash(0, parts.code, read_only=True)
    if parts.variables is not None:
        out += _flash(1, parts.variables, read_only=False)
    if parts.disk is not None:
        out += _block("disk", parts.disk.path, parts.disk.format, careless=not options.persist)
        out += _device("disk", options.bus, boot=options.kernel is None)
    if parts.seed is not None:
        out += _block("seed", parts.seed, "raw", read_only=True)
        out += _device("seed", options.bus)
    out += _network(options)
    if options.kernel is not None:
        out += ["-kernel", str(options.kernel)]
        out += ["-initrd", str(options.initrd)] if options.initrd is not None else []
        out += ["-append", options.append or f"console={facts.console}"]
    return [*out, *options.extra]


def _console(record: MachineRecord) -> list[str]:
    backend = f"socket,id=console,path={_escape(record.console_socket)},server=on,wait=off"
    log = f",logfile={_escape(record.console_log)},logappend=on"
    return ["-chardev", backend + log, "-serial", "chardev:console"]


def _flash(unit: int, path: Path, *, read_only: bool) -> list[str]:
    access = ",readonly=on" if read_only else ""
    return ["-drive", f"if=pflash,unit={unit},format=raw{access},file={_escape(path)}"]


def _block(
    node: str, path: Path, form: str, *, read_only: bool = False, careless: bool = False
) -> list[str]:
    """Return a block node; `careless` skips flushes, for a disk that dies with its machine."""
    file: dict[str, Any] = {"driver": "file", "filename": str(path)}
    body: dict[str, Any] = {"driver": form, "node-name": node, "file": file}
    if read_only:
        body["read-only"] = file["read-only"] = True
    else:
        body["discard"] = file["discard"] = "unmap"
        body["cache"] = file["cache"] = {"no-flush": careless}
    return ["-blockdev", json.dumps(body)]


def _device(node: str, bus: Bus, *, boot: bool = False) -> list[str]:
    first = ",bootindex=0" if boot else ""
    if bus == "nvme" and node == "disk":
        return ["-device", f"nvme,id=nvme,drive=disk,serial=tegu{first}"]
    if bus == "nvme":
        # On the disk's controller. Which of the two Linux finds first is left to chance, as on any
        # bus here: a root file system is best named by UUID or PARTUUID.
        return ["-device", f"nvme-ns,bus=nvme,nsid=2,drive={node}"]
    if bus == "virtio-scsi":
        controller = ["-device", f"virtio-scsi-pci,id=scsi-{node}"]
        return [*controller, "-device", f"scsi-hd,bus=scsi-{node}.0,drive={node}{first}"]
    return ["-device", f"virtio-blk-pci,drive={node}{first}"]


def _network(options: QemuOptions) -> list[str]:
    if options.network == "none":
        return ["-nic", "none"]
    backend = "user,id=net,hostfwd=tcp:127.0.0.1:0-:22"
    for forward in options.forwards:
        backend += f",hostfwd=tcp:127.0.0.1:{forward.host}-:{forward.guest}"
    if options.network == "isolated":
        backend += ",restrict=on"
    # An empty option ROM: no machine boots from the network, and none waits for it.
    return ["-netdev", backend, "-device", "virtio-net-pci,netdev=net,romfile="]


def _escape(path: Path) -> str:
    return str(path).replace(",", ",,")
