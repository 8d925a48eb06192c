"""`tegu build`: a lock becomes images."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from tegu.cli.output import human_size, note, print_json, print_table, spinner

app = typer.Typer()


@app.command(
    epilog="Example: tegu build -f tegu.toml -o out --explain",
)
def build(
    file: Annotated[Path, typer.Option("--file", "-f", help="The definition.")] = Path("tegu.toml"),
    profile: Annotated[str | None, typer.Option(help="Profile of the definition.")] = None,
    lock: Annotated[
        Path | None, typer.Option(help="The lock; default: beside the definition.")
    ] = None,
    output: Annotated[
        Path | None, typer.Option("--output", "-o", help="Put the images here as well.")
    ] = None,
    locked: Annotated[
        bool, typer.Option("--locked", help="Refuse to make or change the lock.")
    ] = False,
    clean: Annotated[
        bool, typer.Option("--clean", help="Make tree and images again, from the packages.")
    ] = False,
    verify: Annotated[
        bool, typer.Option("--verify", help="Build twice and explain any difference.")
    ] = False,
    explain: Annotated[
        bool, typer.Option("--explain", help="Say what each step did, and why.")
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print the result as JSON.")] = False,
) -> None:
    """Build the images of a definition.

    Makes the lock first if there is none, and renews it where the definition asks for other
    packages. What has not changed since the last build is not made again.
    """
    from tegu.image import BuildOptions, build_locked, export, lock_for
    from tegu.store import Store

    store = Store.default()
    with store.shared(), spinner() as say:

        def on_event(event: tuple[str, Any]) -> None:
            kind, value = event
            if kind == "note":
                note(str(value))
            else:
                say(str(value))

        definition, found = lock_for(
            file, profile=profile, lock_path=lock, locked=locked, store=store, on_event=on_event
        )
        options = BuildOptions(reuse_trees=not clean, reuse_images=not clean)
        built = build_locked(
            definition, found, store, subject=file, options=options, on_event=on_event
        )
        placed = (
            export(built.images, store, output) if output is not None else built.images.files(store)
        )
        difference = None
        if verify:
            from tegu.image import verify_build

            difference = verify_build(built, store, on_event=on_event)
    if as_json:
        print_json(
            {
                "key": built.images.key,
                "tree_digest": built.tree_digest,
                "images": [
                    {
                        "format": i.format,
                        "path": str(next(p for p in placed if p.name == i.name)),
                        "size": i.size,
                        "virtual_size": i.virtual_size,
                        "sha256": i.sha256,
                    }
                    for i in built.images.images
                ],
                "steps": [
                    {
                        "name": s.name,
                        "key": s.key,
                        "outcome": s.outcome,
                        "reason": s.reason,
                        "seconds": round(s.seconds, 3),
                        "cpu_seconds": round(s.cpu_seconds, 3),
                    }
                    for s in built.steps
                ],
                "reproducible": None if difference is None else not difference,
                "differences": difference,
            }
        )
    else:
        if explain:
            print_table(
                ["step", "outcome", "seconds", "cpu", "key", "why"],
                [
                    [
                        s.name,
                        s.outcome,
                        f"{s.seconds:.2f}",
                        f"{s.cpu_seconds:.2f}",
                        s.key[:12],
                        s.reason,
                    ]
                    for s in built.steps
                ],
            )
        by_name = {i.name: i for i in built.images.images}
        for path in placed:
            if (image := by_name.get(path.name)) is not None:
                print(f"{path}  {human_size(image.size)}")
        if difference is not None and not difference:
            print("reproducible: the second build gave the same bits")
    if difference:
        from tegu.errors import BuildError

        raise BuildError(
            f"not reproducible: {difference[0]}"
            + (f" (and {len(difference) - 1} more)" if len(difference) > 1 else ""),
            hint="\n      ".join(difference[1:20]) or None,
        )
