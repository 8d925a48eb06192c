"""`tegu boot`, `machines`, `ssh`, `cp`, `console`, `stop`: machines from the command line."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from tegu.cli.output import human_size, note, print_json, print_table, spinner

if TYPE_CHECKING:
    from tegu.lab import MachineRecord

boot_app = typer.Typer()
machines_app = typer.Typer()
ssh_app = typer.Typer()
cp_app = typer.Typer()
console_app = typer.Typer()
stop_app = typer.Typer()

Json = Annotated[bool, typer.Option("--json", help="Print the result as JSON.")]


@boot_app.command(
    epilog="Example: tegu boot out/tegu_26.11_x64_20G_20261120.qcow2 --memory 1G --forward 8080:80"
)
def boot(
    image: Annotated[
        Path | None,
        typer.Argument(help="A disk image, or a definition (tegu.toml) to build first."),
    ] = None,
    *,
    name: Annotated[str | None, typer.Option(help="Name of the machine [made from IMAGE].")] = None,
    user: Annotated[str | None, typer.Option(help="Login user, made by cloud-init [tegu].")] = None,
    key: Annotated[
        list[Path] | None, typer.Option(help="SSH public key for it, beside our own; repeatable.")
    ] = None,
    hostname: Annotated[str | None, typer.Option(help="Host name [the machine's name].")] = None,
    user_data: Annotated[Path | None, typer.Option(help="cloud-init user-data.")] = None,
    meta_data: Annotated[Path | None, typer.Option(help="cloud-init meta-data.")] = None,
    network_config: Annotated[Path | None, typer.Option(help="cloud-init network-config.")] = None,
    no_seed: Annotated[bool, typer.Option("--no-seed", help="Attach no seed.")] = False,
    forward: Annotated[
        list[str] | None, typer.Option(help="Forward a TCP port, HOST:GUEST; repeatable.")
    ] = None,
    network: Annotated[str, typer.Option(help="user, isolated or none.")] = "user",
    memory: Annotated[str, typer.Option(help="Memory, such as 768M.")] = "1G",
    cpus: Annotated[int, typer.Option(help="Number of CPUs.")] = 2,
    disk: Annotated[str | None, typer.Option(help="Disk size, such as 40G [the image's].")] = None,
    firmware: Annotated[str, typer.Option(help="uefi or bios.")] = "uefi",
    bus: Annotated[str, typer.Option(help="virtio-blk, nvme or virtio-scsi.")] = "virtio-blk",
    architecture: Annotated[
        str | None, typer.Option(help="x86-64 or arm64 [this machine's].")
    ] = None,
    accelerator: Annotated[str, typer.Option(help="auto, kvm or tcg (emulation).")] = "auto",
    icount: Annotated[
        bool, typer.Option("--icount", help="One emulated CPU whose clock counts instructions.")
    ] = False,
    kernel: Annotated[Path | None, typer.Option(help="Boot this kernel directly.")] = None,
    initrd: Annotated[Path | None, typer.Option(help="Its initrd.")] = None,
    append: Annotated[str, typer.Option(help="Its command line.")] = "",
    ephemeral: Annotated[
        bool, typer.Option("--ephemeral", help="Forget all changes at the end (the default).")
    ] = False,
    persist: Annotated[
        str | None, typer.Option(help="Keep the changes, in a machine of this name.")
    ] = None,
    profile: Annotated[str | None, typer.Option(help="Profile of the definition.")] = None,
    console: Annotated[bool, typer.Option("--console", help="Attach the console at once.")] = False,
    no_wait: Annotated[bool, typer.Option("--no-wait", help="Do not wait for SSH.")] = False,
    timeout: Annotated[float, typer.Option(help="Seconds to wait for SSH and cloud-init.")] = 300,
    as_json: Json = False,
) -> None:
    """Boot an image in a machine that stays up in the background.

    Waits until SSH answers and cloud-init is done, then says how to reach the machine. The image
    itself is never written to. Uses KVM where it works, emulation elsewhere.
    """
    from tegu.errors import UsageError
    from tegu.lab import boot as boot_machine
    from tegu.lab import machine_options

    if ephemeral and persist:
        raise UsageError("--ephemeral and --persist exclude each other")
    with spinner() as say:
        path, default_user = resolve_image(image, profile, say)
        options = machine_options(
            image=path,
            name=persist or name,
            persist=persist is not None,
            user=user or default_user,
            keys=key or (),
            hostname=hostname,
            user_data=user_data,
            meta_data=meta_data,
            network_config=network_config,
            seed=not no_seed,
            forwards=forward or (),
            network=network,
            memory=memory,
            cpus=cpus,
            disk=disk,
            firmware=firmware,
            bus=bus,
            architecture=architecture,
            accelerator=accelerator,
            icount=icount,
            kernel=kernel,
            initrd=initrd,
            append=append,
        )
        up = boot_machine(options, wait=not (no_wait or console), timeout=timeout, on_event=say)
    if up.notice:
        note(up.notice)
    if up.cloud_init and up.cloud_init.startswith(("error", "degraded")):
        note(f"cloud-init: {up.cloud_init}")
    if as_json:
        print_json(
            {
                **_record_json(up.record),
                "notice": up.notice,
                "ssh_seconds": up.ssh_seconds,
                "cloud_init": up.cloud_init,
            }
        )
    else:
        _say_how_to_reach(up.record, up.ssh_seconds)
    if console:
        from tegu.lab import attach

        attach(up.record.name, up.record.console_socket)


@machines_app.command(epilog="Example: tegu machines --json")
def machines(as_json: Json = False) -> None:
    """List the machines that run, and clean up after those that have died."""
    from tegu.lab import Registry

    records = Registry().all()
    if as_json:
        print_json([_record_json(r) for r in records])
        return
    print_table(
        ["name", "image", "runs by", "firmware", "cpus", "memory", "ssh port", "user"],
        [
            [
                r.name,
                Path(r.image).name,
                "KVM" if r.accelerator == "kvm" else "emulation",
                r.firmware,
                r.cpus,
                human_size(r.memory),
                r.ssh_port,
                r.user,
            ]
            for r in records
        ],
    )


@ssh_app.command(
    context_settings={"ignore_unknown_options": True},
    epilog="Example: tegu ssh web-1 -- systemctl --failed",
)
def ssh(
    name: Annotated[str, typer.Argument(help="A machine that runs.")],
    command: Annotated[
        list[str] | None, typer.Argument(help="Run this instead of a shell.")
    ] = None,
) -> None:
    """Log in to a machine, or run a command in it and end with its exit code."""
    import os
    import sys

    from tegu.lab import QemuMachine

    machine = QemuMachine.attach(name)
    terminal = (sys.stdin.isatty() and sys.stdout.isatty()) if command else None
    argv = machine.ssh.interactive(command or (), terminal=terminal)
    sys.stdout.flush()
    os.execv(argv[0], argv)


@cp_app.command(epilog="Example: tegu cp web-1:/var/log/cloud-init.log .")
def cp(
    source: Annotated[str, typer.Argument(help="A path, or NAME:PATH for one on a machine.")],
    target: Annotated[str, typer.Argument(help="Likewise; one of the two is on a machine.")],
    timeout: Annotated[float, typer.Option(help="Seconds that the copy may take.")] = 3600,
) -> None:
    """Copy a file or directory to or from a machine."""
    from tegu.lab import copy

    copy(source, target, timeout=timeout)


@console_app.command(epilog="Example: tegu console web-1 --log | tail")
def console(
    name: Annotated[str, typer.Argument(help="A machine that runs.")],
    log: Annotated[bool, typer.Option("--log", help="Print what was said so far.")] = False,
) -> None:
    """Use a machine's serial console; Ctrl-] leaves it."""
    from tegu.lab import QemuMachine, attach

    machine = QemuMachine.attach(name)
    if log:
        print(machine.console(), end="")
    else:
        attach(name, machine.record.console_socket)


