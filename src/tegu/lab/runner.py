"""A plan is run: every machine is booted, its steps are done in order, what happened is noted."""

from __future__ import annotations

import logging
import os
import re
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import FIRST_EXCEPTION, Future, ThreadPoolExecutor, wait
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from tegu.errors import MachineError, TeguError, UnsupportedError, UsageError
from tegu.lab.boot import cloud_init
from tegu.lab.disk import parse_size
from tegu.lab.interrupt import ended_by_signals
from tegu.lab.machine import Machine
from tegu.lab.plan import MachinePlan, Plan, Step
from tegu.lab.qemu import QemuMachine
from tegu.lab.results import MachineReport, Report, StepResult
from tegu.lab.steps import Context, Outcome, kept, perform

__all__ = ["Event", "plan_variables", "run_plan"]

log = logging.getLogger(__name__)

_JOURNAL: Final = "journalctl -b --no-pager -o short-precise -n 3000"


@dataclass(frozen=True, slots=True)
class Event:
    """Something that a person may watch: a step begins (`result` None) or has ended."""

    machine: str
    step: str
    result: StepResult | None = None


def plan_variables(plan: Plan, given: Mapping[str, str]) -> dict[str, str]:
    """Return the value of every variable that `plan` declares.

    UsageError, naming all of them, when one that is used has neither a value nor a default, and
    for a value that the plan does not know.
    """
    unknown = sorted(set(given) - set(plan.variable))
    if unknown:
        known = ", ".join(sorted(plan.variable)) or "none"
        raise UsageError(
            f"the plan {plan.name} has no variable {unknown[0]!r}", hint=f"it has: {known}"
        )
    defaults = {k: v.default for k, v in plan.variable.items() if v.default is not None}
    values = defaults | dict(given)
    missing = sorted((plan.variables() & set(plan.variable)) - set(values))
    if missing:
        raise UsageError(
            f"the plan {plan.name} needs values for: {', '.join(missing)}",
            hint="\n      ".join(f"{name}: {plan.variable[name].help}" for name in missing),
        )
    return values


