"""`tegu host`: what runs inside a Tegu machine."""

from __future__ import annotations

import typer

__all__ = ["app"]

app = typer.Typer(no_args_is_help=True)


@app.callback()
def host() -> None:
    """What runs inside a Tegu machine."""


@app.command(epilog="Example: tegu host kernel --list")
def kernel(
    show: bool = typer.Option(False, "--list", help="List kernels and their boot files (default)."),
    update: bool = typer.Option(False, "--update", help="Make the boot files of the kernels."),
    remove: str = typer.Option("", "--remove", metavar="VERSION", help="Remove a boot file."),
    as_json: bool = typer.Option(False, "--json", help="Print JSON."),
) -> None:
    """Look after the kernels on the EFI system partition.

    apt calls this by itself whenever a kernel is installed or removed.
    """
    from dataclasses import asdict

    from tegu.cli.output import human_size, print_json, print_table
    from tegu.errors import UsageError
    from tegu.host import list_kernels, remove_kernel, update_kernels

    if sum((show, update, bool(remove))) > 1:
        raise UsageError("--list, --update and --remove exclude each other")
    if update or remove:
        changes = remove_kernel(remove) if remove else update_kernels()
        if as_json:
            print_json([asdict(c) for c in changes])
        else:
            print_table(("file", "action"), [(c.file, c.action) for c in changes])
        return
    kernels = list_kernels()
    if as_json:
        print_json([asdict(k) for k in kernels])
        return
    print_table(
        ("kernel", "installed", "boot file", "runs"),
        [
            (
                k.version,
                "yes" if k.installed else "no",
                "none" if k.boot_file is None else human_size(k.boot_file),
                "yes" if k.running else "",
            )
            for k in kernels
        ],
    )


@app.command("upgrade-boot", hidden=True, epilog="Example: tegu host upgrade-boot judge")
def upgrade_boot(
    what: str = typer.Argument(metavar="begin|judge", help="Which end of the boot it is."),
) -> None:
    """Begin or judge the boot that tries an upgrade; systemd calls this."""
    from tegu.errors import UsageError
    from tegu.host.upgrade import boot_begins, boot_proved

    if what not in ("begin", "judge"):
        raise UsageError(f"{what}: there are begin and judge")
    print(boot_begins() if what == "begin" else boot_proved())
