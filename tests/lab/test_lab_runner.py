"""Plans are run, on this very machine where nothing more is needed."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Callable
from pathlib import Path

import pytest

from tegu.errors import MachineError, UsageError
from tegu.lab.local import LocalMachine
from tegu.lab.machine import Command, Result
from tegu.lab.plan import MachinePlan, Plan
from tegu.lab.plan_file import load_plan
from tegu.lab.results import Report, StepResult
from tegu.lab.runner import Event, run_plan
from tegu.lab.subject import subject_for


class Scripted(LocalMachine):
    """This machine, with troubles of its own: `die` ends it for good, `slow` takes its time."""

    def __init__(self) -> None:
        self.dead = False
        self.released = 0
        self.killed = threading.Event()

    def run(
        self, command: Command, *, root: bool = False, timeout: float = 60, stdin: str | None = None
    ) -> Result:
        if command == "die":
            self.dead = True
        if self.dead:
            raise MachineError("scripted has died (last on the console: oops)")
        if command == "wait for the kill":
            assert self.killed.wait(60)
            raise MachineError("scripted has died")
        return super().run(command, timeout=timeout, stdin=stdin)

    def console(self) -> str:
        return "booting\noops\n"

    def kill(self) -> None:
        self.killed.set()

    def release(self) -> None:
        self.released += 1


Run = Callable[..., Report]


@pytest.fixture
def run(tmp_path: Path) -> Run:
    def go(steps: str, **options: object) -> Report:
        path = tmp_path / "plan.toml"
        head = 'name = "p"\n[variable.word]\nhelp = "a word"\ndefault = "it\'s; echo x"\n'
        path.write_text(f'{head}[boot]\nwait = "ssh"\n{steps}')
        plan = load_plan(path)
        make = options.pop("make", lambda _: LocalMachine())
        return run_plan(plan, make, subject="here", **options)  # type: ignore[arg-type]

    return go


def step(name: str, body: str) -> str:
    return f'[[step]]\nname = "{name}"\n{body}\n'


def results(report: Report) -> dict[str, StepResult]:
    return {s.name: s for m in report.machines for s in m.steps}


def test_steps_pass_and_fail(run: Run) -> None:
    report = run(
        step("good", 'run = "echo hi; echo no >&2; exit 3"\nexit = [0, 3]\nstdout = {equals="hi"}')
        + step("bad exit", 'run = "echo why >&2; exit 4"')
        + step("bad text", 'run = "echo a"\nstdout = {equals="b"}\nstderr = {contains=["c"]}')
        + step(
            "stdin", 'run = "tr a-z A-Z"\nstdin = "{{ word }}"\nstdout = {equals="IT\'S; ECHO X"}'
        )
        + step("quoted", 'run = "printf %s {{ word }}"\nstdout = {equals="{{ word }}"}')
        + step("host", 'on = "host"\nrun = "echo {{ machine }}"\nstdout = {equals="default"}')
    )
    found = results(report)
    assert {n: r.status for n, r in found.items()} == {
        "boot until SSH answers": "passed",
        "good": "passed",
        "bad exit": "failed",
        "bad text": "failed",
        "stdin": "passed",
        "quoted": "passed",
        "host": "passed",
    }
    assert found["good"].exit_code == 3
    assert (found["good"].stdout, found["good"].stderr) == ("hi\n", "no\n")
    assert found["bad exit"].message == "exit code 4, not 0: why"
    assert "stderr does not contain 'c'" in found["bad text"].message
    assert found["quoted"].command == "printf %s 'it'\"'\"'s; echo x'"
    assert not report.passed
    assert (report.count("passed"), report.count("failed")) == (5, 2)


def test_a_report_of_good_steps_passes(run: Run) -> None:
    events: list[Event] = []
    report = run(step("a", 'run = "true"'), on_event=events.append)
    assert report.passed
    assert [(e.step, e.result is None) for e in events] == [
        ("boot until SSH answers", True),
        ("boot until SSH answers", False),
        ("a", True),
        ("a", False),
    ]


def test_retries_until_it_holds(run: Run, tmp_path: Path) -> None:
    counter = tmp_path / "n"
    report = run(
        step(
            "soon",
            f'run = "echo x >> {counter}; wc -l < {counter}"\nstdout = {{equals="3"}}\n'
            "retries = 5\ndelay = 0",
        )
        + step("never", 'run = "false"\nretries = 2\ndelay = 0')
    )
    found = results(report)
    assert (found["soon"].status, found["soon"].attempts) == ("passed", 3)
    assert (found["never"].status, found["never"].attempts) == ("failed", 3)


def test_what_needs_a_failed_step_is_skipped(run: Run) -> None:
    report = run(
        step("a", 'id = "a"\nrun = "false"')
        + step("b", 'id = "b"\nneeds = ["a"]\nrun = "true"')
        + step("c", 'needs = ["b"]\nrun = "true"')
    )
    found = results(report)
    assert (found["b"].status, found["b"].message) == ("skipped", "needs a")
    assert found["c"].status == "skipped"


def test_a_timeout_is_an_error_and_the_rest_goes_on(run: Run) -> None:
    found = results(
        run(step("long", 'run = "sleep 600"\ntimeout = 0.3') + step("next", 'run = "true"'))
    )
    assert found["long"].status == "error"
    assert "did not end within 0.3 s" in found["long"].message
    assert found["next"].status == "passed"


def test_what_a_machine_cannot_do_is_skipped_and_says_so(run: Run) -> None:
    report = run(step("off", "power_off = true"))
    assert results(report)["off"].status == "skipped"
    assert "unsupported: " in results(report)["off"].message


def test_a_machine_that_dies_ends_its_run_at_once(run: Run) -> None:
    machine = Scripted()
    report = run(
        step("die", 'run = "die"\nretries = 0')
        + step("after", 'run = "true"')
        + step("host", 'on = "host"\nrun = "true"'),
        make=lambda _: machine,
    )
    found = results(report)
    assert found["die"].status == "error"
    assert "last on the console: oops" in found["die"].message
    assert (found["after"].status, found["after"].message) == ("skipped", "the machine is gone")
    assert report.machines[0].console == "booting\noops\n"
    assert machine.released == 1


def test_a_machine_that_does_not_boot(run: Run) -> None:
    class Unbootable(Scripted):
        def start(self) -> None:
            raise MachineError("QEMU did not start: no")

    report = run(step("a", 'run = "true"'), make=lambda _: Unbootable())
    assert [(s.name, s.status) for s in report.machines[0].steps] == [
        ("boot until SSH answers", "error"),
        ("a", "skipped"),
    ]
    assert not report.passed


def test_steps_for_some_machines_only(run: Run) -> None:
    report = run(
        '[[machine]]\nname = "one"\n[[machine]]\nname = "two"\n'
        + step("both", 'run = "true"')
        + step("first", 'run = "true"\nonly = ["one"]')
    )
    assert [len(m.steps) for m in report.machines] == [3, 2]


MANY = "".join(f'[[machine]]\nname = "m{i}"\n' for i in range(3))


def test_machines_in_parallel(run: Run) -> None:
    meeting = threading.Barrier(3)

    class Meets(Scripted):
        def start(self) -> None:
            meeting.wait(60)  # passes only when three are up at once

    report = run(MANY + step("a", 'run = "echo {{ machine }}"'), make=lambda _: Meets(), parallel=3)
    assert report.passed
    assert [m.steps[-1].stdout.strip() for m in report.machines] == ["m0", "m1", "m2"]


def test_an_interrupted_run_releases_every_machine(run: Run) -> None:
    machines: list[Scripted] = []

    def make(_: MachinePlan) -> Scripted:
        machines.append(Scripted())
        return machines[-1]

    def interrupt(event: Event) -> None:
        if event.machine == "m0" and event.step == "hang":
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run(
            MANY + step("hang", 'run = "wait for the kill"') + step("b", 'run = "true"'),
            make=make,
            parallel=3,
            on_event=interrupt,
        )
    assert [m.released for m in machines] == [1, 1, 1]


def test_a_second_signal_does_not_disturb_the_releasing(run: Run) -> None:
    class Slow(Scripted):
        def kill(self) -> None:
            os.kill(os.getpid(), signal.SIGTERM)  # as `timeout` does
            super().kill()

    machines = [Slow(), Slow()]
    left = list(machines)
    up = threading.Barrier(3)

    def watch(event: Event) -> None:
        if event.step == "hang" and event.result is None:
            up.wait(60)

    def terminate() -> None:
        up.wait(60)
        os.kill(os.getpid(), signal.SIGTERM)

    threading.Thread(target=terminate).start()
    with pytest.raises(KeyboardInterrupt):
        run(
            '[[machine]]\nname = "a"\n[[machine]]\nname = "b"\n'
            + step("hang", 'run = "wait for the kill"'),
            make=lambda _: left.pop(),
            parallel=2,
            on_event=watch,
        )
    assert [(m.released, m.killed.is_set()) for m in machines] == [(1, True), (1, True)]


def test_subjects(tmp_path: Path) -> None:
    plan = Plan.model_validate(
        {
            "name": "p",
            "machine": [{"name": "a"}, {"name": "b"}],
            "step": [{"name": "x", "run": "y"}],
        }
    )
    image = tmp_path / "disk.raw"
    image.touch()
    assert [m.name for m in subject_for(str(image), plan).machines] == ["a", "b"]
    assert [m.name for m in subject_for(str(image), plan, only=["b"]).machines] == ["b"]
    assert [m.name for m in subject_for("local", plan).machines] == ["local"]
    with pytest.raises(UsageError, match="has no machine 'c'"):
        subject_for(str(image), plan, only=["c"])
    with pytest.raises(UsageError, match="neither an image nor a machine"):
        subject_for("nope", plan)
    with pytest.raises(UsageError, match="not an SSH address"):
        subject_for("ssh://-oProxyCommand=x", plan)
