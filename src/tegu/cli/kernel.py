"""`tegu kernel`: the cloud kernel from the command line."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from tegu.cli import kernel_bisect, kernel_history, kernel_livepatch
from tegu.cli.output import human_size, note, print_json, print_table, spinner

app = typer.Typer(no_args_is_help=True, help="Build the cloud kernel, and keep it current.")
config_app = typer.Typer(no_args_is_help=True, help="The kernel's configuration.")
app.add_typer(config_app, name="config")
kernel_history.add_to(app)
kernel_bisect.add_to(app)
kernel_livepatch.add_to(app)

Json = Annotated[bool, typer.Option("--json", help="Print JSON.")]
Recipe = Annotated[
    Path | None, typer.Option("--recipe", "-r", help="What to build [distro/kernel/kernel.toml].")
]


Mirror = Annotated[
    list[str] | None,
    typer.Option(
        "--mirror",
        help="URI of a repository to try first for the source, such as an archive of old versions.",
    ),
]


@app.command(epilog="Example: tegu kernel build -o out/ --jobs 4")
def build(
    recipe: Recipe = None,
    output: Annotated[
        Path | None, typer.Option("--output", "-o", help="Directory to put the packages in.")
    ] = None,
    jobs: Annotated[int | None, typer.Option("--jobs", "-j", min=1, help="Jobs [CPUs].")] = None,
    sign_key: Annotated[
        Path | None,
        typer.Option(help="PEM file with a private key and its certificate, to sign modules with."),
    ] = None,
    mirror: Mirror = None,
    rpm: Annotated[
        bool, typer.Option("--rpm", help="Write the same as .rpm, too (needs rpmbuild).")
    ] = False,
    debug: Annotated[
        bool, typer.Option("--debug", help="Package the debug symbols, too (for crash dumps).")
    ] = False,
    offline: Annotated[bool, typer.Option("--offline", help="Use what the store has.")] = False,
    as_json: Json = False,
) -> None:
    """Build the kernel's packages from the distribution's verified source.

    The source package's own patches are applied, then the recipe's; the configuration is made from
    the recipe's fragments and nothing else. The packages are kept in the store, so that building
    the same again costs nothing, and a change costs what ccache cannot answer.
    """
    from tegu.files import atomic_copy, writable_directory
    from tegu.kernel import build_kernel, load_recipe, rpm_packages
    from tegu.packages.rpm_write import rpm_version
    from tegu.store import Store

    loaded = load_recipe(recipe)
    if rpm:
        rpm_version()  # whether it is here is known now, not after an hour
    if output is not None:
        writable_directory(output)  # known now, not after an hour
    store = Store.default()
    with spinner() as say:
        built = build_kernel(
            loaded,
            store,
            jobs=jobs,
            sign_key=sign_key,
            debug=debug,
            offline=offline,
            mirrors=mirror or (),
            say=say,
        )
        paths = list(built.packages)
        if rpm:
            paths += rpm_packages(loaded, built, store, say=say)
    if output is not None:
        paths = [atomic_copy(p, output / p.name) for p in paths]
    if as_json:
        print_json(
            {
                "release": built.release,
                "version": built.version,
                "packages": [str(p) for p in paths],
                "seconds": built.seconds,
                "cached": built.cached,
                "tools": built.tools,
            }
        )
        return
    print_table(["package", "size"], [[p, human_size(p.stat().st_size)] for p in paths])


@app.command(epilog="Example: tegu kernel lock")
def lock(
    recipe: Recipe = None,
    offline: Annotated[bool, typer.Option("--offline", help="Use what the store has.")] = False,
    as_json: Json = False,
) -> None:
    """Fix the files of the source that the recipe builds, from the distribution's signed index.

    Written beside the recipe (kernel.lock). With it, a version that the distribution has replaced
    by a newer one can be built as long as a mirror, an archive (--mirror) or the store has it.
    """
    from tegu.kernel import load_recipe
    from tegu.kernel.source import lock_source
    from tegu.store import Store

    loaded = load_recipe(recipe)
    with spinner() as say:
        say("look for the source")
        package = lock_source(loaded, Store.default(), offline=offline)
    if as_json:
        files = [{"name": f.name, "size": f.size, "sha256": f.sha256} for f in package.files]
        print_json({"lock": str(loaded.lock), "version": package.version, "files": files})
        return
    print_table(["file", "size"], [[f.name, human_size(f.size)] for f in package.files])


@config_app.command(epilog="Example: tegu kernel config check")
def check(
    recipe: Recipe = None,
    architecture: Annotated[
        str, typer.Option(help="Architecture to configure for: x86-64 or arm64.")
    ] = "x86-64",
    mirror: Mirror = None,
    offline: Annotated[bool, typer.Option("--offline", help="Use what the store has.")] = False,
    as_json: Json = False,
) -> None:
    """Say which options of the fragments do not take, and where the result is less than hardened.

    Unpacks and configures the source; nothing is compiled. Where kernel-hardening-checker is
    installed, its recommendations are compared too; accepted deviations are in hardening.toml.
    """
    from dataclasses import asdict

    from tegu.errors import BuildError, UnsupportedError, UsageError
    from tegu.kernel import check_config, check_hardening, load_recipe, read_accepted
    from tegu.kernel.recipe import ARCHITECTURES
    from tegu.store import Store

    if architecture not in ARCHITECTURES:
        raise UsageError(f"{architecture!r}: it is one of {', '.join(ARCHITECTURES)}")
    loaded = load_recipe(recipe, architecture=architecture)
    accepted = read_accepted(loaded.path.parent / "hardening.toml")
    with spinner() as say:
        checked = check_config(
            loaded, Store.default(), offline=offline, mirrors=mirror or (), say=say
        )
    misses = checked.misses
    try:
        hardening = check_hardening(checked.config, accepted)
        unsupported = ""
    except UnsupportedError as e:
        hardening = None
        unsupported = f"{e.message}; {e.hint}"
    if as_json:
        print_json(
            {
                "options": len(loaded.options),
                "misses": [
                    {
                        "where": m.option.where,
                        "option": m.option.name,
                        "wanted": m.option.value,
                        "got": m.got,
                        "needs": list(m.unmet),
                    }
                    for m in misses
                ],
                "hardening": {"unsupported": unsupported}
                if hardening is None
                else {
                    "checker": hardening.version,
                    "checks": hardening.checks,
                    "deviations": [asdict(d) for d in hardening.deviations],
                    "needless": hardening.needless,
                },
            }
        )
    else:
        print_table(
            ["where", "option", "wanted", "got", "needs"],
            [
                [m.option.where, m.option.name, m.option.value, m.got, "; ".join(m.unmet)]
                for m in misses
            ],
        )
        if hardening is not None:
            print_table(
                ["hardening", "recommended", "is"],
                [[d.option, d.wanted, d.result] for d in hardening.refused],
            )
    if hardening is None:
        note(unsupported)
    elif hardening.needless:
        note(f"accepted without need: {', '.join(hardening.needless)}")
    refused = hardening.refused if hardening is not None else []
    if misses or refused:
        raise BuildError(
            f"{len(misses)} of {len(loaded.options)} options did not take, "
            f"{len(refused)} are not as recommended",
            hint="change the fragments, or accept a deviation in hardening.toml with its reason",
        )
    if not as_json:
        print(f"all {len(loaded.options)} options took")
        if hardening is not None:
            print(
                f"{hardening.checks} recommendations, {len(hardening.deviations)} deviations, "
                "all of them accepted with a reason"
            )
