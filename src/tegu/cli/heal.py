"""`tegu heal`: repair what `tegu doctor` finds, and check that it helped."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from tegu.heal.repair import Repair

__all__ = ["app"]

app = typer.Typer()
_UNHEALED = 31


@app.command(epilog="Example: tegu heal --apply --rule frozen_filesystem")
def heal(
    apply: bool = typer.Option(False, "--apply", help="Do it; without, only say what would be."),
    finding: Annotated[
        list[str] | None,
        typer.Option("--finding", metavar="KEY", help="Only this finding; repeatable."),
    ] = None,
    rule: Annotated[
        list[str] | None, typer.Option("--rule", metavar="RULE", help="Only this rule; repeatable.")
    ] = None,
    seconds: str = typer.Option("3", metavar="N", help="How long each look takes."),
    again: bool = typer.Option(False, "--again", help="Also what did not help last time."),
    undo: str = typer.Option("", metavar="ID", help="Take back a repair of the journal."),
    journal: bool = typer.Option(False, "--journal", help="Show what was done."),
    list_remedies: bool = typer.Option(False, "--list", help="Say which remedies there are."),
    as_json: bool = typer.Option(False, "--json", help="Print JSON."),
) -> None:
    """Repair what `tegu doctor` finds: a dry run unless --apply is given.

    A repair is written to the journal first, verified by looking again twice, and taken back when
    the finding is still there. /etc/tegu/heal.toml says what may be done, how often, and to whom
    never. Exit code 31 when a repair did not help or was refused.
    """
    from tegu.cli.doctor import parse_seconds
    from tegu.cli.output import print_json, print_table, spinner
    from tegu.errors import UsageError
    from tegu.heal import RULES, diagnose
    from tegu.heal.journal import Journal
    from tegu.heal.policy import load_policy
    from tegu.heal.repair import repair
    from tegu.heal.repair import undo as take_back

    book = Journal()
    if list_remedies:
        _list(as_json)
        return
    if undo:
        entry = take_back(undo, book)
        print_json(entry.__dict__) if as_json else print(f"{entry.id}: {entry.remedy} taken back")
        return
    if journal:
        entries = book.entries()
        if as_json:
            print_json([e.__dict__ for e in entries])
        else:
            print_table(
                ("id", "time", "remedy", "finding", "outcome", "detail"),
                [
                    (e.id, _when(e.time), e.remedy, e.finding.get("key"), e.outcome, e.detail)
                    for e in entries
                ],
            )
        return
    wanted = finding or []
    rules = rule or sorted({k.partition(":")[0] for k in wanted}) or list(RULES)
    policy = load_policy()
    length = parse_seconds(seconds)
    with spinner() as say:
        found = diagnose(length, rules, say=say).findings
        chosen = [f for f in found if not wanted or f.key in wanted]
        missing = [k for k in wanted if k not in {f.key for f in found}]
        if missing and not chosen:
            raise UsageError(f"there is no finding {missing[0]} now", hint="see `tegu doctor`")
        repairs = repair(
            chosen,
            apply=apply,
            policy=policy,
            journal=book,
            again=again,
            seconds=length,
            say=say,
        )
    helpless = [f for f in chosen if not f.remedy]
    if as_json:
        print_json(
            {
                "applied": apply,
                "repairs": [r.to_json() for r in repairs],
                "without_remedy": [f.to_json() for f in helpless],
            }
        )
    else:
        for one in repairs:
            print("\n".join(_lines(one)))
        for f in helpless:
            print(f"no safe remedy: {f.title}\n  {f.advice}")
        if not chosen:
            print("nothing is wrong")
        elif not apply and any(r.outcome == "planned" for r in repairs):
            print("nothing was done: add --apply")
    if any(r.outcome in ("refused", "undone", "failed") for r in repairs):
        raise typer.Exit(_UNHEALED)


def _lines(one: Repair) -> list[str]:
    out = [f"{one.outcome}: {one.finding.title}"]
    out += [f"  {step}" for step in one.plan]
    out.append(f"  remedy {one.remedy}, reaches: {one.blast}")
    if one.detail:
        out.append(f"  {one.detail}")
    if one.id:
        out.append(f"  {one.seconds:g} s; journal {one.id}")
    return out


def _when(seconds: float) -> str:
    import time

    return time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(seconds))


def _list(as_json: bool) -> None:
    from tegu.cli.output import print_json, print_table
    from tegu.heal.remedies import REMEDIES, find_remedy

    found = [find_remedy(name) for name in REMEDIES]
    if as_json:
        print_json(
            [
                {"name": r.name, "summary": r.summary, "blast": r.blast, "undo": r.reversible}
                for r in found
            ]
        )
        return
    print_table(
        ("remedy", "what it does", "reaches", "undo"),
        [(r.name, r.summary, r.blast, "yes" if r.reversible else "no") for r in found],
    )
