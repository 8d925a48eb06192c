"""`tegu kernel` inside a machine: what can be done to the kernel that runs."""

from __future__ import annotations

import typer

from tegu.cli import kernel_livepatch

__all__ = ["app"]

app = typer.Typer(no_args_is_help=True, help="The kernel that runs.")
kernel_livepatch.add_to(app)


@app.callback()
def kernel() -> None:
    """The kernel that runs."""
