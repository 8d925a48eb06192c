"""`tegu definition` and `tegu new`: show, check and start a definition."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from tegu.cli.output import print_json, print_table
from tegu.errors import UsageError

if TYPE_CHECKING:
    from tegu.definition import Definition, Examined
    from tegu.definition.architecture import Architecture

__all__ = ["app", "new_app"]

app = typer.Typer(
    no_args_is_help=True,
    help="Show and check a definition (tegu.toml).",
    epilog="Example: tegu definition check && tegu definition show --resolved",
)
new_app = typer.Typer()

FileOption = Annotated[
    Path, typer.Option("-f", "--file", metavar="PATH", help="The definition to read.")
]
ProfileOption = Annotated[
    str | None, typer.Option(metavar="NAME", help="Select this profile instead of the default.")
]
ArchOption = Annotated[
    str | None, typer.Option("--arch", metavar="NAME", help="x86-64 or arm64, instead of its own.")
]
JsonOption = Annotated[bool, typer.Option("--json", help="Print JSON for programs.")]
DEFAULT_FILE = Path("tegu.toml")


def _architecture(name: str | None) -> Architecture | None:
    from tegu.definition import ARCHITECTURES
    from tegu.definition.problems import nearest

    for known in ARCHITECTURES:
        if name == known:
            return known
    if name is None:
        return None
    near = nearest(name, ARCHITECTURES)
    hint = f"did you mean '{near}'?" if near else f"they are: {', '.join(ARCHITECTURES)}"
    raise UsageError(f"--arch: there is no architecture '{name}'", hint=hint)


@app.command(epilog="Example: tegu definition show --resolved --origins")
def show(
    *,
    file: FileOption = DEFAULT_FILE,
    profile: ProfileOption = None,
    arch: ArchOption = None,
    resolved: Annotated[
        bool, typer.Option("--resolved", help="Print all of it, merged, as TOML.")
    ] = False,
    origins: Annotated[
        bool, typer.Option("--origins", help="With --resolved: where each value was set.")
    ] = False,
    as_json: JsonOption = False,
) -> None:
    """Show a definition: a summary, or with --resolved every option after includes and profile."""
    from tegu.definition import examine, to_json, to_toml
    from tegu.definition.origins import comments
    from tegu.definition.problems import as_error

    if origins and not resolved:
        raise UsageError("--origins goes with --resolved")
    examined = examine(file, profile=profile, architecture=_architecture(arch))
    if examined.definition is None:
        raise as_error(examined.problems)
    if as_json:
        print_json(to_json(examined.definition))
    elif resolved:
        comment = comments(examined) if origins else None
        sys.stdout.write(to_toml(examined.definition, comment=comment))
    else:
        print_table(("", ""), _summary(examined, examined.definition))


def _summary(examined: Examined, definition: Definition) -> list[tuple[str, object]]:
    from tegu.definition.problems import shown_path

    system, image = definition.system, definition.image
    return [
        ("name", system.pretty_name or system.name),
        ("version", system.version),
        ("profile", definition.profile or "none"),
        ("architecture", system.architecture),
        ("base", " ".join(definition.base.suites)),
        ("packages", f"{len(definition.packages.install)} named"),
        ("kernel", definition.kernel.package or "none"),
        ("image", f"{image.size} {image.filesystem}, {' '.join(image.formats)}"),
        ("files", " ".join(shown_path(path) for path in examined.files)),
    ]


@app.command(epilog="Example: tegu definition check /srv/os/tegu.toml --json")
def check(
    *,
    path: Annotated[
        Path | None, typer.Argument(metavar="[PATH]", help="Default: tegu.toml.")
    ] = None,
    file: FileOption = DEFAULT_FILE,
    profile: ProfileOption = None,
    arch: ArchOption = None,
    as_json: JsonOption = False,
) -> int:
    """Check a definition with all its profiles, or with --profile one of them."""
    from tegu.definition import digest, examine, examine_all
    from tegu.definition.problems import as_error, shown_path

    target = path or file
    one = profile is not None or arch is not None
    if one:
        found = [examine(target, profile=profile, architecture=_architecture(arch))]
    else:
        found = examine_all(target)
    problems = list(dict.fromkeys(p for examined in found for p in examined.problems))
    definition = found[0].definition
    if as_json:
        body: dict[str, Any] = {
            "ok": not problems,
            "file": str(target),
            "files": [str(f) for f in found[0].files],
            "problems": [p.as_data() for p in problems],
        }
        if definition is not None:
            body |= {"profile": definition.profile, "digest": digest(definition)}
        print_json(body)
        return as_error(problems).exit_code if problems else 0
    if problems or definition is None:
        raise as_error(problems)
    print(f"{shown_path(target)}: {definition.system.name} {definition.system.version}: right")
    return 0


@app.command(epilog="Example: tegu definition schema > tegu.schema.json")
def schema() -> None:
    """Print the JSON Schema of tegu.toml, for editors."""
    from tegu.definition.schema import schema_text

    sys.stdout.write(schema_text())


@new_app.command(epilog="Example: tegu new myos --profile minimal && cd myos && tegu build")
def new(
    name: Annotated[str, typer.Argument(metavar="NAME", help="What the system is called.")],
    directory: Annotated[
        Path | None, typer.Option("--dir", metavar="DIR", help="Default: ./NAME.")
    ] = None,
    profile: Annotated[
        str,
        typer.Option(
            metavar="PROFILE", help="Of Tegu Linux to build on: minimal, server, container-host."
        ),
    ] = "server",
    as_json: JsonOption = False,
) -> None:
    """Start a definition of your own, on top of Tegu Linux."""
    from tegu.definition.problems import shown_path
    from tegu.definition.scaffold import scaffold

    made = scaffold(name, directory or Path(name), profile=profile)
    if as_json:
        print_json({"directory": str(made.directory), "files": [str(f) for f in made.files]})
        return
    print(f"{shown_path(made.directory)}: " + ", ".join(str(f) for f in made.files))
    if sys.stdout.isatty():
        print(f"next: cd {shown_path(made.directory)} && tegu lock && tegu build && tegu boot")