@stop_app.command(epilog="Example: tegu stop web-1")
def stop(
    names: Annotated[list[str], typer.Argument(help="Machines that run.", metavar="NAME...")],
    kill: Annotated[bool, typer.Option("--kill", help="Take the power away at once.")] = False,
    timeout: Annotated[float, typer.Option(help="Seconds for a clean power-off.")] = 120,
    as_json: Json = False,
) -> None:
    """Power machines off, cleanly; one that does not obey in time is cut off, and that is said."""
    from tegu.errors import MachineError
    from tegu.lab import stop as stop_machine

    stopped = []
    with spinner() as say:
        for name in names:
            say(f"{name}: powering off")
            stopped.append(stop_machine(name, kill=kill, timeout=timeout))
    if as_json:
        print_json([{"name": s.name, "clean": s.clean, "seconds": s.seconds} for s in stopped])
    cut = [s for s in stopped if not s.clean and not kill]
    if cut:
        raise MachineError(
            f"{', '.join(s.name for s in cut)} did not power off within {timeout:g} s: cut off"
        )


def resolve_image(
    image: Path | None, profile: str | None, say: Any
) -> tuple[Path | None, str | None]:
    """Return the image to boot, built first if a definition is named, and its default user."""
    from tegu.lab import is_definition

    if image is None or not is_definition(image):
        return image, None
    from tegu.image import build_definition

    built = build_definition(image, profile=profile, on_event=lambda e: say(str(e[1])))
    return built.path, built.definition.cloud.default_user


def _record_json(record: MachineRecord) -> dict[str, Any]:
    return {
        "name": record.name,
        "image": record.image,
        "architecture": record.architecture,
        "accelerator": record.accelerator,
        "firmware": record.firmware,
        "memory": record.memory,
        "cpus": record.cpus,
        "user": record.user,
        "ssh_host": "127.0.0.1" if record.ssh_port else None,
        "ssh_port": record.ssh_port,
        "identities": [str(p) for p in record.identities],
        "known_hosts": str(record.known_hosts),
        "forwards": list(record.forwards),
        "console_log": str(record.console_log),
        "console_socket": str(record.console_socket),
        "monitor": str(record.monitor),
        "pid": record.process.pid if record.process else None,
        "created": record.created,
        "persistent": record.home is not None,
    }


def _say_how_to_reach(record: MachineRecord, seconds: float | None) -> None:
    import sys

    if not sys.stdout.isatty():
        print(record.name)
        return
    how = "KVM" if record.accelerator == "kvm" else "emulation"
    took = f", SSH after {seconds:.0f} s" if seconds is not None else ""
    print(f"{record.name} is up ({how}, {record.firmware}{took})")
    if record.ssh_port:
        print(f"  log in    tegu ssh {record.name}")
    print(f"  console   tegu console {record.name}")
    print(f"  stop      tegu stop {record.name}")
