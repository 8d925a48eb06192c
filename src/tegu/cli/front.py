"""`tegu` itself: finds the verb, loads its module, turns errors into one line and an exit code."""

from __future__ import annotations

import importlib
import importlib.util
import json
import logging
import os
import signal
import sys
import textwrap
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import NamedTuple

import click
import typer

from tegu import __version__
from tegu.errors import TeguError, UnsupportedError

__all__ = ["main"]


class Verb(NamedTuple):
    """Where a verb lives: `module` has a typer app under `attribute`.

    `host` has what a machine offers of it, where the host half is all there is.
    """

    module: str
    attribute: str
    summary: str
    host: str = ""

    @property
    def home(self) -> str | None:
        """The module that is here; None when neither is."""
        return next(
            (m for m in (self.module, self.host) if m and importlib.util.find_spec(m) is not None),
            None,
        )


VERBS: dict[str, Verb] = {
    "new": Verb("tegu.cli.definition", "new_app", "Start a definition of your own."),
    "definition": Verb("tegu.cli.definition", "app", "Show and check a definition."),
    "lock": Verb("tegu.cli.lock", "app", "Resolve a definition to exact packages."),
    "build": Verb("tegu.cli.build", "app", "Build an image from a lock."),
    "image": Verb("tegu.cli.image", "app", "List, inspect, compare, export, remove images."),
    "kernel": Verb(
        "tegu.cli.kernel",
        "app",
        "Build the cloud kernel, keep it current, patch it while it runs.",
        "tegu.cli.kernel_host",
    ),
    "pkg": Verb("tegu.cli.pkg", "app", "Build packages from recipes."),
    "repo": Verb("tegu.cli.repo", "app", "Publish apt and RPM repositories of your own."),
    "release": Verb("tegu.cli.release", "app", "Put releases together, judge, publish them."),
    "cve": Verb("tegu.cli.cve", "app", "List known vulnerabilities of a lock or a machine."),
    "gc": Verb("tegu.cli.store", "gc_app", "Free what no image or recent build needs."),
    "store": Verb("tegu.cli.store", "app", "Look at the store, verify what it holds."),
    "boot": Verb("tegu.cli.machine", "boot_app", "Boot an image in a machine."),
    "machines": Verb("tegu.cli.machine", "machines_app", "List the machines that run."),
    "ssh": Verb("tegu.cli.machine", "ssh_app", "Log in to a machine, or run a command in it."),
    "cp": Verb("tegu.cli.machine", "cp_app", "Copy files to or from a machine."),
    "console": Verb("tegu.cli.machine", "console_app", "Watch a machine's serial console."),
    "stop": Verb("tegu.cli.machine", "stop_app", "Power a machine off."),
    "test": Verb("tegu.cli.lab", "app", "Run a test plan against an image or a machine."),
    "run": Verb("tegu.cli.sandbox", "run_app", "Run a command in a new sandbox."),
    "sandbox": Verb("tegu.cli.sandbox", "app", "Sandboxes: serve, look after, examine."),
    "fn": Verb("tegu.cli.fn", "app", "Functions: deploy, call, list, roll back, serve."),
    "kdump": Verb("tegu.cli.kdump", "app", "Crash dumps: on, off, tried and read."),
    "probe": Verb("tegu.cli.probe", "app", "Ask what slows this machine down, and who."),
    "doctor": Verb("tegu.cli.doctor", "app", "Say what is wrong with this machine, and why."),
    "heal": Verb("tegu.cli.heal", "app", "Repair what doctor finds, and check that it helped."),
    "agent": Verb("tegu.cli.agent", "app", "The resident doctor, and what it has seen."),
    "qos": Verb("tegu.cli.qos", "app", "Keep batch work from slowing latency-critical work."),
    "tune": Verb("tegu.cli.tune", "app", "Settings with receipts: apply, verify, undo, prove."),
    "upgrade": Verb("tegu.cli.upgrade", "upgrade_app", "Upgrade this machine, undoably."),
    "rollback": Verb("tegu.cli.upgrade", "rollback_app", "Go back to before the last upgrade."),
    "history": Verb("tegu.cli.upgrade", "history_app", "List the upgrades of this machine."),
    "autoupgrade": Verb("tegu.cli.autoupgrade", "app", "Let this machine upgrade itself."),
    "host": Verb("tegu.cli.host", "app", "What runs inside a Tegu machine."),
}


def _installed() -> dict[str, Verb]:
    """Return the verbs that are here: a machine has the host half only."""
    return {n: v for n, v in VERBS.items() if v.home is not None}


