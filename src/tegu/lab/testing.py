"""A plan against a target, with everything that is known of it: what `tegu test` does."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from tegu.lab.flags import accelerator_choice
from tegu.lab.html import write_html
from tegu.lab.junit import write_junit
from tegu.lab.plan import Plan
from tegu.lab.results import Report, write_report
from tegu.lab.runner import Event, run_plan
from tegu.lab.subject import subject_for
from tegu.lab.variables import parse_variables, select

__all__ = ["run_tests", "write_reports"]


def run_tests(
    plan: Plan,
    target: str,
    *,
    known: Mapping[str, str] | None = None,
    given: Sequence[str] = (),
    only: Sequence[str] = (),
    parallel: int | None = None,
    accelerator: str = "auto",
    on_event: Callable[[Event], None] = lambda _: None,
) -> Report:
    """Run `plan` on `target` (see subject_for) and return the report.

    `known` are values that the plan may declare variables for; `given` are words NAME=VALUE that
    it must know; `only` are the names of the plan's machines to run on, none meaning all.
    """
    subject = subject_for(target, plan, only=only, accelerator=accelerator_choice(accelerator))
    return run_plan(
        plan,
        subject.make,
        subject=subject.name,
        variables=select(plan, known or {}, parse_variables(list(given))),
        machines=subject.machines,
        parallel=parallel,
        on_event=on_event,
    )


def write_reports(
    report: Report,
    *,
    directory: Path | None = None,
    junit: Path | None = None,
    html: Path | None = None,
) -> list[Path]:
    """Write the report: all three forms into `directory`, or each where it is wanted."""
    written = []
    if directory is not None:
        write_report(report, directory / f"{report.plan}.json")
        write_junit(report, directory / f"{report.plan}.xml")
        write_html(report, directory / f"{report.plan}.html")
        written += [directory / f"{report.plan}.{kind}" for kind in ("json", "xml", "html")]
    if junit is not None:
        write_junit(report, junit)
        written.append(junit)
    if html is not None:
        write_html(report, html)
        written.append(html)
    return written
