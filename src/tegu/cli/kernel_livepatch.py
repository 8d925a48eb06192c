"""`tegu kernel livepatch`: functions of a running kernel replaced, from the command line.

The verbs that act on this machine need the host half only; `build` is there where the works are.
"""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Annotated

import typer

from tegu.cli.output import note, print_json, print_table, spinner

__all__ = ["add_to"]

app = typer.Typer(no_args_is_help=True)

Json = Annotated[bool, typer.Option("--json", help="Print JSON.")]
Name = Annotated[str, typer.Argument(metavar="NAME", help="The live patch.")]
Timeout = Annotated[float, typer.Option(min=0, help="Seconds to wait for all tasks.")]


@app.callback()
def livepatch() -> None:
    """Replace functions of a running kernel, without a restart."""


def add_to(parent: typer.Typer) -> None:
    """Add the verbs that are possible here to `tegu kernel`."""
    if importlib.util.find_spec("tegu.kernel") is not None:
        app.command(
            epilog="Example: tegu kernel livepatch build fix.patch --name fix --kernel out/ -o out/"
        )(build)
    parent.add_typer(app, name="livepatch")


def build(
    patches: Annotated[
        list[Path], typer.Argument(metavar="PATCH...", help="Source patches (-p1).")
    ],
    name: Annotated[str, typer.Option("--name", "-n", help="What to call the live patch.")],
    kernel: Annotated[
        list[Path] | None,
        typer.Option(
            "--kernel",
            "-k",
            help="Image and headers packages of the kernel to patch, or their directory "
            "[the one that was built last].",
        ),
    ] = None,
    recipe: Annotated[
        Path | None,
        typer.Option("--recipe", "-r", help="What it was built from [distro/kernel/kernel.toml]."),
    ] = None,
    output: Annotated[
        Path, typer.Option("--output", "-o", help="Directory for the module and its package.")
    ] = Path(),
    version: Annotated[str, typer.Option(help="Version of the package.")] = "1",
    sign_key: Annotated[
        Path | None,
        typer.Option(help="PEM file with a private key and its certificate, to sign with."),
    ] = None,
    jobs: Annotated[int | None, typer.Option("--jobs", "-j", min=1, help="Jobs [CPUs].")] = None,
    offline: Annotated[bool, typer.Option("--offline", help="Use what the store has.")] = False,
    as_json: Json = False,
) -> None:
    """Make a live patch for an installed kernel from source patches.

    The files that the patches touch are compiled as they are and patched; the functions that differ
    go into a module, which replaces all earlier live patches when it is loaded. What cannot be
    changed in a running kernel is refused with the reason.
    """
    from tegu.errors import UsageError
    from tegu.kernel import last_built, load_recipe
    from tegu.kernel.livepatch import build_livepatch, read_target
    from tegu.store import Store

    loaded, store = load_recipe(recipe), Store.default()
    if not kernel:
        last = last_built(store, loaded.release)
        if last is None:
            raise UsageError(
                f"the store has no {loaded.release}", hint="name its packages with --kernel"
            )
        kernel = [last.parent]
    with spinner() as say:
        say("read the kernel")
        target = read_target(kernel)
        built = build_livepatch(
            patches,
            name,
            target,
            loaded,
            store,
            output,
            version=version,
            jobs=jobs,
            sign_key=sign_key,
            offline=offline,
            say=say,
        )
    if as_json:
        print_json(
            {
                "name": built.name,
                "module": str(built.module),
                "package": str(built.package),
                "release": built.release,
                "functions": built.functions,
                "added": built.added,
                "data": built.data,
            }
        )
        return
    rows = [("replaced", n) for n in built.functions]
    rows += [("new function", n) for n in built.added]
    rows += [("new variable", n) for n in built.data]
    print_table(("change", "name"), rows)
    print_table(("file",), [[built.module], [built.package]])


@app.command(epilog="Example: tegu kernel livepatch load fix --timeout 30")
def load(
    name: Annotated[
        str, typer.Argument(metavar="NAME|FILE", help="An installed live patch, or a module.")
    ],
    timeout: Timeout = 60,
    force: Annotated[
        bool,
        typer.Option(
            "--force",
            help="Move tasks that stall as they are. They may then run old and new code mixed, "
            "and live patches that this one replaces stay in memory until the next boot.",
        ),
    ] = False,
    as_json: Json = False,
) -> None:
    """Load a live patch, and again at each boot of this kernel.

    Waits until every task runs the new functions. When some do not come to a safe point in time,
    they are named, with where they are, and the live patch is taken back.
    """
    from dataclasses import asdict

    from tegu.host.livepatch import Livepatches

    with spinner() as say:
        done = Livepatches().load(name, timeout=timeout, force=force, say=say)
    if as_json:
        print_json(asdict(done))
        return
    print_table(("live patch", "functions"), [(done.name, " ".join(done.functions))])


