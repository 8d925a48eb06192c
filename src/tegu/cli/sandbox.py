"""`tegu sandbox` and `tegu run`: boxes for programs, and the supervisor that keeps them."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated, Any

import typer

from tegu.cli.sandbox_install import install
from tegu.cli.sandbox_saved import add_to
from tegu.cli.sandbox_template import app as template_app
from tegu.cli.sandbox_template import template_options
from tegu.errors import UsageError

__all__ = ["app", "run_app"]

app = typer.Typer(no_args_is_help=True)
run_app = typer.Typer()
add_to(app)
app.add_typer(template_app, name="template")
app.command("install", epilog="Example: tegu sandbox install --for containerd --apply")(install)


@app.callback()
def sandbox() -> None:
    """Sandboxes: programs in boxes of their own, started in milliseconds."""


@run_app.command(
    context_settings={"ignore_unknown_options": True, "allow_interspersed_args": False},
    epilog="Example: tegu run --memory 256M -- python3 -c 'print(1 + 1)'",
    add_help_option=False,
)
def run(
    words: Annotated[list[str] | None, typer.Argument(metavar="[OPTIONS] COMMAND...")] = None,
) -> None:
    """Run a command in a new box (`tegu run --help` says how)."""
    from tegu.sandbox.thin import main

    raise typer.Exit(main(words or []))


@app.command(
    epilog="Examples: tegu sandbox serve --warm 32; "
    "tegu sandbox serve --http 127.0.0.1:3000 --token-file tokens --template python=/srv/python"
)
def serve(
    socket: Annotated[Path | None, typer.Option(metavar="PATH", help="Where to listen.")] = None,
    warm: int = typer.Option(16, min=0, max=1024, help="The most boxes to hold ready."),
    idle_exit: float = typer.Option(0, min=0, metavar="S", help="End after S unused seconds."),
    launcher: bool = typer.Option(
        True, "--launcher/--no-launcher", help="Start boxes by the compiled launcher, if there."
    ),
    http: Annotated[
        list[str] | None,
        typer.Option(metavar="ADDRESS", help="Offer HTTP at: unix, unix:/PATH, HOST:PORT, :PORT."),
    ] = None,
    token_file: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Tokens of HTTP, one a line; TCP needs one.")
    ] = None,
    tls_cert: Annotated[Path | None, typer.Option(metavar="FILE", help="Speak TLS.")] = None,
    tls_key: Annotated[Path | None, typer.Option(metavar="FILE", help="Its private key.")] = None,
    domain: Annotated[
        str | None, typer.Option(help="Where clients find sandboxes, as PORT-ID.DOMAIN.")
    ] = None,
    template: Annotated[
        list[str] | None,
        typer.Option(metavar="NAME=DIR", help="A template of HTTP; 'base' is this machine's /usr."),
    ] = None,
    memory: Annotated[str | None, typer.Option(help="HTTP: memory of a sandbox.")] = None,
    cpus: Annotated[float | None, typer.Option(help="HTTP: processors of a sandbox.")] = None,
    pids: int = typer.Option(512, help="HTTP: processes and threads of a sandbox."),
    disk: str = typer.Option("256M", help="HTTP: what a sandbox may write."),
    network: str = typer.Option("none", help="HTTP: what a sandbox may reach, at most."),
    max_timeout: float = typer.Option(86400, min=1, metavar="S", help="HTTP: longest life."),
    max_sandboxes: int = typer.Option(1000, min=1, help="HTTP: sandboxes at a time."),
) -> None:
    """Run the supervisor until it is told to stop; for a service manager.

    Without it, the first client starts one, which ends after five unused minutes. With --http it
    also offers sandboxes over HTTP and WebSocket, and the E2B wire API (docs/sandbox-api.md).
    """
    from tegu.sandbox.keeper import keep
    from tegu.sandbox.wire import default_socket

    where = socket or default_socket()
    if http:
        from tegu.sandbox.web.start import offer

        offer(
            where,
            http,
            warm=warm,
            compiled=launcher,
            token_file=token_file,
            tls=(tls_cert, tls_key),
            domain=domain,
            templates=template or [],
            limits={
                **{"memory": memory, "cpus": cpus, "pids": pids, "disk": disk},
                "network": network,
            },
            most=(max_timeout, max_sandboxes),
            ready=lambda urls: print("\n".join(urls), flush=True),
        )
        return
    named = (token_file, tls_cert, tls_key, domain, template, memory, cpus, network != "none")
    if any(named):
        raise UsageError("these options are for --http ADDRESS, which is not there")
    raise typer.Exit(keep(where, warm=warm, idle_exit=idle_exit or None, compiled=launcher))


@app.command(epilog="Example: tegu sandbox stop")
def stop() -> None:
    """End the supervisor, and every box with it."""
    from tegu.sandbox.client import supervisor

    supervisor("shutdown")


@app.command(epilog="Example: tegu sandbox doctor --json")
def doctor(as_json: bool = typer.Option(False, "--json", help="Print JSON.")) -> None:
    """Say for each class whether this host can run it, and what its limits rest on."""
    from tegu.cli.output import print_json, print_table
    from tegu.sandbox.client import box_spec, supervisor
    from tegu.sandbox.client import run as run_once
    from tegu.sandbox.doctor import examine

    def try_class(kind: str) -> None:
        run_once(["true"], box=box_spec(kind=kind), timeout=20).check()

    found = examine(try_class, lambda: list(supervisor("doctor", start=True)))
    if as_json:
        print_json([f.to_json() for f in found])
        return
    print_table(
        ("what", "", "answer"),
        [
            (f.kind, f.name, f.detail or "available")
            if f.available
            else (f.kind, f.name, f"unsupported: {f.reason}")
            for f in found
        ],
    )


@app.command("list", epilog="Example: tegu sandbox list --json")
def list_boxes(as_json: bool = typer.Option(False, "--json", help="Print JSON.")) -> None:
    """List the boxes that run, and what the supervisor has done."""
    from tegu.cli.output import human_size, note, print_json, print_table
    from tegu.sandbox.client import supervisor

    answer = supervisor("list")
    if as_json:
        print_json(answer)
        return
    print_table(
        ("box", "state", "seconds", "template", "network", "ports", "memory"),
        [
            (
                b["box"],
                b["state"],
                b["seconds"],
                b["spec"]["template"],
                _network(b["spec"]["network"]),
                " ".join(f"{p['host_port']}:{p['port']}" for p in b.get("ports", [])),
                human_size(b["usage"]["memory"]) if "memory" in b["usage"] else "",
            )
            for b in answer["boxes"]
        ],
    )
    if sys.stderr.isatty():
        note(f"{answer['started']} started since, {answer['ready']} ready")


def _network(network: str | list[str]) -> str:
    """Return what a box may reach, in a few words."""
    if isinstance(network, str):
        return network
    more = f" +{len(network) - 2}" if len(network) > 2 else ""
    return " ".join(network[:2]) + more


@app.command(epilog="Example: tegu sandbox create --memory 512M --timeout 3600")
def create(
    template: str = typer.Option(
        "host", "-t", help="A template, a directory, or this machine's programs."
    ),
    image: str = typer.Option(None, metavar="IMAGE", help="An image, fetched at its first use."),
    kind: str = typer.Option("container", "--class", help="See `tegu sandbox doctor`."),
    memory: str = typer.Option(None, help="At most this much memory, as in 256M."),
    cpus: float = typer.Option(None, help="At most this many processors, as in 0.5."),
    pids: int = typer.Option(512, help="At most this many processes and threads."),
    disk: str = typer.Option("256M", help="At most this much written."),
    timeout: float = typer.Option(None, metavar="S", help="Seconds that it lives at most."),
    network: str = typer.Option("none", help="none, full, or allow:NAME,ADDRESS:PORT,..."),
    publish: Annotated[
        list[str] | None,
        typer.Option(metavar="HOST:GUEST", help="Let a port of this machine lead to the box's."),
    ] = None,
    as_json: bool = typer.Option(False, "--json", help="Print JSON."),
) -> None:
    """Start a box that lives on, and print its name."""
    from tegu.cli.output import print_json
    from tegu.sandbox.client import Sandbox

    box = Sandbox.create(
        template_options(template, image),
        kind=kind,
        memory=memory,
        cpus=cpus,
        pids=pids,
        disk=disk,
        timeout=timeout,
        network=network,
        publish=publish or [],
        keep=True,
    )
    if as_json:
        print_json(box.info())
    else:
        print(box.name)


@app.command(
    "exec",
    context_settings={"allow_interspersed_args": False},
    epilog="Example: tegu sandbox exec b1-0a1b2c -- ls /",
)
def execute(
    name: Annotated[str, typer.Argument(metavar="BOX")],
    command: Annotated[list[str], typer.Argument(metavar="COMMAND...")],
    cwd: str = typer.Option("", "-w", "--cwd", help="Working directory in the box."),
    user: str = typer.Option("", "-u", "--user", metavar="ID", help="UID, UID:GID, UID:GID,GID..."),
    timeout: float = typer.Option(None, metavar="S", help="Kill it after S seconds."),
) -> None:
    """Run a command in a box; its exit code is the result (124 after --timeout)."""
    from tegu.sandbox.client import Sandbox

    box = Sandbox.attach(name)
    if command[0] == "--":
        del command[0]
    process = box.start(command, cwd=cwd, user=user, timeout=timeout)
    if not sys.stdin.isatty():
        process.write(sys.stdin.buffer.read())
    process.close_stdin()
    streams: dict[str, Any] = {"stdout": sys.stdout.buffer, "stderr": sys.stderr.buffer}
    for stream, data in process.output():
        streams[stream].write(data)
        streams[stream].flush()
    result = process.wait()
    if result.timed_out:
        print("tegu: timeout: the command and all that it left were killed", file=sys.stderr)
    raise typer.Exit(124 if result.timed_out else result.exit_code)


@app.command(epilog="Example: tegu sandbox kill b1-0a1b2c")
def kill(names: Annotated[list[str], typer.Argument(metavar="BOX...")]) -> None:
    """End boxes, with everything in them."""
    from tegu.sandbox.client import supervisor

    for name in names:
        supervisor("kill", box=name)


@app.command(epilog="Example: tegu sandbox pause b1-0a1b2c")
def pause(name: str = typer.Argument(metavar="BOX")) -> None:
    """Stop every program in a box where it stands."""
    from tegu.sandbox.client import supervisor

    supervisor("pause", box=name)


@app.command(epilog="Example: tegu sandbox resume b1-0a1b2c")
def resume(name: str = typer.Argument(metavar="BOX")) -> None:
    """Let a paused box's programs go on."""
    from tegu.sandbox.client import supervisor

    supervisor("resume", box=name)


@app.command(epilog="Example: tegu sandbox cp data.csv b1-0a1b2c:/tmp/data.csv")
def cp(
    source: str = typer.Argument(metavar="FILE|BOX:FILE"),
    target: str = typer.Argument(metavar="FILE|BOX:FILE"),
) -> None:
    """Copy one file into a box or out of one; paths in the box are absolute."""
    from tegu.files import write_atomic
    from tegu.sandbox.client import Sandbox

    from_box, to_box = _place(source), _place(target)
    if (from_box is None) == (to_box is None):
        raise UsageError("one of the two is a file of a box, written BOX:/PATH")
    if from_box is not None:
        write_atomic(Path(target), Sandbox.attach(from_box[0]).files.read(from_box[1]))
    elif to_box is not None:
        Sandbox.attach(to_box[0]).files.write(to_box[1], Path(source).read_bytes())


def _place(text: str) -> tuple[str, str] | None:
    name, mark, path = text.partition(":/")
    return (name, "/" + path) if mark and "/" not in name else None