def capacity(machines: Sequence[MachinePlan]) -> int:
    """Return how many of `machines` this host can carry at once: one a CPU, if memory allows.

    A machine takes its memory and a quarter of a GiB for QEMU itself (MemAvailable of proc(5)).
    """
    text = Path("/proc/meminfo").read_text()
    found = re.search(r"^MemAvailable: *([0-9]+) kB$", text, re.MULTILINE)
    available = int(found[1]) << 10 if found else 0
    largest = max((parse_size(m.memory) for m in machines), default=0) + (1 << 28)
    cpus = len(os.sched_getaffinity(0))
    return max(1, min(len(machines), cpus, available // largest))


def run_plan(
    plan: Plan,
    machine_for: Callable[[MachinePlan], Machine],
    *,
    subject: str,
    variables: Mapping[str, str] | None = None,
    machines: Sequence[MachinePlan] | None = None,
    parallel: int | None = 1,
    on_event: Callable[[Event], None] = lambda _: None,
) -> Report:
    """Run `plan` on all its `machines` (or those given) and return what came of it.

    `machine_for` makes a machine that is not started yet; `subject` names what is tested;
    `parallel` machines are up at a time, None meaning as many as this host can carry. A step that
    fails does not end the run; KeyboardInterrupt does, and all machines are released. `on_event`
    may be called from several threads.
    """
    chosen = list(plan.machines() if machines is None else machines)
    values = plan_variables(plan, variables or {})
    started, clock = time.time(), time.monotonic()
    at_once = capacity(chosen) if parallel is None else parallel
    if at_once <= 1 or len(chosen) == 1:
        with ended_by_signals():
            reports = [_Run(plan, spec, values, on_event).run(machine_for(spec)) for spec in chosen]
    else:
        stop = threading.Event()
        runs = [_Run(plan, spec, values, on_event, stop) for spec in chosen]
        reports = _run_parallel(runs, [machine_for(spec) for spec in chosen], stop, at_once)
    return Report(
        plan=plan.name,
        description=plan.description,
        subject=subject,
        started=started,
        seconds=time.monotonic() - clock,
        machines=tuple(reports),
    )


def _run_parallel(
    runs: Sequence[_Run], made: Sequence[Machine], stop: threading.Event, parallel: int
) -> list[MachineReport]:
    """Run with threads. Only this one is interrupted: it tells the others, and cuts their power."""
    try:
        with ended_by_signals(deferred=True) as check, ThreadPoolExecutor(parallel) as pool:
            try:
                futures = [pool.submit(run.run, m) for run, m in zip(runs, made, strict=True)]
                return _results(futures, check)
            except BaseException:
                stop.set()
                pool.shutdown(wait=False, cancel_futures=True)
                for machine in made:
                    with suppress(TeguError):
                        machine.kill()
                raise
    finally:
        for run, machine in zip(runs, made, strict=True):
            if not run.begun:
                machine.release()


def _results(
    futures: Sequence[Future[MachineReport]], check: Callable[[], None]
) -> list[MachineReport]:
    """Wait for all, or for the first that fails, or for `check` to raise."""
    while True:
        done, pending = wait(futures, timeout=0.5, return_when=FIRST_EXCEPTION)
        check()
        for future in done:
            future.result()
        if not pending:
            return [future.result() for future in futures]


@dataclass
class _Run:
    """The plan on one machine."""

    plan: Plan
    spec: MachinePlan
    variables: Mapping[str, str]
    on_event: Callable[[Event], None]
    stop: threading.Event = field(default_factory=threading.Event)
    results: list[StepResult] = field(default_factory=list)
    succeeded: set[str] = field(default_factory=set)
    started: float = 0.0
    begun: bool = False
    gone: str | None = None
    """Why no step can be done on the machine any more."""

    def run(self, machine: Machine) -> MachineReport:
        self.begun = True
        clock = time.monotonic()
        self.started = time.time()
        notice = console = journal = firmware = accelerator = ""
        try:
            self._boot(machine)
            if isinstance(machine, QemuMachine) and self.gone is None:
                notice = machine.notice or ""
                firmware, accelerator = machine.record.firmware, machine.record.accelerator
            self._steps(machine)
            console = self._console(machine)
            if any(r.status in ("failed", "error") for r in self.results):
                journal = self._journal(machine)
        finally:
            machine.release()
        return MachineReport(
            name=self.spec.name,
            firmware=firmware or self.spec.firmware,
            accelerator=accelerator,
            started=self.started,
            seconds=time.monotonic() - clock,
            steps=tuple(self.results),
            notice=notice,
            console=console,
            journal=journal,
        )

    def _boot(self, machine: Machine) -> None:
        def start() -> Outcome:
            machine.start()
            if self.spec.wait != "nothing":
                machine.wait_for_ssh(self.spec.timeout)
            return Outcome()

        self._record("boot" if self.spec.wait == "nothing" else "boot until SSH answers", start)
        if self.results[-1].status != "passed":
            self.gone = "the machine did not boot"
        elif self.spec.wait == "cloud-init":
            self._record("cloud-init is done", lambda: self._cloud_init(machine))

    def _cloud_init(self, machine: Machine) -> Outcome:
        status = cloud_init(machine, timeout=self.spec.timeout)
        good = status in ("done", "not installed", "disabled")
        return Outcome(problems=() if good else (f"cloud-init: {status}",), stdout=status)

    def _steps(self, machine: Machine) -> None:
        for step in self.plan.step:
            if step.only and self.spec.name not in step.only:
                continue
            missing = [need for need in step.needs if need not in self.succeeded]
            if missing:
                self._skip(step, f"needs {', '.join(missing)}")
            elif self.gone is not None and step.action != "wait_console":
                self._skip(step, self.gone)
            else:
                self._step(machine, step)

    def _step(self, machine: Machine, step: Step) -> None:
        context = Context(machine, self.spec, self.variables, self.started)
        result = self._record(step.name, lambda: perform(step, context), step, context)
        if result.status == "passed" and step.id is not None:
            self.succeeded.add(step.id)
        if step.action == "power_off" and result.status == "passed":
            self.gone = "the machine is off"
        elif result.status == "error" and not self._reachable(machine):
            self.gone = "the machine is gone"
        if step.action == "reboot" and result.status == "passed" and self.spec.wait == "cloud-init":
            self._record("cloud-init is done, after the reboot", lambda: self._cloud_init(machine))

    def _record(
        self,
        name: str,
        work: Callable[[], Outcome],
        step: Step | None = None,
        context: Context | None = None,
    ) -> StepResult:
        """Do `work`, again if the step says so, and note what came of it."""
        if self.stop.is_set():
            raise MachineError("interrupted")
        self.on_event(Event(self.spec.name, name))
        clock = time.monotonic()
        attempts = 0
        status, message, outcome = "error", "", Outcome()
        while True:
            attempts += 1
            try:
                outcome = work()
                status = "failed" if outcome.problems else "passed"
                message = "\n".join(outcome.problems)
            except UnsupportedError as e:
                status, message = "skipped", e.message
            except TeguError as e:
                status, message = "error", e.message + (f" ({e.hint})" if e.hint else "")
            again = step is not None and status in ("failed", "error") and attempts <= step.retries
            if not again or step is None or self.stop.wait(step.delay):
                break
        result = StepResult(
            name=name,
            status=status,  # type: ignore[arg-type]
            seconds=time.monotonic() - clock,
            message=message,
            action=step.action if step is not None else "boot",
            command=context.command if context is not None else "",
            attempts=attempts,
            exit_code=outcome.exit_code,
            stdout=outcome.stdout,
            stderr=outcome.stderr,
        )
        self._keep(result)
        for verdict in outcome.tests:
            # The time is the step's: TAP does not say what each of its tests took.
            said = kept(verdict.test.output)
            part = f"{name}: {verdict.test.name}"
            self._keep(
                StepResult(part, verdict.status, 0.0, verdict.message, "test", "", 1, stdout=said)
            )
        return result

    def _keep(self, result: StepResult) -> None:
        self.results.append(result)
        self.on_event(Event(self.spec.name, result.name, result))

    def _skip(self, step: Step, why: str) -> None:
        result = StepResult(step.name, "skipped", 0.0, why, step.action, step.run or "")
        self.results.append(result)
        self.on_event(Event(self.spec.name, step.name, result))

    def _reachable(self, machine: Machine) -> bool:
        try:
            return machine.run("true", timeout=60).exit_code == 0
        except TeguError:
            return False

    def _console(self, machine: Machine) -> str:
        try:
            return machine.console()
        except TeguError:
            return ""  # it was never started

    def _journal(self, machine: Machine) -> str:
        if self.gone is not None:
            return ""
        try:
            return machine.run(_JOURNAL, root=True, timeout=120).stdout
        except TeguError as e:
            return f"the journal could not be read: {e.message}"
