"""`tegu kdump`: crash dumps on, off, tried and read."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from tegu.host.kdump import Report, Status

__all__ = ["app"]

app = typer.Typer(no_args_is_help=True)
_JSON = typer.Option(False, "--json", help="Print JSON.")


@app.callback()
def kdump() -> None:
    """Crash dumps: what a kernel died of, saved by a second one."""


@app.command(epilog="Example: tegu kdump on")
def on(
    reserve: bool = typer.Option(
        False, "--reserve", help="Set crashkernel= in the boot files; on from the next boot."
    ),
    size: str = typer.Option("", metavar="SIZE", help="With --reserve: this much, such as 160M."),
    as_json: bool = _JSON,
) -> None:
    """Load the capture kernel, now and at each boot. Needs no reboot when memory is reserved."""
    from tegu.cli.output import human_size, note, print_json, spinner
    from tegu.errors import UsageError
    from tegu.host.kdump import load_settings, turn_on
    from tegu.host.kdump import reserve as reserve_memory
    from tegu.host.kdump.config import parse_size

    settings = load_settings()
    if size and not reserve:
        raise UsageError("--size goes with --reserve")
    if reserve:
        try:
            wanted = parse_size(size) if size else None
        except ValueError as e:
            raise UsageError(f"--size: {e}") from e
        chosen, need, changes = reserve_memory(settings, wanted)
        if chosen < need.total:
            note(f"{chosen >> 20} MiB are too few: about {-(-need.total >> 20)} MiB are needed")
        files = [c.file for c in changes if c.action == "written"]
        if as_json:
            print_json(
                {
                    "crashkernel": chosen,
                    "needed": need.total,
                    "written": files,
                    "reboot": True,
                }
            )
        else:
            print(f"crashkernel={chosen >> 20}M from the next boot on: reboot now")
        return
    with spinner() as say:
        found = turn_on(settings, say=say)
    for name in found.removed:
        note(f"removed the old dump {name}")
    if as_json:
        print_json(_status(found))
        return
    print(
        f"on: {human_size(found.reserved)} reserved, about {human_size(found.needed)} needed;"
        f" dumps go to {found.target}"
    )


@app.command(epilog="Example: tegu kdump off --keep-memory")
def off(
    keep_memory: bool = typer.Option(
        False, "--keep-memory", help="Keep the memory reserved, to turn on again without a reboot."
    ),
    as_json: bool = _JSON,
) -> None:
    """Unload the capture kernel and give its memory back to the system."""
    from dataclasses import asdict

    from tegu.cli.output import human_size, print_json
    from tegu.host.kdump import turn_off

    done = turn_off(keep_memory=keep_memory)
    if as_json:
        print_json(asdict(done))
    elif done.released:
        print(
            f"off: {human_size(done.released)} given back, MemTotal {human_size(done.total_before)}"
            f" -> {human_size(done.total_after)}; turning on again needs a reboot"
        )
    else:
        print("off: the memory stays reserved" if keep_memory else "off: no memory was reserved")


@app.command(epilog="Example: tegu kdump status --json")
def status(as_json: bool = _JSON) -> None:
    """Say how crash dumps stand, and which dumps there are."""
    from tegu.cli.output import human_size, print_json, print_table
    from tegu.host.kdump import load_settings
    from tegu.host.kdump import status as look

    found = look(load_settings())
    if as_json:
        print_json(_status(found))
        return
    rows: list[tuple[str, object]] = [
        ("capture kernel", "loaded" if found.loaded else "not loaded"),
        ("at each boot", "on" if found.enabled else "off"),
        ("memory reserved", human_size(found.reserved) if found.reserved else "none"),
        ("memory needed", f"about {human_size(found.needed)}"),
        ("recommended", f"crashkernel={found.recommended >> 20}M"),
        ("command line", f"crashkernel={found.crashkernel}" if found.crashkernel else "none"),
        ("target", found.target),
    ]
    if found.free is not None:
        rows.append(("free there", human_size(found.free)))
    rows.append(("afterwards", found.after))
    for dump in found.dumps:
        core = "no memory" if dump.core_size is None else human_size(dump.core_size)
        rows.append(("dump", f"{dump.name}: log {human_size(dump.log_size)}, {core}"))
    print_table(("what", "is"), rows)


@app.command(epilog="Example: tegu kdump test --yes; later: tegu kdump test --result")
def test(
    yes: bool = typer.Option(False, "--yes", help="Do not ask."),
    result: bool = typer.Option(False, "--result", help="Say what the last test left."),
    as_json: bool = _JSON,
) -> None:
    """Crash this machine's kernel, to see that a dump comes. All that runs here is lost."""
    from tegu.cli.output import human_size, print_json
    from tegu.errors import TeguError
    from tegu.host.kdump import load_settings
    from tegu.host.kdump.control import crash_now, test_result

    settings = load_settings()
    if not result:
        if not yes:
            typer.confirm(
                "Crash this machine now? All that runs here is lost.", abort=True, err=True
            )
        crash_now(settings)
        return
    dump = test_result(settings)
    if dump is None:
        raise TeguError(
            f"the test left nothing in {settings.target}",
            hint="look at the serial console for lines that begin with tegu-kdump",
        )
    if as_json:
        print_json({"dump": dump.path, "log": dump.log_size, "memory": dump.core_size})
        return
    core = "no memory" if dump.core_size is None else f"{human_size(dump.core_size)} of memory"
    print(f"the test worked: {dump.path} has {human_size(dump.log_size)} of log and {core}")


