"""From files to layers: what a definition file includes, and what it says when.

A file holds plain options, profiles and options for one architecture. Reading it with all that it
includes yields these apart and in order, ready to be merged by the loader.
"""

from __future__ import annotations

import os
from dataclasses import dataclass, field
from pathlib import Path

from tegu.definition.architecture import ARCHITECTURES
from tegu.definition.nodes import Branch, Leaf, Node, Place, Row
from tegu.definition.problems import Problem, Stop, nearest, shown_path
from tegu.definition.shape import path_locations
from tegu.definition.shipped import PREFIX, shipped_definition, shipped_directory
from tegu.definition.source import read
from tegu.errors import DefinitionError

__all__ = ["Layers", "collect", "no_such_profile"]

MAX_INCLUDES = 32
_NOT_IN_PARTS = ("include", "profile", "architecture")


@dataclass(slots=True)
class Layers:
    """What was read: later layers win. `problems` do not stop the reading."""

    always: list[Branch] = field(default_factory=list)
    architectures: dict[str, list[Branch]] = field(default_factory=dict)
    profiles: dict[str, list[Branch]] = field(default_factory=dict)
    default_profile: Leaf | None = None
    files: list[Path] = field(default_factory=list)
    problems: list[Problem] = field(default_factory=list)


def collect(path: Path) -> Layers:
    """Read the definition at `path` and all that it includes; raises Stop when that fails."""
    layers = Layers()
    _read_into(layers, path.absolute(), (), set(), None)
    return layers


def no_such_profile(place: Place, key: str, name: str, known: list[str]) -> Problem:
    """Return the problem of a profile that does not exist, with those that do."""
    near = nearest(name, known)
    there = f"profiles are: {', '.join(sorted(known))}" if known else "it defines none"
    hint = f"did you mean '{near}'?" if near else None
    return Problem.at(place, key, f"there is no profile '{name}'; {there}", hint)


def _read_into(
    layers: Layers, path: Path, chain: tuple[Path, ...], seen: set[Path], named_by: Problem | None
) -> None:
    real = Path(os.path.realpath(path))
    if real in (Path(os.path.realpath(p)) for p in chain):
        _stop_at_cycle((*chain, path), named_by)
    if real in seen:
        return
    if len(chain) >= MAX_INCLUDES and named_by is not None:
        what = f"includes go more than {MAX_INCLUDES} files deep"
        raise Stop(Problem(named_by.file, named_by.line, "include", what))
    root = read(path, named_by=named_by)
    seen.add(real)
    for entry in _includes(root.items.pop("include", None), layers):
        _include(layers, entry, (*chain, path), seen)
    layers.files.append(path)
    _split_profiles(root, layers, path)
    _split_architectures(root, layers, path)
    layers.always.append(_grounded(root, path, layers))


def _stop_at_cycle(chain: tuple[Path, ...], named_by: Problem | None) -> None:
    first = next(
        i for i, p in enumerate(chain) if os.path.realpath(p) == os.path.realpath(chain[-1])
    )
    shown = " -> ".join(shown_path(p) for p in chain[first:])
    line = named_by.line if named_by else None
    raise Stop(Problem(chain[-2], line, "include", f"goes in a circle: {shown}"))


def _includes(node: Node | None, layers: Layers) -> list[Leaf]:
    if node is None:
        return []
    if not isinstance(node, Row):
        what = "must be a list of files"
        layers.problems.append(Problem.at(node.place, "include", what))
        return []
    entries = []
    for item in node.items:
        value = item.value if isinstance(item, Leaf) else None
        if isinstance(item, Leaf) and isinstance(value, str) and value and value.isprintable():
            entries.append(item)
        else:
            layers.problems.append(Problem.at(item.place, "include", "must be file names"))
    return entries


def _include(layers: Layers, entry: Leaf, chain: tuple[Path, ...], seen: set[Path]) -> None:
    value = str(entry.value)
    named_by = Problem.at(entry.place, "include", value)
    if not value.startswith(PREFIX):
        _read_into(layers, _absolute(chain[-1].parent, value), chain, seen, named_by)
        return
    name = value.removeprefix(PREFIX)
    top = _shipped(entry, "include")
    if name.endswith(".toml"):
        _read_into(layers, top.parent / name, chain, seen, named_by)
        return
    # `tegu:server` is that definition with the profile already in it: its other profiles end here,
    # so that the including definition's own profiles are not mixed up with them.
    inner = Layers()
    _read_into(inner, top, chain, set(), named_by)
    if name not in inner.profiles:
        known = [PREFIX + profile for profile in inner.profiles]
        raise Stop(no_such_profile(entry.place, "include", value, known))
    layers.always += inner.always + inner.profiles[name]
    for architecture, branches in inner.architectures.items():
        layers.architectures.setdefault(architecture, []).extend(branches)
    layers.files += [f for f in inner.files if f not in layers.files]
    layers.problems += inner.problems