@app.command(epilog="Example: tegu kernel livepatch enable fix --release 6.12.107-tegu")
def enable(
    name: Name,
    release: Annotated[str, typer.Option(help="The kernel [the one that runs].")] = "",
    as_json: Json = False,
) -> None:
    """Load an installed live patch at the next boot of its kernel, not now."""
    from tegu.host.livepatch import Livepatches

    patches = Livepatches()
    found = patches.files.find(name, release or patches.release)
    patches.files.enable(found.name, found.release)
    if as_json:
        print_json({"name": found.name, "release": found.release, "enabled": True})


@app.command(epilog="Example: tegu kernel livepatch revert fix")
def revert(
    name: Name,
    release: Annotated[str, typer.Option(help="The kernel [the one that runs].")] = "",
    timeout: Timeout = 60,
    force: Annotated[
        bool,
        typer.Option(
            "--force",
            help="Move tasks that stall as they are. They may then run old and new code mixed, "
            "and the module stays in memory until the next boot.",
        ),
    ] = False,
    as_json: Json = False,
) -> None:
    """Go back to the kernel's own functions, and do not load the live patch at boot."""
    from tegu.host.livepatch import Livepatches

    with spinner() as say:
        done = Livepatches().revert(
            name, release=release or None, timeout=timeout, force=force, say=say
        )
    if as_json:
        print_json({"name": name, "reverted": done.found, "module_left": done.left})
    elif not done.found:
        note(f"{name} was neither loaded nor enabled")
    elif done.left is not None:
        note(f"tasks still run functions of {done.left}: it stays in memory until the next boot")


@app.command("list", epilog="Example: tegu kernel livepatch list --json")
def list_patches(as_json: Json = False) -> None:
    """List the live patches that are installed, for all kernels."""
    from dataclasses import asdict

    from tegu.host.livepatch import Livepatches

    patches = Livepatches()
    rows = patches.installed()
    enabled = {r: patches.files.enabled(r) for r in {i.release for i in rows}}
    if as_json:
        print_json([asdict(i) | {"enabled": enabled[i.release] == i.name} for i in rows])
        return
    print_table(
        ("live patch", "kernel", "version", "at boot", "functions"),
        [
            (
                i.name,
                i.release,
                i.version,
                "yes" if enabled[i.release] == i.name else "",
                " ".join(i.functions),
            )
            for i in rows
        ],
    )


@app.command(epilog="Example: tegu kernel livepatch status")
def status(as_json: Json = False) -> None:
    """Say what is loaded, and which tasks keep a change from ending."""
    from dataclasses import asdict

    from tegu.host.livepatch import Livepatches

    patches = Livepatches()
    loaded, stalled = patches.loaded(), patches.stalled()
    blocked = patches.files.blocked()
    if as_json:
        print_json(
            {
                "release": patches.release,
                "loaded": [asdict(p) for p in loaded],
                "stalled": [asdict(t) for t in stalled],
                "at_boot": patches.files.enabled(patches.release),
                "blocked": blocked,
            }
        )
        return
    print_table(
        ("live patch", "state", "functions"),
        [(p.name, _state(p.enabled, p.transition), " ".join(p.functions)) for p in loaded],
    )
    if stalled:
        print_table(
            ("task", "name", "is in"),
            [(t.tid, t.name, " < ".join(t.stack[:4])) for t in stalled],
        )
    if blocked is not None:
        note(f"{blocked} is not loaded at boot: the machine did not last with it")


def _state(enabled: bool, transition: bool) -> str:
    if transition:
        return "loading" if enabled else "reverting"
    return "loaded" if enabled else "disabled"


@app.command(hidden=True, epilog="Example: tegu kernel livepatch resume")
def resume(as_json: Json = False) -> None:
    """Load what is enabled for this kernel, as the machine starts."""
    from dataclasses import asdict

    from tegu.host.livepatch import Livepatches

    done = Livepatches().resume()
    if as_json:
        print_json(None if done is None else asdict(done))


@app.command(hidden=True, epilog="Example: tegu kernel livepatch settle")
def settle(as_json: Json = False) -> None:
    """Note that the machine is well with its live patch."""
    from tegu.host.livepatch import Livepatches

    patches = Livepatches()
    patches.files.settle_boot()
    if as_json:
        print_json({"blocked": patches.files.blocked()})
