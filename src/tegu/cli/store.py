"""`tegu store` and `tegu gc`: what the store holds, and freeing it."""

from __future__ import annotations

from typing import Annotated

import typer

from tegu.cli.output import human_size, print_json, print_table

app = typer.Typer(no_args_is_help=True, help="Look at the store, verify what it holds.")
gc_app = typer.Typer()

Json = Annotated[bool, typer.Option("--json", help="Print JSON.")]


@app.command(epilog="Example: tegu store show")
def show(as_json: Json = False) -> None:
    """Say where the store is and what takes how much room."""
    from tegu.image import usage
    from tegu.store import Store

    store = Store.default()
    found = usage(store)
    if as_json:
        kinds = {k: {"count": c, "bytes": s} for k, (c, s) in found.items()}
        print_json({"path": str(store.root), "kinds": kinds})
        return
    print(store.root)
    print_table(["kind", "entries", "size"], [[k, c, human_size(s)] for k, (c, s) in found.items()])


@app.command(epilog="Example: tegu store verify")
def verify(as_json: Json = False) -> None:
    """Read everything; drop what is damaged, so that the next build makes it again."""
    from tegu.errors import StoreError
    from tegu.image import verify_store
    from tegu.store import Store

    damaged = verify_store(Store.default())
    if as_json:
        print_json({"damaged": damaged})
    for line in damaged if not as_json else ():
        print(line)
    if damaged:
        raise StoreError(
            f"{len(damaged)} damaged, dropped", hint="the next build fetches or makes them again"
        )


@gc_app.command(epilog="Example: tegu gc --days 3")
def gc(
    days: Annotated[float, typer.Option(min=0, help="Keep what was used in as many days.")] = 14,
    everything: Annotated[
        bool, typer.Option("--all", help="Free everything but finished images.")
    ] = False,
    as_json: Json = False,
) -> None:
    """Free what no recent build has used. Everything in the store can be made again."""
    from tegu.image import collect_isolated
    from tegu.store import Store

    freed = collect_isolated(Store.default(), days=days, everything=everything)
    if as_json:
        print_json(
            {
                "bytes": freed.size,
                "kinds": {k: {"count": c, "bytes": s} for k, (c, s) in freed.kinds.items()},
            }
        )
        return
    print_table(
        ["kind", "removed", "size"], [[k, c, human_size(s)] for k, (c, s) in freed.kinds.items()]
    )
    print(f"freed {human_size(freed.size)}")