@app.command(epilog="Example: tegu kdump report 2026-11-21T12-00-00Z")
def report(
    dump: Annotated[
        Path | None, typer.Argument(help="A dump's directory or name, a vmcore, or a log.")
    ] = None,
    debug: Annotated[
        Path | None, typer.Option(metavar="VMLINUX", help="The kernel with debug symbols.")
    ] = None,
    log: bool = typer.Option(False, "--log", help="Print the end of the log as well."),
    as_json: bool = _JSON,
) -> None:
    """Say what a kernel died of: the newest dump, or the one that is named."""
    from dataclasses import asdict

    from tegu.cli.output import print_json
    from tegu.host.kdump import load_settings, make_report
    from tegu.host.kdump.report import find_dump

    found = make_report(find_dump(dump, Path(load_settings().target.path)), debug=debug)
    if as_json:
        body = asdict(found)
        body["crash"]["reason"] = found.crash.reason
        body["crash"]["trace"] = [str(f) for f in found.crash.trace]
        print_json(body)
        return
    _print_report(found, log=log)


def _print_report(found: Report, *, log: bool) -> None:
    from tegu.cli.output import human_size, print_table
    from tegu.host.kdump.oops import TAINTS

    crash = found.crash
    task = None
    if crash.task is not None:
        task = f"{crash.task} (pid {crash.pid}, CPU {crash.cpu})"
    taint = ", ".join(TAINTS.get(letter, letter) for letter in crash.taint)
    core = "not saved" if found.core_size is None else human_size(found.core_size)
    rows: list[tuple[str, object]] = [
        ("dump", found.path),
        ("kernel", found.kernel or "unknown"),
        ("reason", crash.reason or "the log names none"),
    ]
    if crash.panic and crash.panic != crash.reason:
        rows.append(("panic", crash.panic))
    if crash.time is not None:
        rows.append(("after", f"{crash.time:.1f} s of running"))
    rows += [("task", task or "unknown"), ("where", crash.where or "unknown")]
    # What the kernel itself is not sure of is in --json and in the log.
    sure = [frame for frame in crash.trace if frame.sure]
    rows += [("trace" if number == 0 else "", frame) for number, frame in enumerate(sure)]
    rows += [("taint", taint or "none"), ("modules", " ".join(crash.modules) or "none")]
    if crash.hardware:
        rows.append(("hardware", crash.hardware))
    rows.append(("memory", core))
    for bug in found.known:
        rows += [("known", f"{bug.name}: {bug.meaning}"), ("", bug.remedy), ("", bug.reference)]
    if not found.known:
        rows.append(("known", "nothing that is known here"))
    rows.append(("debugger", found.debugger_note))
    print_table(("what", "is"), rows)
    if found.debugger:
        print(f"\n{found.debugger}")
    if log:
        print("\n" + "\n".join(found.tail))


def _status(found: Status) -> dict[str, object]:
    from dataclasses import asdict

    return asdict(found)
