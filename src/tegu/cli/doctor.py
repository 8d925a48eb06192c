"""`tegu doctor`: what is wrong with this machine, and who causes it."""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from tegu.heal import Diagnosis, Finding

__all__ = ["app"]

app = typer.Typer()
ILL = 30
"""Exit code when there is more than a notice."""


@app.command(epilog="Example: tegu doctor --seconds 10 --html report.html")
def doctor(
    seconds: str = typer.Option("3", metavar="N", help="How long to look, 0.2 to 600 seconds."),
    rule: Annotated[
        list[str] | None, typer.Option("--rule", metavar="RULE", help="Only this rule; repeatable.")
    ] = None,
    closer: bool = typer.Option(
        False,
        "--closer",
        help="Where tasks wait a lot, let a probe look for 3 s, as the agent does.",
    ),
    list_rules: bool = typer.Option(False, "--list", help="Say which rules there are."),
    html: Annotated[
        Path | None, typer.Option("--html", metavar="FILE", help="Write a page as well.")
    ] = None,
    as_json: bool = typer.Option(False, "--json", help="Print JSON."),
) -> None:
    """Say what is wrong with this machine: the cause, who suffers, the evidence, the remedy.

    Looks twice, some seconds apart, and runs all rules. Exit code 30 when there is a finding
    that is more than a notice. Run it as root: others see little of other users' processes.
    """
    import os

    from tegu.cli.output import note, print_json, print_table, spinner
    from tegu.heal import RULES, diagnose, find_rule

    if list_rules:
        found = [find_rule(name) for name in RULES]
        if as_json:
            print_json(
                [
                    {
                        "name": r.name,
                        "question": r.question,
                        "signals": r.signals,
                        "reference": r.reference,
                    }
                    for r in found
                ]
            )
        else:
            print_table(("rule", "question"), [(r.name, r.question) for r in found])
        return
    probes = None
    if closer:
        from tegu.heal.closer import Closer

        probes = Closer()
    with spinner() as say:
        diagnosis = diagnose(parse_seconds(seconds), tuple(rule or RULES), say=say, closer=probes)
    if html is not None:
        from tegu.files import write_atomic
        from tegu.heal.report import page

        write_atomic(html, page(diagnosis))
    if as_json:
        print_json(diagnosis.to_json())
    else:
        show(diagnosis)
        if os.geteuid() != 0:
            note("not run as root: much cannot be seen")
        for name, why in diagnosis.failures.items():
            note(f"the rule {name} failed: {why}")
    if diagnosis.ill:
        raise typer.Exit(ILL)


def show(diagnosis: Diagnosis) -> None:
    """Print findings, the worst first."""
    from tegu.heal import score

    for finding in diagnosis.findings:
        print("\n".join(lines(finding)), end="\n\n")
    count = len(diagnosis.findings)
    what = "nothing is wrong" if not count else f"{count} finding{'s' if count > 1 else ''}"
    print(f"{what}; health {score(diagnosis.findings)} of 100, by {len(diagnosis.rules)} rules")


def lines(finding: Finding) -> list[str]:
    """Return a finding in words."""
    out = [f"{finding.severity.upper()}: {finding.title}"]
    if finding.culprit is not None:
        out.append(f"  culprit   {finding.culprit} ({finding.sure:.0%} sure)")
    if finding.victims:
        more = len(finding.victims) - 3
        named = ", ".join(str(v) for v in finding.victims[:3])
        out.append(f"  victims   {named}{f' and {more} more' if more > 0 else ''}")
    out += [f"  evidence  {e}" for e in finding.evidence]
    for stack in finding.stacks[:1]:
        out.append(f"  stack     {' < '.join(stack[:8])}")
    if finding.remedy:
        out.append(f"  remedy    tegu heal --finding '{finding.key}' ({finding.remedy})")
    if finding.advice:
        out.append(f"  advice    {finding.advice}")
    return out


def parse_seconds(words: str) -> float:
    """Return a number of seconds from 0.2 to 600; raises UsageError."""
    from tegu.errors import UsageError

    if re.fullmatch(r"\d{1,4}(\.\d{1,6})?s?", words) is None:
        raise UsageError(f"--seconds: {words!r} is no number of seconds")
    value = float(words.removesuffix("s"))
    if not 0.2 <= value <= 600:
        raise UsageError("--seconds: from 0.2 to 600")
    return value
