"""One try of something bootable: a machine that is thrown away, and a test in it."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

from tegu.errors import MachineError, UsageError
from tegu.lab.bisect import Trial, Verdict
from tegu.lab.flags import accelerator_choice
from tegu.lab.interrupt import ended_by_signals
from tegu.lab.kernel_machine import KernelMachine
from tegu.lab.machine import Machine
from tegu.lab.options import QemuOptions
from tegu.lab.plan import MachinePlan, Plan
from tegu.lab.qemu import QemuMachine
from tegu.lab.results import Report
from tegu.lab.runner import run_plan
from tegu.lab.seed import Seed
from tegu.lab.subject import plan_options

__all__ = ["SKIP", "Bootable", "TrialSettings", "try_command", "try_plan"]

SKIP = 125
"""The exit code by which a test says that it cannot tell, as to git-bisect(1)."""

_NOT_RUN = (126, 127)  # sh(1): the command was found but could not be run; was not found
_CONSOLE = 4000  # characters of a console that are kept


@dataclass(frozen=True, slots=True)
class Bootable:
    """What a machine starts: an image by its own boot loader, or a kernel with it as its disk.

    `modules` is a directory (lib/modules/RELEASE) that is put into the machine before the test.
    """

    image: Path
    kernel: Path | None = None
    initrd: Path | None = None
    append: str = ""
    modules: Path | None = None


@dataclass(frozen=True, slots=True)
class TrialSettings:
    """How a machine is started and tested. `memory` in bytes, timeouts in seconds.

    `boot_failure` is what comes of a machine that does not start.
    """

    memory: int = 1 << 30
    cpus: int = 2
    accelerator: str = "auto"
    firmware: str = "uefi"
    boot_timeout: float = 600
    test_timeout: float = 600
    boot_failure: Verdict = "skip"


def try_command(
    what: Bootable,
    command: str | Sequence[str],
    settings: TrialSettings,
    say: Callable[[str], None],
) -> Trial:
    """Boot `what`, run `command` in it as root, and judge by its exit code.

    0 is good, 125 cannot tell, any other is bad; so is a machine that dies during the test. A
    command that the machine does not have is a mistake in the question: UsageError.
    """
    started = time.monotonic()
    options = _options(what, settings)
    machine = KernelMachine(options, what.modules)
    with ended_by_signals(), _released(machine):
        try:
            say("boot")
            machine.start()
            machine.wait_for_ssh(settings.boot_timeout)
        except MachineError as e:
            seconds = time.monotonic() - started
            why = f"it did not start: {e.message}"
            return Trial(settings.boot_failure, seconds, why, None, _console(machine))
        say("test")
        try:
            done = machine.run(command, root=True, timeout=settings.test_timeout)
        except MachineError as e:
            seconds = time.monotonic() - started
            return Trial("bad", seconds, e.message, None, _console(machine))
        said = "\n".join(t for t in (done.stdout.rstrip(), done.stderr.rstrip()) if t)
        if done.exit_code in _NOT_RUN:
            raise UsageError(
                f"the test cannot be run in the machine: {said.strip()[-200:] or done.exit_code}",
                hint="it is run as root by the machine's shell; programs must be in the image",
            )
    verdict: Verdict = {0: "good", SKIP: "skip"}.get(done.exit_code, "bad")  # type: ignore[assignment]
    seconds = time.monotonic() - started
    return Trial(verdict, seconds, f"the test exited with {done.exit_code}", done.exit_code, said)


def try_plan(
    what: Bootable, plan: Plan, settings: TrialSettings, say: Callable[[str], None]
) -> Trial:
    """Run `plan` on `what`: good when every machine passes."""
    started = time.monotonic()

    def machine_for(spec: MachinePlan) -> Machine:
        options = plan_options(what.image, spec, accelerator_choice(settings.accelerator))
        return KernelMachine(_started_by(options, what), what.modules)

    say("run the plan")
    report = run_plan(plan, machine_for, subject=str(what.kernel or what.image))
    return _of_report(report, settings, time.monotonic() - started)


def _of_report(report: Report, settings: TrialSettings, seconds: float) -> Trial:
    wrong = [(m, s) for m in report.machines for s in m.steps if s.status in ("failed", "error")]
    text = "\n".join(f"{m.name}: {s.name}: {s.status}: {s.message}" for m, s in wrong)
    if report.passed:
        return Trial("good", seconds, f"the plan {report.plan} passed", log=text)
    if wrong and wrong[0][1].name.startswith("boot"):
        why = wrong[0][1].message.partition("\n")[0]
        return Trial(settings.boot_failure, seconds, why, log=text)
    why = f"{len(wrong)} steps of the plan {report.plan} did not pass"
    return Trial("bad", seconds, why, log=text)


def _options(what: Bootable, settings: TrialSettings) -> QemuOptions:
    if settings.firmware not in ("uefi", "bios"):
        raise UsageError(f"{settings.firmware!r} is no firmware", hint="uefi or bios")
    options = QemuOptions(
        image=what.image,
        memory=settings.memory,
        cpus=settings.cpus,
        accelerator=accelerator_choice(settings.accelerator),
        firmware="bios" if settings.firmware == "bios" else "uefi",
        seed=Seed(),
    )
    return _started_by(options, what)


def _started_by(options: QemuOptions, what: Bootable) -> QemuOptions:
    if what.kernel is None:
        return options
    return replace(options, kernel=what.kernel, initrd=what.initrd, append=what.append)


@contextmanager
def _released(machine: QemuMachine) -> Iterator[None]:
    """Release the machine at the end, however far it got."""
    try:
        yield
    finally:
        machine.release()


def _console(machine: QemuMachine) -> str:
    try:
        return machine.console()[-_CONSOLE:]
    except MachineError:
        return ""  # it was not even put together
