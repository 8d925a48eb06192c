"""`tegu probe`: questions about a machine that runs, one probe each."""

from __future__ import annotations

import re
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from tegu.probe.tools import TOOLS, find_tool

if TYPE_CHECKING:
    import threading

    from tegu.probe import Recording, Tool

__all__ = ["app"]

app = typer.Typer(no_args_is_help=True)

# A reader follows no more; who wants all records them.
_EVENTS_PER_SECOND = 5
_EXAMPLE = "Example: tegu probe runq --seconds 10 --threshold 2ms"


@app.callback(epilog=_EXAMPLE)
def probe() -> None:
    """Probes: each answers one question about this machine, and names who causes the trouble."""


@app.command("list", epilog="Example: tegu probe list --json")
def list_probes(as_json: bool = typer.Option(False, "--json", help="Print JSON.")) -> None:
    """Say which probes there are, and for each whether it works here or why not.

    Each is loaded into the kernel and attached for a moment.
    """
    from tegu.cli.output import print_json, print_table, spinner
    from tegu.probe.matrix import asked_here

    with spinner() as say:
        found = asked_here(say)
    if as_json:
        print_json(found)
        return
    print_table(
        ("probe", "of", "question", "here"),
        [
            (
                r["name"],
                r["group"],
                r["question"],
                "works" if r["available"] else f"unsupported: {r['reason']}",
            )
            for r in found["probes"]
        ],
    )


@app.command("matrix", epilog="Example: tegu probe matrix 6.1.json 6.12.json --json")
def matrix(
    files: Annotated[
        list[Path], typer.Argument(metavar="FILE", help="What `tegu probe list --json` printed.")
    ],
    as_json: bool = typer.Option(False, "--json", help="Print JSON."),
) -> None:
    """Lay what machines said of their probes side by side, as a table in Markdown.

    On each machine: tegu probe list --json > KERNEL.json.
    """
    from tegu.cli.output import print_json
    from tegu.probe.matrix import Listing, read_listing, table

    listings: list[Listing] = [read_listing(path) for path in files]
    if as_json:
        print_json({listing.kernel: listing.probes for listing in listings})
    else:
        print("\n".join(table(listings)))


@app.command("report", epilog="Example: tegu probe report slow.jsonl --top 20")
def report_any(
    file: Annotated[Path, typer.Argument(metavar="FILE", help="A recording of any probe.")],
    top: int = typer.Option(10, min=1, help="At most this many rows of a table."),
    as_json: bool = typer.Option(False, "--json", help="Print JSON."),
    flame: Annotated[Path | None, typer.Option("--flame", metavar="SVG")] = None,
) -> None:
    """Show a recording, on any machine."""
    from tegu.probe import read

    recording = read(file)
    _show(find_tool(recording.tool), recording, file, top=top, as_json=as_json, flame=flame)


def _make(name: str) -> Callable[..., None]:
    tool = find_tool(name)
    timed = tool.threshold_ns is not None

    def command(
        action: str = typer.Argument(
            "", metavar="[record|report]", help="Keep in FILE, or show what it keeps."
        ),
        file: str = typer.Argument("", metavar="[FILE]", help="A recording."),
        seconds: str = typer.Option(
            "10", metavar="N", help="How long to look; 0: until interrupted.", hidden=tool.instant
        ),
        threshold: str = typer.Option(
            "", metavar="TIME", help=_threshold_help(tool), hidden=not timed
        ),
        cgroup: str = typer.Option(
            "",
            metavar="PATH",
            help="Only this cgroup and those below it.",
            hidden=not tool.selects,
        ),
        pid: int = typer.Option(
            0, min=0, help="Only this process; 0: all.", hidden=not tool.selects
        ),
        hertz: int = typer.Option(
            99,
            min=1,
            max=10000,
            help="Samples per second and processor.",
            hidden=not tool.sampled,
        ),
        flame: str = typer.Option(
            "", metavar="SVG", help="Draw a flame graph.", hidden=not tool.stacks
        ),
        top: int = typer.Option(10, min=1, help="At most this many rows of a table."),
        as_json: bool = typer.Option(False, "--json", help="Print the records, one JSON a line."),
    ) -> None:
        from tegu.errors import UsageError
        from tegu.probe import Settings, read

        drawing = Path(flame) if flame else None
        if drawing is not None and not tool.stacks:
            raise UsageError(f"{name} draws no flame graph")
        if threshold and not timed:
            raise UsageError(f"{name} has no threshold")
        if (cgroup or pid) and not tool.selects:
            raise UsageError(f"{name} cannot be limited to a cgroup or a process")
        if action not in ("", "record", "report"):
            raise UsageError(f"{action!r} is neither record nor report")
        if action and not file:
            raise UsageError(f"a file is missing: tegu probe {name} {action} FILE")
        if action == "report":
            recording = read(Path(file))
            if recording.tool != name:
                raise UsageError(f"{file} is a recording of {recording.tool}, not of {name}")
            _show(tool, recording, Path(file), top=top, as_json=as_json, flame=drawing)
            return
        length = _seconds(seconds)
        settings = Settings(
            seconds=length or None,
            threshold_ns=_time(threshold) if threshold else None,
            cgroup=cgroup or None,
            pid=pid,
            hertz=hertz,
        )
        with _until_told() as stop:
            if action:
                _record(tool, settings, stop, Path(file), flame=drawing)
            else:
                _live(tool, settings, stop, top=top, as_json=as_json, flame=drawing)

    command.__doc__ = tool.description()
    return command


