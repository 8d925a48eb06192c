"""`tegu sandbox install`: the runtimes made known to containerd, podman and Kubernetes."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

__all__ = ["install"]


def install(
    clients: Annotated[
        list[str] | None,
        typer.Option(
            "--for", metavar="CLIENT", help="containerd, podman, kubernetes (default: who is here)."
        ),
    ] = None,
    write: bool = typer.Option(False, "--apply", help="Write; without, it is only shown."),
    undo: bool = typer.Option(False, "--undo", help="Take it back."),
    programs: Annotated[
        Path | None, typer.Option(metavar="DIR", help="Where tegu-oci is (default: in PATH).")
    ] = None,
    root: Annotated[
        Path, typer.Option(metavar="DIR", help="The root whose /etc is meant, as of an image.")
    ] = Path("/"),
    as_json: bool = typer.Option(False, "--json", help="Print JSON."),
) -> None:
    """Make tegu-oci and tegu-oci-gvisor known as runtimes; shows what would change.

    containerd's config.toml gets a marked block, podman a file of its own; Kubernetes' RuntimeClass
    manifests are written to /etc/tegu/runtime-classes.yaml.
    """
    from tegu.cli.output import note, print_json
    from tegu.sandbox.install import apply, found_clients, plan

    changes = plan(clients or found_clients(root), root=root, programs=programs, undo=undo)
    checked = apply(changes) if write else []
    if as_json:
        print_json(
            {
                "applied": write,
                "checked": checked,
                "changes": [
                    {"client": c.client, "path": str(c.path), "diff": c.diff(), "then": c.then}
                    for c in changes
                ],
            }
        )
        return
    for change in changes:
        if not change.needed:
            print(f"{change.path}: nothing to do")
        elif write:
            print(f"{change.path}: {'removed' if change.after is None else 'written'}")
        else:
            print(change.diff(), end="")
    for said in checked:
        note(said)
    needed = [change for change in changes if change.needed]
    if write:
        for change in needed:
            note(f"{change.client}: {change.then}")
    elif needed:
        note("nothing was written: --apply does")
