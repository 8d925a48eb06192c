"""A virtual machine: QEMU started, watched, reached and always cleaned up."""

from __future__ import annotations

import logging
import re
import time
from dataclasses import replace
from pathlib import Path
from types import TracebackType
from typing import Final, Self

from tegu.emulator.arch import MACHINES, MachineFacts, facts_for
from tegu.emulator.binary import QemuBinary, find_qemu
from tegu.emulator.child import Child, ProcessId, complaint, wait_until
from tegu.emulator.kvm import check_kvm, remember_broken
from tegu.errors import MachineError, TeguError, UnsupportedError
from tegu.host.kdump import oops
from tegu.lab.command import command_line
from tegu.lab.directory import remove_directory, short_directory
from tegu.lab.disk import Disk, inspect
from tegu.lab.furnish import furnish, home_for
from tegu.lab.options import QemuOptions
from tegu.lab.qmp import execute, forwarded_port, machine_status
from tegu.lab.registry import MachineRecord, Registry
from tegu.lab.serial import last_line, read_log
from tegu.lab.ssh import OverSsh, Ssh, reboot

__all__ = ["QemuMachine"]

log = logging.getLogger(__name__)

_START: Final = 30.0  # seconds for QEMU to open its monitor
_PANIC: Final = "Kernel panic - not syncing:"
# The first line of a kernel that starts: what was said before is of an earlier one.
_STARTS: Final = re.compile(r"\[ *0\.000000\] Linux version ")


