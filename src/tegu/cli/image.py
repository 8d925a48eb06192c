"""`tegu image`: the images in the store."""

from __future__ import annotations

import datetime
from pathlib import Path
from typing import Annotated

import typer

from tegu.cli.output import human_size, print_json, print_table

app = typer.Typer(no_args_is_help=True, help="List, inspect, compare, export, remove images.")

Json = Annotated[bool, typer.Option("--json", help="Print JSON.")]
Name = Annotated[str, typer.Argument(help="Start of a key, name of a system, or a file's name.")]


@app.command("ls", epilog="Example: tegu image ls")
def list_(as_json: Json = False) -> None:
    """List the images in the store, newest first."""
    from tegu.image import list_images
    from tegu.store import Store

    images = list_images(Store.default())
    if as_json:
        print_json([_summary(i) for i in images])
        return
    print_table(
        ["key", "system", "version", "formats", "size", "packages", "made"],
        [
            [
                i.key[:12],
                i.system,
                i.version,
                ",".join(f.format for f in i.images),
                human_size(sum(f.size for f in i.images)),
                len(i.packages),
                datetime.datetime.fromtimestamp(i.created).strftime("%Y-%m-%d %H:%M"),
            ]
            for i in images
        ],
    )


@app.command(epilog="Example: tegu image inspect tegu --json")
def inspect(name: Name, as_json: Json = False) -> None:
    """Show what an image is and what is in it."""
    from tegu.image import find_image
    from tegu.store import Store

    image = find_image(Store.default(), name)
    if as_json:
        print_json({**_summary(image), "packages": dict(image.packages)})
        return
    rows = [
        ("key", image.key),
        ("system", f"{image.system} {image.version} ({image.architecture})"),
        ("tree", image.tree_digest),
        ("lock", image.lock_digest),
        ("packages", len(image.packages)),
    ]
    rows += [
        (f.format, f"{f.name}  {human_size(f.size)}  {f.sha256 or 'a directory'}")
        for f in image.images
    ]
    print_table(["", ""], rows)


@app.command(epilog="Example: tegu image diff 3f2a 91bc")
def diff(old: Name, new: Name, as_json: Json = False) -> None:
    """Compare two images: packages, then every file."""
    from tegu.image import diff_images, find_image
    from tegu.store import Store

    store = Store.default()
    found = diff_images(store, find_image(store, old), find_image(store, new))
    if as_json:
        print_json(
            {
                "packages": found.packages,
                "files": [{"path": d.path, "what": d.what} for d in found.files],
            }
        )
        return
    print_table(
        ["package", "old", "new"],
        [[n, a or "-", b or "-"] for n, (a, b) in found.packages.items()],
    )
    print_table(["file", "what"], [[f"/{d.path}", d.what] for d in found.files])


@app.command(epilog="Example: tegu image export tegu /srv/images")
def export(
    name: Name,
    output: Annotated[Path, typer.Argument(help="Directory to put the files in.")],
    only: Annotated[str | None, typer.Option("--format", help="Only this format.")] = None,
) -> None:
    """Copy an image's files out of the store."""
    from tegu.image import export_image, find_image
    from tegu.store import Store

    store = Store.default()
    for path in export_image(find_image(store, name), store, output, only=only):
        print(path)


@app.command(epilog="Example: tegu image rm 3f2a91bc")
def rm(name: Name) -> None:
    """Remove an image from the store."""
    from tegu.image import find_image, remove_image
    from tegu.store import Store

    store = Store.default()
    image = find_image(store, name)
    remove_image(store, image)
    print(f"removed {image.key[:12]} ({image.system} {image.version})")


def _summary(image: object) -> dict[str, object]:
    from tegu.image import Assembled

    assert isinstance(image, Assembled)
    return {
        "key": image.key,
        "system": image.system,
        "version": image.version,
        "architecture": image.architecture,
        "tree_digest": image.tree_digest,
        "lock_digest": image.lock_digest,
        "timestamp": image.timestamp,
        "images": [
            {
                "format": f.format,
                "name": f.name,
                "size": f.size,
                "virtual_size": f.virtual_size,
                "sha256": f.sha256,
            }
            for f in image.images
        ],
    }