class FrontDoor(click.Group):
    """A click group whose verbs are imported when they are asked for."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(_installed())

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        verb = VERBS.get(cmd_name)
        if verb is None:
            return None
        if verb.home is None:
            raise UnsupportedError(
                f"`tegu {cmd_name}` is not installed here", hint="it belongs to the works"
            )
        try:
            module = importlib.import_module(verb.home)
        except ModuleNotFoundError as e:
            if e.name is not None and e.name.split(".")[0] == "tegu":
                raise
            raise TeguError(
                f"`tegu {cmd_name}` needs the Python module {e.name}",
                hint="it belongs to the works: pip install 'tegu[works]'",
            ) from e
        command = typer.main.get_command(getattr(module, verb.attribute))
        command.name = cmd_name
        return command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Commands"):
            formatter.write_dl([(name, verb.summary) for name, verb in _installed().items()])

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        import difflib

        if args and args[0] not in VERBS and not args[0].startswith("-"):
            near = difflib.get_close_matches(args[0], _installed(), n=1)
            hint = f" (did you mean '{near[0]}'?)" if near else ""
            raise click.UsageError(f"no such command: '{args[0]}'{hint}", ctx)
        return super().resolve_command(ctx, args)


@click.command(
    cls=FrontDoor,
    context_settings={"help_option_names": ["-h", "--help"]},
    epilog="Example: tegu new myos && cd myos && tegu lock && tegu build && tegu boot",
)
@click.version_option(__version__, "-V", "--version", prog_name="tegu")
@click.option("-v", "--verbose", count=True, help="Say what is done; twice: every program run.")
def front_door(verbose: int) -> None:
    """Tegu: build, boot, test and look after a cloud-native Linux operating system."""
    level = {0: logging.WARNING, 1: logging.INFO}.get(verbose, logging.DEBUG)
    logging.basicConfig(level=level, format="%(levelname).1s %(name)s: %(message)s")


def main(argv: Sequence[str] | None = None) -> int:
    """Run the front door; returns the exit code. Errors are one line on stderr.

    With `--json` among the arguments an error is also an object on stdout:
    `{"error": {"kind", "message", "hint", "exit_code"}}`.
    """
    args = list(sys.argv[1:] if argv is None else argv)
    try:
        with _ended_by_signals(args):
            code = front_door.main(args=args, prog_name="tegu", standalone_mode=False)
    except (click.exceptions.Abort, KeyboardInterrupt) as e:
        return _fail(args, "Interrupted", "interrupted", None, 128 + _signal(e))
    except click.ClickException as e:
        ctx = getattr(e, "ctx", None)
        hint = f"see '{ctx.command_path} --help'" if ctx is not None else None
        return _fail(args, "UsageError", e.format_message(), hint, 2)
    except TeguError as e:
        return _fail(args, type(e).__name__, e.message, e.hint, e.exit_code)
    except BrokenPipeError:
        # The reader went away (`tegu ... | head`): not an error worth words.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 141
    except PermissionError as e:
        return _fail(args, "PermissionError", f"{e.filename}: permission denied", "run as root?", 1)
    except OSError as e:
        where = f"{e.filename}: " if e.filename else ""
        return _fail(args, "OSError", f"{where}{e.strerror or e}", None, 1)
    return code if isinstance(code, int) else 0


# Verbs that run other programs for minutes, which must end with them.
_LONG = frozenset({"build", "kernel", "lock", "pkg", "release"})


def _ended_by_signals(args: Sequence[str]) -> AbstractContextManager[object]:
    """Let SIGTERM and SIGHUP end a long verb as Ctrl-C does; others have their own ways."""
    verb = next((a for a in args if not a.startswith("-")), None)
    if verb not in _LONG or importlib.util.find_spec("tegu.lab") is None:
        return nullcontext()
    from tegu.lab.interrupt import ended_by_signals

    return ended_by_signals()


def _signal(error: BaseException | None) -> int:
    """Return the number of the signal behind an interruption; click hides it in a cause."""
    while error is not None:
        if isinstance(error, KeyboardInterrupt) and str(error) in signal.Signals.__members__:
            return signal.Signals[str(error)].value
        error = error.__cause__ or error.__context__
    return signal.SIGINT.value


def _fail(args: list[str], kind: str, message: str, hint: str | None, code: int) -> int:
    if "--json" in args:
        body = {"kind": kind, "message": message, "hint": hint, "exit_code": code}
        print(json.dumps({"error": body}))
    sys.stdout.flush()
    print(f"tegu: {message}", file=sys.stderr)
    if hint:
        print(textwrap.indent(hint, "      "), file=sys.stderr)
    return code
