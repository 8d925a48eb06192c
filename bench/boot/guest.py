"""A machine whose clock follows its instructions: QEMU's TCG with -icount.

Every instruction takes 4 ns of the guest's time (`shift=2`), whatever else the host does. Two
things would still let the host's time in, and are kept out:

- A processor that idles: `sleep=off` then jumps to the next timer, so that a read from the host's
  disk can cost a guest anything up to its next timer. `idle=poll` (the kernel's
  admin-guide/kernel-parameters) makes it wait in instructions.
- The client outside: while it thinks, the machine is stopped (QMP `stop` and `cont`).
"""

from __future__ import annotations

import json
import socket
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Literal, Self

from bench.common import BenchError

from tegu.process import require

__all__ = ["BUSES", "BootImage", "Bus", "Guest"]

Bus = Literal["virtio-blk", "nvme"]
BUSES: tuple[Bus, ...] = ("virtio-blk", "nvme")

MEMORY_MIB = 1024
CPU = "max,-cx16"
"""QEMU 7.2's cmpxchg16b can fault twice where a kernel uses it for page tables."""


@dataclass(frozen=True, slots=True)
class BootImage:
    """A disk, and the kernel, initrd (or None) and command line that its boot loader would use.

    `user` is who the key of the user-data is for. `used` and `qcow2` are MiB: data in the root file
    system, and the disk as a compressed image.
    """

    name: str
    disk: Path
    kernel: Path
    initrd: Path | None
    cmdline: str
    user: str
    qcow2: float
    about: str = ""


class Guest:
    """A running machine; a context manager that ends it."""

    def __init__(self, image: BootImage, seed: Path, folder: Path, bus: Bus) -> None:
        self.folder = folder
        self._monitor_path = folder / "monitor"
        self.console = folder / "console"
        self._argv = _command(image, seed, folder, bus)
        self._process: subprocess.Popen[bytes] | None = None
        self._monitor: _Monitor | None = None

    def __enter__(self) -> Self:
        errors = (self.folder / "qemu.log").open("wb")
        with errors:
            self._process = subprocess.Popen(
                self._argv, stdin=subprocess.DEVNULL, stdout=errors, stderr=errors
            )
        try:
            self._monitor = self._connect(deadline=time.monotonic() + 60)
        except BaseException:
            self.__exit__(None, None, None)
            raise
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        value: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._monitor is not None:
            self._monitor.close()
        if self._process is not None and self._process.poll() is None:
            self._process.terminate()
            try:
                self._process.wait(10)
            except subprocess.TimeoutExpired:
                self._process.kill()
                self._process.wait()

    def port(self, guest_port: int) -> int:
        """Return the port on 127.0.0.1 that is forwarded to `guest_port`."""
        table = self.command("human-monitor-command", {"command-line": "info usernet"})
        for line in str(table).splitlines():
            # "  TCP[HOST_FORWARD]   8   127.0.0.1 34959   10.0.2.15   22   0   0"
            words = line.split()
            if words[:1] == ["TCP[HOST_FORWARD]"] and words[5] == str(guest_port):
                return int(words[3])
        raise BenchError(f"QEMU forwards no port to port {guest_port} of the machine")

    def command(self, name: str, arguments: dict[str, Any] | None = None) -> Any:
        """Send one QMP command and return its answer."""
        if self._monitor is None:
            raise BenchError("the machine is not running")
        return self._monitor.command(name, arguments)

    @contextmanager
    def stopped(self) -> Iterator[None]:
        """Stop the machine's clock inside the block."""
        self.command("stop")
        try:
            yield
        finally:
            self.command("cont")

    def check(self) -> None:
        """Raise BenchError if the machine has ended by itself."""
        if self._process is not None and self._process.poll() is not None:
            said = (self.folder / "qemu.log").read_text(errors="replace").strip()
            raise BenchError(
                f"the machine ended: {said.splitlines()[-1] if said else 'no message'}"
            )

    def last_words(self) -> str:
        """Return the end of what the machine wrote to its serial console."""
        try:
            text = self.console.read_text(errors="replace")
        except OSError:
            return "nothing"
        return " / ".join(text.strip().splitlines()[-3:])

    def _connect(self, deadline: float) -> _Monitor:
        while True:
            self.check()
            try:
                return _Monitor(self._monitor_path)
            except OSError as e:
                if time.monotonic() > deadline:
                    raise BenchError(f"QEMU's monitor does not answer: {e}") from e
                time.sleep(0.05)


class _Monitor:
    """A QMP connection (QEMU's docs/interop/qmp-spec), kept open: `stop` must be quick."""

    def __init__(self, path: Path) -> None:
        self._socket = socket.socket(socket.AF_UNIX)
        self._socket.settimeout(60)
        try:
            self._socket.connect(str(path))
        except OSError:
            self._socket.close()
            raise
        self._file = self._socket.makefile("rwb")
        json.loads(self._file.readline())
        self.command("qmp_capabilities")

    def command(self, name: str, arguments: dict[str, Any] | None = None) -> Any:
        message: dict[str, Any] = {"execute": name}
        if arguments:
            message["arguments"] = arguments
        try:
            self._file.write(json.dumps(message).encode() + b"\n")
            self._file.flush()
            while line := self._file.readline():
                answer = json.loads(line)
                if "return" in answer:
                    return answer["return"]
                if "error" in answer:
                    raise BenchError(f"QEMU refuses {name}: {answer['error'].get('desc')}")
        except (OSError, ValueError) as e:
            raise BenchError(f"QEMU's monitor failed at {name}: {e}") from e
        raise BenchError(f"QEMU's monitor closed at {name}")

    def close(self) -> None:
        with suppress(OSError):
            self._file.close()
        self._socket.close()


def _command(image: BootImage, seed: Path, folder: Path, bus: Bus) -> list[str]:
    device = {"virtio-blk": "virtio-blk-pci,drive={0}", "nvme": "nvme,drive={0},serial={0}"}[bus]
    argv = [
        require("qemu-system-x86_64", package="qemu-system-x86"),
        # As on most clouds' machines, there is no SATA controller.
        *("-machine", "q35,sata=off", "-nodefaults", "-display", "none", "-no-reboot"),
        *("-accel", "tcg", "-icount", "shift=2,sleep=off", "-cpu", CPU),
        *("-smp", "1", "-m", str(MEMORY_MIB)),
        *("-serial", f"file:{folder / 'console'}"),
        *("-qmp", f"unix:{folder / 'monitor'},server=on,wait=off"),
        *("-kernel", str(image.kernel), "-append", f"{image.cmdline} idle=poll"),
        *("-device", "virtio-rng-pci", "-device", "virtio-net-pci,netdev=net,romfile="),
        # Port 9 (discard) is closed in every image: a reset from there says that the network is up.
        *("-netdev", "user,id=net,hostfwd=tcp:127.0.0.1:0-:22,hostfwd=tcp:127.0.0.1:0-:9"),
    ]
    if image.initrd is not None:
        argv += ["-initrd", str(image.initrd)]
    for name, path in (("root", image.disk), ("seed", seed)):
        argv += ["-drive", f"file={path},if=none,id={name},format=raw,snapshot=on"]
        argv += ["-device", device.format(name)]
    return argv
