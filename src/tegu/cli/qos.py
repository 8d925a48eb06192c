"""`tegu qos`: latency-critical and batch work on one machine."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from tegu.cli import qos_pods

if TYPE_CHECKING:
    from tegu.qos.static import Step

__all__ = ["app"]

app = typer.Typer(no_args_is_help=True)
_JSON = typer.Option(False, "--json", help="Print JSON.")
_DEFAULT = Path("/etc/tegu/qos.toml")
_Policy = Annotated[Path, typer.Argument(metavar="[POLICY]", help="The policy.")]


@app.callback()
def qos() -> None:
    """Latency-critical and batch work on one machine, kept apart by cgroups."""


@app.command(epilog="Example: tegu qos apply /etc/tegu/qos.toml")
def apply(policy: _Policy = _DEFAULT, as_json: bool = _JSON) -> None:
    """Write the static layer: shares that hold without any process of ours."""
    from tegu.cli.output import note, print_json, print_table
    from tegu.qos import Place, load_policy
    from tegu.qos import apply as do

    done = do(load_policy(policy), Place.here())
    rows = [(*_words(s), "written") for s in done.written]
    rows += [(*_words(s), "was so already") for s in done.kept]
    if as_json:
        print_json(
            {
                "members": done.members,
                "steps": [
                    dict(zip(("target", "value", "why", "done"), r, strict=True)) for r in rows
                ],
                "refused": [{"what": r.what, "why": r.why} for r in done.refused],
                "restored": done.restored,
            }
        )
        return
    print_table(("what", "to", "why", ""), rows)
    for refusal in done.refused:
        note(f"{refusal.what}: unsupported: {refusal.why}")


@app.command(epilog="Example: tegu qos explain /etc/tegu/qos.toml")
def explain(policy: _Policy = _DEFAULT, as_json: bool = _JSON) -> None:
    """Say what `apply` would do and why, and where shares would be lost; writes nothing."""
    from tegu.cli.output import note, print_json, print_table
    from tegu.qos import Place, load_policy
    from tegu.qos.isolation import find_leaks

    place = Place.here()
    found, plan = place.plan(load_policy(policy))
    rows = []
    for step in plan.steps:
        now = step.target.read()
        rows.append(
            (str(step.target), "gone" if now is None else now or "unset", *_words(step)[1:])
        )
    leaks = [leak.words() for leak in find_leaks(found, place.hierarchy)]
    if as_json:
        keys = ("target", "now", "value", "why")
        print_json(
            {
                "members": found,
                "steps": [dict(zip(keys, r, strict=True)) for r in rows],
                "refused": [{"what": r.what, "why": r.why} for r in plan.refusals],
                "leaks": leaks,
            }
        )
        return
    for name, groups in found.items():
        print(f"{name}: {', '.join(groups) or 'nothing matches'}")
    print_table(("what", "is", "would be", "why"), rows)
    for refusal in plan.refusals:
        note(f"{refusal.what}: unsupported: {refusal.why}")
    for words in leaks:
        note(words)


@app.command(epilog="Example: tegu qos status --json")
def status(as_json: bool = _JSON) -> None:
    """Say what is in force: every value written here, what it was, and whether it still holds."""
    from tegu.cli.output import print_json, print_table
    from tegu.qos import Place

    rows: list[tuple[str, str, str, str]] = []
    entries = Place.here().journal.entries()
    latest = {e.target: e for e in entries}
    first = {e.target: e.before for e in reversed(entries)}
    for target, entry in latest.items():
        now = target.read()
        holds = "gone" if now is None else "holds" if now == entry.after else f"is {now or 'unset'}"
        if entry.after != "*":
            rows.append((str(target), first[target] or "unset", entry.after or "unset", holds))
    if as_json:
        keys = ("target", "before", "value", "state")
        print_json([dict(zip(keys, r, strict=True)) for r in rows])
        return
    if not rows:
        print("nothing is applied")
        return
    print_table(("what", "before", "to", "now"), rows)


@app.command(epilog="Example: tegu qos undo")
def undo(
    force: bool = typer.Option(False, "--force", help="Also what others have changed since."),
    as_json: bool = _JSON,
) -> None:
    """Restore every value as it was before."""
    from dataclasses import asdict

    from tegu.cli.output import note, print_json
    from tegu.errors import QosError
    from tegu.qos import Place
    from tegu.qos import undo as do

    done = do(Place.here(), force=force)
    if as_json:
        print_json(asdict(done))
    else:
        print(f"{len(done.restored)} restored, {len(done.gone)} gone meanwhile")
    for words in done.conflicts:
        note(f"left alone: {words}")
    if done.failed:
        raise QosError(f"not restored: {'; '.join(done.failed)}", hint="run it again")


@app.command(
    epilog="Example: tegu qos run --class batch -- make -j4",
    context_settings={"ignore_unknown_options": True},
)
def run(
    command: Annotated[list[str], typer.Argument(metavar="-- COMMAND...")],
    class_name: str = typer.Option("batch", "--class", help="latency, normal or batch."),
    policy: str = typer.Option("", "--policy", metavar="FILE", help="Whose settings; else ours."),
) -> None:
    """Run a command in a class; ends with its exit code."""
    from tegu.errors import UsageError
    from tegu.linux.cgroup2 import find_hierarchy
    from tegu.qos import load_policy, parse_policy
    from tegu.qos.launch import run_in_class
    from tegu.qos.policy import CLASSES

    chosen = next((n for n in CLASSES if n == class_name), None)
    if chosen is None:
        raise UsageError(f"--class: {class_name!r} is none of {', '.join(CLASSES)}")
    settings = (
        load_policy(Path(policy))
        if policy
        else parse_policy('[batch]\nmatch = ["slice:tegu-batch"]\n', "the defaults")
    )
    raise typer.Exit(run_in_class(command, settings.classes[chosen], find_hierarchy()))


def _words(step: Step) -> tuple[str, str, str]:
    return str(step.target), step.value, step.why


@app.command(epilog="Example: tegu qos serve /etc/tegu/qos.toml --listen 127.0.0.1:9871")
def serve(
    policy: _Policy = _DEFAULT,
    listen: str = typer.Option("", metavar="HOST:PORT", help="Answer Prometheus here."),
) -> None:
    """Keep the policy's p99: the static layer, and limits on batch that follow the feed.

    tegu-qos.service runs it. Everything is restored when it ends.
    """
    import signal
    import threading

    from tegu.qos import Place, load_policy
    from tegu.qos.daemon import serve as keep

    stop = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: stop.set())
    keep(load_policy(policy), Place.here(), stop, listen)


@app.command(epilog="Example: tegu qos simulate policy.toml windows.jsonl")
def simulate(
    policy: _Policy,
    trace: Annotated[Path, typer.Argument(metavar="TRACE", help="One reading a line, as JSON.")],
    as_json: bool = _JSON,
) -> None:
    """Say what the feedback layer would have decided for recorded windows; writes nothing.

    A line is `{"p99": seconds, "samples": n, "pressure": {"cpu": percent}}`; `{}` is a window in
    which the feed said nothing.
    """
    from tegu.cli.output import print_json, print_table
    from tegu.qos import load_policy
    from tegu.qos.simulate import simulate as run_through

    rows: list[dict[str, Any]] = [
        {
            "window": number,
            "p99": p99,
            "state": decision.state,
            "why": decision.why,
            "knobs": dict(decision.knobs),
        }
        for number, (p99, decision) in enumerate(run_through(load_policy(policy), trace), start=1)
    ]
    if as_json:
        print_json(rows)
        return
    print_table(
        ("window", "p99", "knobs", "state", "why"),
        [
            (
                r["window"],
                "" if r["p99"] is None else f"{r['p99'] * 1e3:.3f} ms",
                " ".join(f"{k} {v:.0%}" for k, v in r["knobs"].items()),
                r["state"],
                r["why"],
            )
            for r in rows
        ],
    )


@app.command(epilog="Example: tegu qos top")
def top(
    once: bool = typer.Option(False, "--once", help="Print one state and end."),
    as_json: bool = _JSON,
) -> None:
    """Watch the loop: p99 against the objective, pressure, what batch may have, over time."""
    import sys
    import time

    from tegu.cli.output import print_json
    from tegu.errors import QosError
    from tegu.qos import Journal
    from tegu.qos.exposition import read_state
    from tegu.qos.view import History, render

    path = Journal().path.with_suffix(".state")
    state = read_state(path)
    if state is None:
        raise QosError("no loop runs here", hint="systemctl start tegu-qos, or `tegu qos serve`")
    if as_json:
        print_json(state)
        return
    history = History()
    history.add(state)
    if once or not sys.stdout.isatty():
        print(render(history))
        return
    from rich.live import Live
    from rich.text import Text

    with Live(Text(render(history)), refresh_per_second=2) as live:
        while (state := read_state(path)) is not None:
            history.add(state)
            live.update(Text(render(history)))
            time.sleep(1)


@app.command(epilog="Example: tegu qos doctor /etc/tegu/qos.toml")
def doctor(policy: _Policy = _DEFAULT, as_json: bool = _JSON) -> None:
    """Say where a policy cannot do what it promises: lost shares, writes that belong to nobody."""
    from tegu.cli.output import print_json, print_table
    from tegu.qos import Place, load_policy
    from tegu.qos.isolation import find_leaks
    from tegu.qos.writeback import find_gaps

    place = Place.here()
    found, plan = place.plan(load_policy(policy))
    rows = [(r.what, r.why, "") for r in plan.refusals]
    rows += [(leak.batch, leak.words(), "") for leak in find_leaks(found, place.hierarchy)]
    groups = [*found["latency"], *found["batch"]]
    rows += [
        (gap.where, f"buffered writes are charged to nobody: {gap.why}", gap.remedy)
        for gap in find_gaps(place.hierarchy, groups)
    ]
    if as_json:
        print_json([dict(zip(("where", "finding", "remedy"), r, strict=True)) for r in rows])
        return
    print_table(("where", "finding", "remedy"), rows)


qos_pods.add_to(app)
