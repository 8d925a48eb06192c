"""`tegu sandbox template`: what boxes see as their "/", made of container images."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

__all__ = ["app", "template_options"]

app = typer.Typer(no_args_is_help=True)


@app.callback()
def template() -> None:
    """Templates made of container images: OCI layouts, archives, registries."""


@app.command(
    epilog="Examples: tegu sandbox template add app oci:/srv/images/app:v1; "
    "tegu sandbox template add debian docker://registry.example/debian:13"
)
def add(
    name: Annotated[str, typer.Argument(metavar="NAME")],
    source: Annotated[
        str,
        typer.Argument(
            metavar="IMAGE",
            help="oci:DIR[:TAG], oci-archive:FILE[:TAG], docker-archive:FILE[:REF], docker://REF",
        ),
    ],
    max_size: str = typer.Option("16G", help="The most that it may take unpacked."),
    authfile: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Logins of registries (skopeo login).")
    ] = None,
    tls_verify: bool = typer.Option(
        True, "--tls-verify/--no-tls-verify", help="Or speak to a registry without TLS."
    ),
    as_json: bool = typer.Option(False, "--json", help="Print JSON."),
) -> None:
    """Make a template of an image, or renew it; content that is here is not fetched again."""
    from tegu.cli.output import note, print_json, spinner
    from tegu.sandbox.images import add_image

    with spinner() as progress:
        made = add_image(
            name,
            source,
            max_size=max_size,
            authfile=authfile,
            tls_verify=tls_verify,
            progress=progress,
        )
    if as_json:
        print_json(made.to_json())
        return
    print(f"{made.name} {made.digest}")
    for what, count in made.left_out.items():
        note(f"left out: {count} {what}, which mean nothing in a box")


@app.command("list", epilog="Example: tegu sandbox template list --json")
def list_templates(as_json: bool = typer.Option(False, "--json", help="Print JSON.")) -> None:
    """List the templates made of images."""
    import time

    from tegu.cli.output import human_size, print_json, print_table
    from tegu.sandbox.images import list_images

    found = list_images()
    if as_json:
        print_json([image.to_json() for image in found])
        return
    print_table(
        ("template", "image", "digest", "layers", "packed", "added"),
        [
            (
                image.name,
                image.source,
                image.digest[:19],
                len(image.blobs) - 2,
                human_size(image.size),
                time.strftime("%Y-%m-%d %H:%M", time.localtime(image.created)),
            )
            for image in found
        ],
    )


@app.command(epilog="Example: tegu sandbox template show app --json")
def show(
    name: Annotated[str, typer.Argument(metavar="NAME")],
    as_json: bool = typer.Option(False, "--json", help="Print JSON."),
) -> None:
    """Show what a template is, and what its programs begin with."""
    from tegu.cli.output import print_json, print_table
    from tegu.errors import UsageError
    from tegu.sandbox.images import find_image

    image = find_image(name)
    if image is None:
        raise UsageError(f"there is no template {name}")
    if as_json:
        print_json(image.to_json())
        return
    print_table(("what", "is"), [(k, str(v)) for k, v in image.to_json().items()])


@app.command(epilog="Example: tegu sandbox template remove app")
def remove(names: Annotated[list[str], typer.Argument(metavar="NAME...")]) -> None:
    """Remove templates; boxes that run keep theirs."""
    from tegu.sandbox.images import remove_image

    for name in names:
        remove_image(name)


def template_options(template: str, image: str | None) -> str:
    """Return the template that `-t` and `--image` mean: "host", a name, or a directory's path."""
    from tegu.cli.output import spinner
    from tegu.errors import UsageError
    from tegu.sandbox.images import image_names, obtain

    if image is not None:
        if template != "host":
            raise UsageError("--image and -t are two names of one thing: give one")
        with spinner() as progress:
            return obtain(image, progress).name
    if template == "host" or template in image_names():
        return template
    return str(Path(template).absolute())