class QemuMachine(OverSsh):
    """One QEMU machine, as described by its options.

    Start it as a context manager, and whatever happens its process, disk layer, seed and sockets
    are gone afterwards. `leave_running` hands it over to the registry instead; `attach` picks up a
    machine that another process started.
    """

    def __init__(self, options: QemuOptions, *, registry: Registry | None = None) -> None:
        self.options = options
        self.notice: str | None = None
        """Why emulation is used although KVM might have been expected, once started."""
        self._registry = registry or Registry()
        self._record: MachineRecord | None = None
        self._child: Child | None = None
        self._ssh: Ssh | None = None
        self._left = False

    @classmethod
    def attach(cls, name: str, *, registry: Registry | None = None) -> QemuMachine:
        """Return the machine of that name that runs; MachineError when there is none."""
        registry = registry or Registry()
        record = registry.get(name)
        machine = cls(QemuOptions(image=Path(record.image), name=name), registry=registry)
        machine._adopt(record)
        machine._left = True
        return machine

    @property
    def name(self) -> str:
        """The machine's name."""
        return self.record.name

    @property
    def record(self) -> MachineRecord:
        """What the registry knows of the machine; MachineError before it is started."""
        if self._record is None:
            raise MachineError("the machine has not been started")
        return self._record

    @property
    def ssh(self) -> Ssh:
        """The way in; MachineError for a machine without a network."""
        if self._ssh is None:
            raise MachineError(f"{self.name} has no network, so that SSH cannot reach it")
        return self._ssh

    @property
    def has_network(self) -> bool:
        """True when SSH can reach it, once it is started."""
        return self._ssh is not None

    def start(self) -> None:
        """Put the machine together and start QEMU; returns once it runs (not yet booted).

        Raises UsageError or MachineError for a bad image, UnsupportedError for what is not
        installed, MachineError with QEMU's own words when it does not start.
        """
        if self._record is not None:
            raise MachineError(f"{self.name} has been started already")
        facts = facts_for(self.options.architecture)
        qemu = find_qemu(facts)
        disk = self._inspect()
        stem = (self.options.image or self.options.kernel or Path("machine")).stem
        directory = short_directory()
        try:
            record = self._registry.claim(self.options.name, stem, directory)
        except BaseException:
            remove_directory(directory)
            raise
        self._record = record
        try:
            self._start(record, facts, qemu, disk)
        except BaseException:
            self.release()
            raise

    def _inspect(self) -> Disk | None:
        if self.options.image is None:
            return None
        return inspect(self.options.image, partitioned=self.options.kernel is None)

    def _start(
        self, record: MachineRecord, facts: MachineFacts, qemu: QemuBinary, disk: Disk | None
    ) -> None:
        options = self.options
        accelerator = self._accelerator(facts, qemu)
        record = replace(
            record,
            image=str((options.image or options.kernel or Path()).resolve()),
            architecture=facts.name,
            accelerator=accelerator,
            firmware="kernel" if options.kernel is not None else options.firmware,
            memory=options.memory,
            cpus=1 if options.icount else options.cpus,
            home=home_for(record.name, disk) if options.persist and disk is not None else None,
            created=time.time(),
            forwards=tuple(f"{f.host}:{f.guest}" for f in options.forwards),
        )
        record, parts = furnish(record, options, facts, accelerator, disk)
        argv = command_line(options, facts, qemu, record, parts)
        log.info("starting %s", argv)
        self._child = Child(argv, stderr=record.errors)
        record = replace(record, process=self._child.id)
        self._record = record
        self._registry.save(record)
        self._wait_for_monitor(record)
        if options.network != "none":
            record = replace(record, ssh_port=forwarded_port(record.monitor, 22))
            self._registry.save(record)
        self._adopt(record)

    def _accelerator(self, facts: MachineFacts, qemu: QemuBinary) -> str:
        wanted = self.options.accelerator
        if wanted == "tcg" or self.options.icount:
            return "tcg"
        kvm = check_kvm(facts, qemu)
        if kvm.works:
            return "kvm"
        if wanted == "kvm":
            raise UnsupportedError(f"KVM: {kvm.reason}", hint="leave out --accelerator kvm")
        self.notice = kvm.notice()
        return "tcg"

    def _wait_for_monitor(self, record: MachineRecord) -> None:
        """Wait until QEMU answers; MachineError with its own reason when it gives up before."""
        deadline = time.monotonic() + _START
        while True:
            child = self._child
            code = child.returncode() if child is not None else None
            if child is not None and code is not None:
                why = child.complaint() or f"it ended with code {code}"
                hint = "another program uses that port" if "forwarding rule" in why else None
                raise MachineError(f"QEMU did not start: {why}", hint=hint)
            if record.monitor.exists():
                try:
                    machine_status(record.monitor)
                    return
                except MachineError:
                    if child is not None and child.wait(0.3) is not None:
                        continue  # it gave up meanwhile, and says why
            if not wait_until(deadline):
                raise MachineError(f"QEMU did not open its monitor within {_START:g} s")

    def _adopt(self, record: MachineRecord) -> None:
        self._record = record
        if record.ssh_port is None:
            return
        self._ssh = Ssh(record.name, record.address, record.directory, self._dead, self._last)

    @property
    def process(self) -> ProcessId:
        """QEMU's process."""
        if self.record.process is None:
            raise MachineError(f"{self.name} is still being started")
        return self.record.process

    def alive(self) -> bool:
        """True while QEMU runs."""
        return self._record is not None and self.process.alive()

    def _dead(self) -> str | None:
        """Return why the machine will never answer (again), or None while it may."""
        said = self.console()
        if not self.alive():
            why = complaint(self.record.errors)
            return f"has died ({why or self._last()})"
        crash = _crash(said)
        if crash is not None:
            return f"has crashed: {crash}"
        if "KVM internal error" in self._errors():
            reason = "a machine failed with a KVM internal error"
            facts = next(f for f in MACHINES.values() if f.name == self.record.architecture)
            remember_broken(facts, find_qemu(facts), reason)
            return "was stopped by a KVM internal error; the next start will use emulation"
        return None

    def _errors(self) -> str:
        try:
            return self.record.errors.read_text(errors="replace")
        except FileNotFoundError:
            return ""

    def _last(self) -> str:
        line = last_line(self.console())
        return f"last on the console: {line}" if line else "nothing on the console"

    def console(self) -> str:
        """Return the console's text so far, without escape sequences."""
        return read_log(self.record.console_log)

    def wait_for_console(self, pattern: str, *, timeout: float = 60, after: int = 0) -> str:
        """Wait for a console line that matches `pattern`; return that line."""
        sought = re.compile(pattern, re.MULTILINE)
        deadline = time.monotonic() + timeout
        while True:
            ended = not self.alive()
            said = self.console()
            found = sought.search(said, after)
            if found is not None:
                start = said.rfind("\n", 0, found.start()) + 1
                end = said.find("\n", found.end())
                return said[start : end if end >= 0 else len(said)]
            if ended:
                raise MachineError(f"{self.name} {self._dead()}: {pattern!r} was not said")
            if not wait_until(deadline, 0.1):
                raise MachineError(
                    f"{self.name} did not say {pattern!r} within {timeout:g} s; {self._last()}"
                )

    def wait_for_exit(self, timeout: float = 60) -> None:
        """Wait until QEMU has ended."""
        if not self.process.wait(timeout):
            raise MachineError(f"{self.name} was not off within {timeout:g} s; {self._last()}")
        if self._child is not None:
            self._child.wait(5)

    def reboot(self, timeout: float = 300) -> float:
        """Reboot cleanly and wait until commands can be run again; return the seconds taken."""
        return reboot(self.ssh, timeout)

    def power_off(self, timeout: float = 120) -> float:
        """Press the power button (ACPI) and wait until the machine is off; return the seconds."""
        started = time.monotonic()
        if self.alive():
            execute(self.record.monitor, "system_powerdown")
        if self._ssh is not None:
            self._ssh.close()
        self.wait_for_exit(timeout)
        return time.monotonic() - started

    def kill(self) -> None:
        """Take the power away: QEMU's `quit`, and SIGKILL if that is not obeyed within 5 s."""
        if self._record is None or self._record.process is None:
            return
        process = self._record.process
        if process.alive():
            try:
                execute(self._record.monitor, "quit", timeout=5)
            except TeguError as e:
                log.info("%s", e.message)
            if not process.wait(5):
                process.kill()
                process.wait(5)
        if self._child is not None:
            self._child.kill()

    def release(self) -> None:
        """Kill the machine if it runs, and remove everything of it that is not persistent."""
        record = self._record
        if record is None:
            return
        try:
            if self._ssh is not None:
                self._ssh.close()
            self.kill()
        finally:
            if self._child is not None:
                self._child.kill()
            remove_directory(record.directory)
            self._registry.remove(record.name)
            self._record = None

    def leave_running(self) -> MachineRecord:
        """Let the machine stay up after this process, under `tegu machines`."""
        self._record = replace(self.record, owner=None)
        self._registry.save(self._record)
        self._left = True
        return self._record

    def __enter__(self) -> Self:
        if self._record is None:
            self.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if not self._left:
            self.release()


def _crash(said: str) -> str | None:
    """Return the panic that a console ends with; one after which a kernel started is over.

    What made the kernel panic is said too: "Fatal exception in interrupt" alone tells nobody.
    """
    started = list(_STARTS.finditer(said))
    now = said[started[-1].start() if started else 0 :]
    if _PANIC not in now:
        return None
    crash = oops.read_log(now)
    fault = " in ".join(part for part in (crash.cause, crash.where) if part)
    return f"{_PANIC} {crash.panic}" + (f" ({fault})" if fault else "")