def _threshold_help(tool: Tool) -> str:
    from tegu.probe.report import duration

    return f"What takes as long is shown by itself [{duration(tool.threshold_ns or 0)}]."


def _live(
    tool: Tool,
    settings: Any,
    stop: threading.Event,
    *,
    top: int,
    as_json: bool,
    flame: Path | None,
) -> None:
    from tegu.cli.output import note
    from tegu.probe import encode, parse, watch

    kept: list[bytes] = []
    second = shown = unshown = 0
    for record in watch(tool, settings, stop):
        if record["type"] != "event":
            kept.append(encode(record))
        if as_json:
            sys.stdout.write(encode(record).decode())
            sys.stdout.flush()
        elif record["type"] == "event":
            if int(record.get("time", 0)) != second:
                second, shown = int(record.get("time", 0)), 0
            shown += 1
            if shown <= _EVENTS_PER_SECOND:
                print("\n".join(tool.lines(record)), flush=True)
            else:
                unshown += 1
    if unshown:
        note(f"{unshown} more events are not shown; `record` and --json keep all")
    if not as_json:
        _tables(tool, parse(kept, "this run"), top)
    if flame is not None:
        _flame(tool, parse(kept, "this run"), flame)


def _record(
    tool: Tool, settings: Any, stop: threading.Event, file: Path, *, flame: Path | None
) -> None:
    from tegu.cli.output import note
    from tegu.files import atomic_file
    from tegu.probe import encode, read, watch

    events = lost = 0
    with atomic_file(file) as out:
        for record in watch(tool, settings, stop):
            out.write(encode(record))
            events += record["type"] == "event"
            lost = record.get("lost", 0)
    if lost:
        note(f"{lost} events were lost")
    if flame is not None:
        _flame(tool, read(file), flame)
    print(f"{file}\t{events} events\t{file.stat().st_size} bytes")


def _show(
    tool: Tool, recording: Recording, file: Path, *, top: int, as_json: bool, flame: Path | None
) -> None:
    from tegu.cli.output import print_json
    from tegu.errors import ProbeError, UsageError

    if flame is not None and not tool.stacks:
        raise UsageError(f"{tool.name} draws no flame graph")
    if as_json:
        print_json(
            {
                "header": recording.header,
                "events": recording.events,
                "summary": recording.summary,
                "end": recording.end,
            }
        )
        return
    try:
        words = [tool.lines(e) for e in recording.events]
        tool.tables(recording, top)
    except (KeyError, TypeError, ValueError, AttributeError, IndexError) as e:
        raise ProbeError(
            f"{file} is damaged: a {tool.name} recording does not look like this ({e!r})"
        ) from e
    for lines in words:
        print("\n".join(lines))
    _tables(tool, recording, top)
    if flame is not None:
        _flame(tool, recording, flame)


def _tables(tool: Tool, recording: Recording, top: int) -> None:
    from tegu.cli.output import note, print_table

    for table in tool.tables(recording, top):
        print(f"\n{table.title}")
        print_table(table.columns, table.rows)
    if recording.lost:
        note(f"{recording.lost} events were lost; the tables lack them")


def _flame(tool: Tool, recording: Recording, file: Path) -> None:
    from tegu.files import write_atomic
    from tegu.probe.flame import flame_graph

    write_atomic(file, flame_graph(tool.stacks_of(recording), title=tool.question))


@contextmanager
def _until_told() -> Iterator[threading.Event]:
    """Yield an event that the first SIGINT or SIGTERM sets: a run then ends with its summary."""
    import signal
    import threading

    stop = threading.Event()
    before = {}
    for number in (signal.SIGINT, signal.SIGTERM):

        def told(signum: int, _: object) -> None:
            if stop.is_set():
                raise KeyboardInterrupt
            stop.set()

        before[number] = signal.signal(number, told)
    try:
        yield stop
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _time(words: str) -> int:
    """Return nanoseconds of a time such as 500us, 2ms or 1.5s."""
    from tegu.errors import UsageError

    match = re.fullmatch(r"(\d{1,9}(?:\.\d{1,9})?)\s*(ns|us|ms|s)", words)
    if match is None:
        raise UsageError(f"{words!r} is no time", hint="write it as 500us, 2ms or 1.5s")
    value = round(float(match[1]) * {"ns": 1, "us": 1e3, "ms": 1e6, "s": 1e9}[match[2]])
    if not 1 <= value <= 3600 * 10**9:
        raise UsageError(f"{words!r}: a threshold is more than nothing and at most an hour")
    return value


def _seconds(words: str) -> float:
    from tegu.errors import UsageError

    match = re.fullmatch(r"(\d{1,9}(?:\.\d{1,9})?)s?", words)
    if match is None:
        raise UsageError(f"--seconds: {words!r} is no number of seconds")
    return float(match[1])


for _name in TOOLS:
    app.command(_name, epilog=find_tool(_name).example or f"Example: tegu probe {_name}")(
        _make(_name)
    )
