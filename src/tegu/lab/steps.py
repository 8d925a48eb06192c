"""One step of a plan, done once: the action, and whether what came of it is as expected."""

from __future__ import annotations

import shlex
import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

from tegu.errors import TeguError
from tegu.lab.expect import check_text
from tegu.lab.local import LocalMachine
from tegu.lab.machine import Machine, Result
from tegu.lab.plan import MachinePlan, Step
from tegu.lab.qemu import QemuMachine
from tegu.lab.remote import SshMachine
from tegu.lab.tap import Known, Verdict, judge, parse_tap
from tegu.lab.template import fill

__all__ = ["Context", "Outcome", "kept", "perform"]

_KEPT: Final = 256 * 1024  # characters of a command's output that go into the report


@dataclass(frozen=True, slots=True)
class Outcome:
    """`problems`: one message for each expectation that does not hold.

    `tests` are those that a step's TAP output reports.
    """

    problems: tuple[str, ...] = ()
    exit_code: int | None = None
    stdout: str = ""
    stderr: str = ""
    tests: tuple[Verdict, ...] = ()


@dataclass
class Context:
    """Where a step is done. `command` becomes what was really run."""

    machine: Machine
    spec: MachinePlan
    variables: Mapping[str, str]
    started: float
    command: str = ""

    def values(self) -> dict[str, str]:
        """Return the plan's variables and the built-in ones."""
        machine, spec = self.machine, self.spec
        out = dict(self.variables) | {
            "machine": spec.name,
            "firmware": spec.firmware,
            "user": spec.user,
            "hostname": spec.hostname,
            "now": str(int(time.time())),
            "started": str(int(self.started)),
        }
        if isinstance(machine, QemuMachine | SshMachine) and machine.has_network:
            address = machine.ssh.address
            out["ssh_host"] = address.host
            out["ssh_port"] = str(address.port or 22)
            out["user"] = address.user or spec.user
            out["known_hosts"] = str(address.known_hosts or "~/.ssh/known_hosts")
            out["ssh_key"] = str(address.identities[0]) if address.identities else ""
        return out


def perform(step: Step, context: Context) -> Outcome:
    """Do `step` once. MachineError when the machine does not let it end."""
    machine = context.machine
    values = context.values()
    if step.run is not None:
        return _run(step, step.run, context, values)
    problems: list[str] = []
    if step.reboot:
        machine.reboot(step.timeout)
    elif step.power_off:
        machine.power_off(step.timeout)
    elif step.wait_console is not None:
        context.command = step.wait_console
        line = machine.wait_for_console(fill(step.wait_console, values), timeout=step.timeout)
        return Outcome(tuple(_of_console(step, context, values)), stdout=line)
    problems += _of_console(step, context, values)
    return Outcome(tuple(problems))


def _run(step: Step, line: str, context: Context, values: Mapping[str, str]) -> Outcome:
    command = fill(line, values, shlex.quote)
    context.command = command
    stdin = fill(step.stdin, values) if step.stdin is not None else None
    if step.on == "host":
        with LocalMachine() as host:
            done = host.run(command, timeout=step.timeout, stdin=stdin)
    else:
        done = context.machine.run(command, root=step.root, timeout=step.timeout, stdin=stdin)
    problems = _of_exit(step, done)
    if step.stdout is not None:
        problems += check_text(done.stdout, step.stdout, values, "stdout")
    if step.stderr is not None:
        problems += check_text(done.stderr, step.stderr, values, "stderr")
    tests: list[Verdict] = []
    if step.tap:
        tests, wrong = _of_tap(step, done.stdout)
        problems += wrong
    problems += _of_console(step, context, values)
    # With tests of their own, the output is kept once: with them.
    said = "" if tests else kept(done.stdout)
    return Outcome(tuple(problems), done.exit_code, said, kept(done.stderr), tuple(tests))


def _of_tap(step: Step, text: str) -> tuple[list[Verdict], list[str]]:
    found, problems = parse_tap(text)
    known = [Known(k.test, k.expected, k.reason, tuple(k.inner)) for k in step.known]
    verdicts, absent = judge(found, known)
    problems += [v.message for v in verdicts if v.status == "failed"]
    problems += [f"{name}: it is known, but did not run" for name in absent]
    return verdicts, problems


def _of_exit(step: Step, done: Result) -> list[str]:
    allowed = [step.exit] if isinstance(step.exit, int) else step.exit
    if done.exit_code in allowed:
        return []
    said = (done.stderr.strip() or done.stdout.strip()).splitlines()[-1:]
    wanted = " or ".join(map(str, allowed))
    return [f"exit code {done.exit_code}, not {wanted}" + (f": {said[0][:300]}" if said else "")]


def _of_console(step: Step, context: Context, values: Mapping[str, str]) -> list[str]:
    if step.console is None:
        return []
    try:
        said = context.machine.console()
    except TeguError as e:
        return [e.message]
    return check_text(said, step.console, values, "the console")


def kept(text: str) -> str:
    """Return as much of a command's output as goes into a report."""
    if len(text) <= _KEPT:
        return text
    return f"{text[:_KEPT]}\n... cut, {len(text) - _KEPT} characters more"
