"""`tegu test`: plans from the command line."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from tegu.cli.output import note, print_json, print_table, spinner

if TYPE_CHECKING:
    from tegu.lab import Event, Plan, Report

app = typer.Typer()


@app.command(
    epilog="Example: tegu test distro/plans/acceptance.toml distro/tegu.toml --html report.html"
)
def test(
    plan: Annotated[
        Path | None, typer.Argument(help="The plan (TOML) [those that the definition names].")
    ] = None,
    target: Annotated[
        str | None,
        typer.Argument(
            help="An image, a definition to build first, a machine that runs, "
            "ssh://[USER@]HOST[:PORT], or `local`."
        ),
    ] = None,
    *,
    file: Annotated[
        Path | None, typer.Option("--file", "-f", help="A definition to build and test.")
    ] = None,
    profile: Annotated[str | None, typer.Option(help="Profile of the definition.")] = None,
    lock: Annotated[
        Path | None, typer.Option(help="The lock of an image, for plans that ask for packages.")
    ] = None,
    machine: Annotated[
        list[str] | None, typer.Option(help="Only this machine of the plan; repeatable.")
    ] = None,
    var: Annotated[
        list[str] | None, typer.Option(help="Value of a variable, NAME=VALUE; repeatable.")
    ] = None,
    parallel: Annotated[
        int | None,
        typer.Option(min=1, help="Machines that are up at a time [what the host can carry]."),
    ] = None,
    accelerator: Annotated[str, typer.Option(help="auto, kvm or tcg (emulation).")] = "auto",
    output: Annotated[
        Path | None,
        typer.Option("--output", "-o", help="Write PLAN.json, PLAN.xml and PLAN.html here."),
    ] = None,
    junit: Annotated[Path | None, typer.Option(help="Write JUnit XML here.")] = None,
    html: Annotated[Path | None, typer.Option(help="Write an HTML page here.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print the report as JSON.")] = False,
) -> int:
    """Run a test plan on machines booted from an image, or on a machine that runs.

    Ends with exit code 11 when an expectation does not hold. A definition is built first; then the
    plan may ask for its packages, sockets and names.
    """
    from tegu.errors import PlanFailed
    from tegu.lab import report_json, run_tests, write_reports

    with spinner() as say:
        image, plans, known = _prepare(plan, target, file, profile, lock, say)
        reports = [
            run_tests(
                one,
                image,
                known=known,
                given=var or [],
                only=machine or [],
                parallel=parallel,
                accelerator=accelerator,
                on_event=lambda event: _show(event, say),
            )
            for one in plans
        ]
    for report in reports:
        write_reports(report, directory=output, junit=junit, html=html)
    failed = [r for r in reports if not r.passed]
    if as_json:
        bodies = [report_json(r) for r in reports]
        print_json(bodies if len(bodies) > 1 else bodies[0])
        return PlanFailed.exit_code if failed else 0
    for report in reports:
        _summary(report)
    if failed:
        count = sum(r.count("failed") + r.count("error") for r in failed)
        names = ", ".join(r.plan for r in failed)
        where = f"see {output / (failed[0].plan + '.html')}" if output else None
        raise PlanFailed(f"{names}: {count} steps did not pass", hint=where)
    return 0


def _prepare(
    plan: Path | None,
    target: str | None,
    file: Path | None,
    profile: str | None,
    lock: Path | None,
    say: Any,
) -> tuple[str, list[Plan], dict[str, str]]:
    """Return what to test, by which plans, and what is known of it; builds what must be built."""
    from tegu.errors import UsageError
    from tegu.lab import is_definition, load_plan, system_variables

    if file is None and target is not None and is_definition(Path(target)):
        file, target = Path(target), None
    plans = [load_plan(plan)] if plan is not None else []
    if file is None:
        if target is None or not plans:
            raise UsageError("what to test, and by which plan?", hint="tegu test PLAN IMAGE")
        known = {}
        if lock is not None:
            from tegu.packages import Lock

            known = system_variables(None, Lock.read(lock))
        return target, plans, known
    from tegu.image import build_definition

    built = build_definition(file, profile=profile, on_event=lambda e: say(str(e[1])))
    plans = plans or [load_plan(p) for p in built.definition.plan]
    if not plans:
        raise UsageError(f"{file} names no plan", hint='add: plan = ["plans/acceptance.toml"]')
    known = system_variables(built.definition, built.lock)
    return target or str(built.path), plans, known


def _show(event: Event, say: Any) -> None:
    import sys

    result = event.result
    if result is None:
        say(f"{event.machine}: {event.step}")
    elif sys.stderr.isatty() and result.status != "passed":
        note(f"{event.machine}: {event.step}: {result.status}: {result.message.splitlines()[0]}")


def _summary(report: Report) -> None:
    from tegu.lab import STATUSES

    print_table(
        [report.plan, *STATUSES, "seconds"],
        [[m.name, *(m.count(s) for s in STATUSES), f"{m.seconds:.0f}"] for m in report.machines],
    )
    for machine in report.machines:
        for step in machine.steps:
            if step.status in ("failed", "error"):
                print(f"{machine.name}: {step.name}: {step.status}")
                print("\n".join(f"    {line}" for line in step.message.splitlines()[:12]))
