"""`tegu fn`: functions, each invocation in a fresh sandbox."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated, Any

import typer

__all__ = ["app"]

app = typer.Typer(no_args_is_help=True)
_JSON = typer.Option(False, "--json", help="Print JSON.")


@app.callback()
def functions() -> None:
    """Functions: code that is called with an event, each time in a fresh sandbox."""


@app.command(epilog="Example: tegu fn deploy app.py --handler app:main --name hello --timeout 5")
def deploy(
    source: Annotated[Path, typer.Argument(metavar="FILE|DIRECTORY", help="The code.")],
    command: Annotated[
        list[str] | None, typer.Argument(metavar="[COMMAND...]", help="With --runtime exec, java.")
    ] = None,
    name: str = typer.Option(None, help="The function's name (default: as in the code)."),
    handler: str = typer.Option(None, metavar="MODULE:FUNCTION", help="What is called."),
    runtime: str = typer.Option(None, help="python (default), exec or java."),
    template: str = typer.Option(None, "-t", help="A directory, or this machine's programs."),
    load: str = typer.Option(None, help="When the code is imported: late (default) or early."),
    imports: Annotated[
        list[str] | None, typer.Option("--import", help="A module to load ahead.")
    ] = None,
    sandbox: str = typer.Option(None, help="A fresh one for each invocation (default) or tenant."),
    env: Annotated[
        list[str] | None, typer.Option("-e", "--env", metavar="NAME=VALUE", help="A variable.")
    ] = None,
    memory: str = typer.Option(None, help="At most this much memory, as in 256M."),
    cpus: float = typer.Option(None, help="At most this many processors, as in 0.5."),
    pids: int = typer.Option(None, help="At most this many processes and threads (64)."),
    files: int = typer.Option(None, help="At most this many open files of one process (256)."),
    disk: str = typer.Option(None, help="At most this much written (64M)."),
    max_event: str = typer.Option(None, metavar="SIZE", help="The largest event (6M)."),
    max_result: str = typer.Option(None, metavar="SIZE", help="The largest result (6M)."),
    timeout: float = typer.Option(None, metavar="S", help="Seconds for one invocation (30)."),
    concurrency: int = typer.Option(None, help="How many run at the same time (8)."),
    queue: int = typer.Option(None, help="How many wait; one more is refused (64)."),
    idle: float = typer.Option(None, metavar="S", help="Seconds until nothing is kept (300)."),
    archive: bool = typer.Option(
        True, "--archive/--no-archive", help="Java: make an archive of the classes it loads."
    ),
    train: str = typer.Option(None, metavar="EVENT", help="Java: for the run that collects them."),
    as_json: bool = _JSON,
) -> None:
    """Deploy a file or a directory; the version before answers until the new one is ready.

    Without --handler every function that is marked with @function in the file is deployed.
    """
    from tegu.cli.output import print_json, spinner
    from tegu.errors import UsageError
    from tegu.sandbox.fn.deployment import deploy as put
    from tegu.sandbox.fn.plan import plan

    options: dict[str, Any] = {
        "template": str(Path(template).absolute()) if template not in (None, "host") else template,
        "runtime": runtime,
        "load": load,
        "imports": imports or None,
        "sandbox": sandbox,
        "env": _variables(env or []) or None,
        "memory": memory,
        "cpus": cpus,
        "pids": pids,
        "files": files,
        "disk": disk,
        "max_event": max_event,
        "max_result": max_result,
        "timeout": timeout,
        "concurrency": concurrency,
        "queue": queue,
        "idle": idle,
        "archive": None if archive else False,
        "train": train,
    }
    specs = plan(source, name, handler, command or [], options)
    if not specs:
        raise UsageError(
            f"{source}: no function in it is marked with @function",
            hint="name one: --handler MODULE:FUNCTION",
        )
    done = []
    for spec in specs:
        with spinner() as show:
            show(f"deploying {spec.name}")
            done.append(put(spec, source))
    if as_json:
        print_json([d.to_json() for d in done])
        return
    for one in done:
        print(f"{one.name}\t{one.current[:12]}")


def _variables(words: list[str]) -> dict[str, str]:
    from tegu.errors import UsageError

    found = {}
    for word in words:
        name, mark, value = word.partition("=")
        if not mark:
            raise UsageError(f"--env: {word!a} is not NAME=VALUE")
        found[name] = value
    return found


@app.command(epilog="""Example: tegu fn invoke hello '{"name": "world"}'""")
def invoke(
    name: Annotated[str, typer.Argument(metavar="NAME")],
    event: Annotated[
        str, typer.Argument(metavar="[EVENT|-]", help="JSON; - reads it from stdin.")
    ] = "null",
    raw: bool = typer.Option(False, "--bytes", help="The event is bytes, not JSON."),
    tenant: str = typer.Option("", help="On whose behalf, with --sandbox tenant."),
    as_json: bool = typer.Option(False, "--json", help="Print outcome and account as well."),
) -> None:
    """Call a function and print its result."""
    import json

    from tegu.cli.output import print_json
    from tegu.errors import UsageError
    from tegu.sandbox.fn.client import Caller, FunctionError

    data = sys.stdin.buffer.read() if event == "-" else event.encode(errors="surrogateescape")
    if not raw:
        try:
            json.loads(data)
        except (ValueError, RecursionError) as e:
            raise UsageError(f"the event is no JSON: {e}", hint="--bytes passes it as it is") from e
    with Caller() as caller:
        answer = caller.call_raw(name, data, "bytes" if raw else "json", tenant=tenant)
    if as_json and answer.outcome == "ok":
        value = answer.result()
        print_json({**_about(answer), "result": repr(value) if answer.kind == "bytes" else value})
        return
    try:
        answer.check()
    except FunctionError as e:
        if as_json:
            print_json({**_about(answer), "error": e.message, "traceback": e.traceback})
            raise typer.Exit(e.exit_code) from e
        sys.stderr.write(e.traceback)
        raise
    sys.stdout.buffer.write(answer.data + (b"\n" if answer.kind == "json" else b""))


def _about(answer: Any) -> dict[str, Any]:
    names = ("id", "function", "version", "outcome", "account", "retry_after")
    return {name: getattr(answer, name) for name in names}


@app.command(epilog="Example: tegu fn ls --json")
def ls(
    name: Annotated[str | None, typer.Argument(metavar="[NAME]", help="Its versions.")] = None,
    as_json: bool = _JSON,
) -> None:
    """List functions and what they cost so far, or the versions of one."""
    import time

    from tegu.cli.output import print_json, print_table
    from tegu.sandbox.fn.client import running
    from tegu.sandbox.fn.deployment import deployed
    from tegu.sandbox.fn.shelf import read_name
    from tegu.store import Store

    if name is not None:
        one = read_name(Store.default().root, name)
        if as_json:
            print_json(one.to_json())
            return
        rows = [
            (version[:12], "answers" if version == one.current else "", _ago(time.time() - when))
            for version, when in reversed(one.versions)
        ]
        print_table(("version", "", "deployed"), rows)
        return
    now = running()
    found = [{**one.to_json(), **now.get(one.name, {})} for one in deployed()]
    if as_json:
        print_json(found)
        return
    print_table(
        (
            "function",
            "version",
            "state",
            "running",
            "waiting",
            "calls",
            "failed",
            "p50 ms",
            "CPU s",
        ),
        [_row(one) for one in found],
    )


def _row(one: dict[str, Any]) -> tuple[object, ...]:
    outcomes = one.get("outcomes", {})
    calls = sum(outcomes.values())
    p50 = one.get("p50")
    return (
        one["name"],
        one["current"][:12],
        "warm" if one.get("warm") else "at rest",
        one.get("running", 0),
        one.get("waiting", 0),
        calls,
        calls - outcomes.get("ok", 0),
        "" if p50 is None else f"{p50 * 1000:.1f}",
        f"{one.get('cpu', 0.0):.2f}",
    )


def _ago(seconds: float) -> str:
    for size, word in ((86400, "d"), (3600, "h"), (60, "min")):
        if seconds >= size:
            return f"{seconds / size:.0f} {word} ago"
    return f"{seconds:.0f} s ago"


@app.command(epilog="Example: tegu fn logs hello --last 20 --follow")
def logs(
    name: Annotated[str, typer.Argument(metavar="NAME")],
    last: int = typer.Option(0, min=0, metavar="N", help="Only the last N entries."),
    follow: bool = typer.Option(False, "-f", "--follow", help="Go on until interrupted."),
    as_json: bool = typer.Option(False, "--json", help="Print one JSON object a line."),
) -> None:
    """Show what a function printed, and how invocations failed; the supervisor keeps 1 MiB."""
    import time

    from tegu.sandbox.fn.client import logs as read

    after, most = 0, last
    while True:
        entries = read(name, after=after, most=most)
        for entry in entries:
            _show(entry, as_json=as_json)
            after = entry["number"]
        sys.stdout.flush()
        if not follow:
            return
        most = 0
        time.sleep(0.5)


def _show(entry: dict[str, Any], *, as_json: bool) -> None:
    import json
    import time

    if as_json:
        print(json.dumps(entry))
        return
    when = time.strftime("%H:%M:%S", time.localtime(entry["time"]))
    what = f" {entry['outcome']}:" if "outcome" in entry else ""
    for line in entry["text"].rstrip("\n").split("\n"):
        print(f"{when} {entry['id'] or 'zygote'}{what} {line}")
    if entry.get("truncated"):
        print(f"{when} {entry['id']} (more was printed than is kept)")


@app.command(epilog="Example: tegu fn rollback hello")
def rollback(
    name: Annotated[str, typer.Argument(metavar="NAME")],
    version: Annotated[
        str | None, typer.Argument(metavar="[VERSION]", help="Default: the one before.")
    ] = None,
    as_json: bool = _JSON,
) -> None:
    """Let an earlier version answer again."""
    from tegu.cli.output import print_json
    from tegu.sandbox.fn.deployment import rollback as turn

    one = turn(name, version)
    if as_json:
        print_json(one.to_json())
    else:
        print(f"{one.name}\t{one.current[:12]}")


@app.command(epilog="Example: tegu fn rm hello")
def rm(
    names: Annotated[list[str], typer.Argument(metavar="NAME...")], as_json: bool = _JSON
) -> None:
    """Remove functions; what runs of them is killed."""
    from tegu.cli.output import print_json
    from tegu.sandbox.fn.deployment import remove

    for name in names:
        remove(name)
    if as_json:
        print_json({"removed": names})


@app.command(epilog="Example: tegu fn serve --listen 127.0.0.1:8080 --token-file token")
def serve(
    socket: Annotated[
        Path | None, typer.Option(metavar="PATH", help="UNIX socket to listen on.")
    ] = None,
    listen: str = typer.Option(None, metavar="HOST:PORT", help="Listen on TCP; needs a token."),
    token_file: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Whose line callers must know.")
    ] = None,
) -> None:
    """Answer calls over HTTP: POST /functions/NAME with the event; on a UNIX socket by default."""
    from tegu.sandbox.fn.http import serve as answer

    answer(socket, listen, token_file)
