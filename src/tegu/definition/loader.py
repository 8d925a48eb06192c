"""From a `tegu.toml` to a checked `Definition`, or to every problem that it has."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from pydantic import ValidationError

from tegu.definition.architecture import ARCHITECTURES, Architecture
from tegu.definition.checks import flaws
from tegu.definition.explain import explain, problem_at
from tegu.definition.layers import Layers, collect, no_such_profile
from tegu.definition.merge import merge
from tegu.definition.models import Definition
from tegu.definition.nodes import Branch, Leaf, Place, find, plain
from tegu.definition.problems import Problem, Stop, as_error

__all__ = ["Examined", "examine", "examine_all", "load"]


@dataclass(frozen=True, slots=True)
class Examined:
    """A definition with all that was learnt by reading it; `definition` is None if it is wrong.

    `files` are those read, in order of merging; `root` is what they say, with the origins.
    """

    path: Path
    definition: Definition | None
    problems: tuple[Problem, ...] = ()
    files: tuple[Path, ...] = ()
    root: Branch | None = None


def load(
    path: Path, *, profile: str | None = None, architecture: Architecture | None = None
) -> Definition:
    """Read the definition at `path`, with what it includes, and check it.

    `profile` and `architecture` take the place of the definition's own choice. Raises
    DefinitionError: its message is the first problem as `file:line: key: what`, its hint all of
    them, one per line.
    """
    examined = examine(path, profile=profile, architecture=architecture)
    if examined.definition is None:
        raise as_error(examined.problems)
    return examined.definition


def examine(
    path: Path, *, profile: str | None = None, architecture: Architecture | None = None
) -> Examined:
    """Like `load`, but return the problems instead of raising them."""
    try:
        layers = collect(path)
        return _resolve(path, layers, profile, architecture)
    except Stop as stop:
        return Examined(path, None, (stop.problem,))


def examine_all(path: Path) -> list[Examined]:
    """Examine the definition as it is, then with each profile and architecture that it names.

    So what is wrong in a profile that nobody selects today is found as well.
    """
    plain_one = examine(path)
    try:
        layers = collect(path)
    except Stop:
        return [plain_one]
    found = [plain_one]
    selected = layers.default_profile.value if layers.default_profile else None
    found += [examine(path, profile=name) for name in layers.profiles if name != selected]
    named = [name for name in ARCHITECTURES if name in layers.architectures]
    found += [examine(path, architecture=name) for name in named]
    return found


def _resolve(
    path: Path, layers: Layers, profile: str | None, architecture: Architecture | None
) -> Examined:
    problems = list(layers.problems)
    start = Place(path.absolute(), 1)
    selected = _selected(layers, profile, Place(start.file, 0))
    parts = layers.profiles[selected] if selected is not None else []
    arch = architecture or _architecture([*layers.always, *parts], start)
    root = Branch(start)
    for layer in [*layers.always, *layers.architectures.get(arch, []), *parts]:
        root = merge(root, layer, problems.append)
    if selected is not None:
        root.items["profile"] = Leaf(start, selected)
    if architecture is not None:
        system = root.items.setdefault("system", Branch(start))
        if isinstance(system, Branch):
            system.items["architecture"] = Leaf(start, architecture)
    files = tuple(layers.files)
    _fill_snapshot(root)
    try:
        definition = Definition.model_validate(plain(root))
    except ValidationError as e:
        problems += explain(e.errors(include_url=False), root)
        return Examined(path, None, _in_order(problems, files), files, root)
    problems += [problem_at(root, *flaw) for flaw in flaws(definition)]
    found = definition if not problems else None
    return Examined(path, found, _in_order(problems, files), files, root)


def _selected(layers: Layers, asked: str | None, start: Place) -> str | None:
    known = list(layers.profiles)
    if asked is not None:
        if asked not in known:
            raise Stop(no_such_profile(start, "profile", asked, known))
        return asked
    default = layers.default_profile
    if default is None:
        return None
    name = str(default.value)
    if name not in known:
        raise Stop(no_such_profile(default.place, "profile", name, known))
    return name


def _architecture(layers: list[Branch], start: Place) -> str:
    """Return the architecture that `layers` choose, before the options for it are known."""
    chosen = "x86-64"
    for layer in layers:
        node, reached = find(layer, ("system", "architecture"))
        if len(reached) == 2 and isinstance(node, Leaf) and node.value in ARCHITECTURES:
            chosen = str(node.value)
    return chosen


def _fill_snapshot(root: Branch) -> None:
    """Replace `{snapshot}` in the base's mirrors, once all layers have had their say."""
    snapshot, reached = find(root, ("base", "snapshot"))
    if len(reached) != 2 or not isinstance(snapshot, Leaf):
        return
    for key in ("mirror", "security_mirror"):
        node, there = find(root, ("base", key))
        if len(there) == 2 and isinstance(node, Leaf) and isinstance(node.value, str):
            filled = node.value.replace("{snapshot}", str(snapshot.value))
            branch = root.items["base"]
            if isinstance(branch, Branch):
                branch.items[key] = Leaf(node.place, filled)


def _in_order(problems: list[Problem], files: tuple[Path, ...]) -> tuple[Problem, ...]:
    order = {file: index for index, file in enumerate(files)}
    return tuple(sorted(problems, key=lambda p: (order.get(p.file, len(files)), p.line or 0)))