def _shipped(node: Leaf, key: str) -> Path:
    try:
        return shipped_definition()
    except DefinitionError as e:
        raise Stop(Problem.at(node.place, key, f"{node.value}: {e.message}", e.hint)) from e


def _split_profiles(root: Branch, layers: Layers, path: Path) -> None:
    node = root.items.pop("profile", None)
    if node is None:
        return
    if isinstance(node, Leaf):
        node = Branch(node.place, {"default": node})
    if not isinstance(node, Branch):
        layers.problems.append(Problem.at(node.place, "profile", "must be a table of profiles"))
        return
    for name, item in node.items.items():
        key = f"profile.{name}"
        if isinstance(item, Branch) and name != "default":
            part = _part(item, path, key, layers)
            layers.profiles.setdefault(name, []).append(part)
        elif name == "default" and isinstance(item, Leaf) and isinstance(item.value, str):
            layers.default_profile = item
        elif name == "default":
            what = "is the name of the profile to select, so no profile can be called 'default'"
            layers.problems.append(Problem.at(item.place, key, what))
        else:
            what = "must be a table: the options of this profile"
            layers.problems.append(Problem.at(item.place, key, what))


def _split_architectures(root: Branch, layers: Layers, path: Path) -> None:
    node = root.items.pop("architecture", None)
    if node is None:
        return
    if not isinstance(node, Branch):
        what = "must be a table of options by architecture"
        hint = "the architecture of the system is system.architecture"
        layers.problems.append(Problem.at(node.place, "architecture", what, hint))
        return
    for name, item in node.items.items():
        key = f"architecture.{name}"
        if name not in ARCHITECTURES:
            near = nearest(name, ARCHITECTURES)
            meant = f"did you mean '{near}'?" if near else None
            what = f"is not an architecture; they are {', '.join(ARCHITECTURES)}"
            layers.problems.append(Problem.at(item.place, key, what, meant))
        elif not isinstance(item, Branch):
            wrong = "must be a table: the options for this architecture"
            layers.problems.append(Problem.at(item.place, key, wrong))
        else:
            system = item.items.get("system")
            if isinstance(system, Branch) and "architecture" in system.items:
                place = system.items["architecture"].place
                what = "an architecture's own options can not choose the architecture"
                layers.problems.append(Problem.at(place, f"{key}.system.architecture", what))
            part = _part(item, path, key, layers)
            layers.architectures.setdefault(name, []).append(part)


def _part(part: Branch, path: Path, key: str, layers: Layers) -> Branch:
    """Return the options of a profile or an architecture; some keys have no place there."""
    for name in _NOT_IN_PARTS:
        item = part.items.pop(name, None)
        if item is not None:
            what = f"'{name}' can not stand inside [{key}]"
            layers.problems.append(Problem.at(item.place, f"{key}.{name}", what))
    return _grounded(part, path, layers)


def _grounded(root: Branch, path: Path, layers: Layers) -> Branch:
    """Make the paths in `root` absolute, and sysctl names written as dotted keys whole."""
    for location in path_locations():
        _ground(root, location, path.parent)
    sysctl = root.items.get("sysctl")
    if isinstance(sysctl, Branch):
        flat: dict[str, Node] = {}
        _flatten(sysctl, "", flat, layers)
        root.items["sysctl"] = Branch(sysctl.place, flat)
    return root


def _ground(node: Node, location: tuple[str, ...], directory: Path) -> None:
    if not location:
        if isinstance(node, Leaf) and isinstance(node.value, str):
            node.value = _grounded_path(node, directory)
    elif location[0] == "*" and isinstance(node, Row):
        for item in node.items:
            _ground(item, location[1:], directory)
    elif isinstance(node, Branch) and location[0] in node.items:
        _ground(node.items[location[0]], location[1:], directory)


def _grounded_path(node: Leaf, directory: Path) -> str:
    value = str(node.value)
    if value in ("", "-*"):
        return value
    sign = "-" if value.startswith("-") else ""
    value = value.removeprefix("-")
    if value.startswith(PREFIX):
        _shipped(node, "")
        return sign + str(_absolute(shipped_directory(), value.removeprefix(PREFIX)))
    return sign + str(_absolute(directory, value))


def _absolute(directory: Path, value: str) -> Path:
    # `..` after a symbolic link is not what it looks like, so the file system is asked; other
    # paths stay as they were written.
    path = directory / value
    return Path(os.path.realpath(path)) if ".." in path.parts and "\0" not in value else path


def _flatten(node: Branch, prefix: str, flat: dict[str, Node], layers: Layers) -> None:
    for key, item in node.items.items():
        name = f"{prefix}.{key}" if prefix else key
        if isinstance(item, Branch):
            _flatten(item, name, flat, layers)
        elif name in flat:
            place = flat[name].place
            what = f"is there twice; first at {shown_path(place.file)}:{place.line}"
            layers.problems.append(Problem.at(item.place, f"sysctl.{name}", what))
        else:
            flat[name] = item
