"""Plans as files: TOML read strictly, with errors that say which line."""

from __future__ import annotations

import re
import tomllib
from collections.abc import Iterable, Iterator, Sequence
from collections.abc import Set as AbstractSet
from pathlib import Path

from pydantic import ValidationError

from tegu.definition.locate import Location, locate
from tegu.errors import DefinitionError
from tegu.lab.plan import BUILT_IN, Plan, Step, texts
from tegu.lab.template import names

__all__ = ["load_plan"]


def load_plan(path: Path) -> Plan:
    """Read the plan at `path`; DefinitionError starts with `file:line: key`."""
    try:
        text = path.read_text(encoding="utf-8")
    except OSError as e:
        raise DefinitionError(f"cannot read the plan {path}: {e.strerror}") from e
    except UnicodeDecodeError as e:
        raise DefinitionError(f"{path}: byte {e.start} is not UTF-8") from e
    try:
        body = tomllib.loads(text)
    except tomllib.TOMLDecodeError as e:
        where = re.search(r"\(at line (\d+), column \d+\)", str(e))
        line = f":{where[1]}" if where else ""
        raise DefinitionError(f"{path}{line}: {re.sub(r' *[(]at .*', '', str(e))}") from e
    lines = locate(text)
    # A machine has what [boot] says, unless it says otherwise.
    defaults = body.get("boot", {})
    machines = body.get("machine", [])
    if isinstance(defaults, dict) and isinstance(machines, list):
        body["machine"] = [{**defaults, **m} if isinstance(m, dict) else m for m in machines]
    try:
        plan = Plan.model_validate(body)
    except ValidationError as e:
        raise _as_error(path, lines, e) from e
    for location, what in _inconsistencies(plan):
        raise DefinitionError(f"{path}:{_line(lines, location)}: {_key(location)}: {what}")
    return plan


def _inconsistencies(plan: Plan) -> Iterator[tuple[Location, str]]:
    """Yield what no single table can see."""
    machines = [m.name for m in plan.machines()]
    for index, name in enumerate(machines):
        if name in machines[:index]:
            yield ("machine", index, "name"), f"there is another machine {name!r}"
    for name in plan.variable:
        if name in BUILT_IN or not re.fullmatch(r"[a-z][a-z0-9_]*", name):
            yield ("variable", name), "is a built-in variable, or not a name like 'word_word'"
    known = {*plan.variable, *BUILT_IN}
    for index, step in enumerate(plan.step):
        for key, what in _of_step(step, plan.step[:index], machines, known):
            yield ("step", index, key) if key else ("step", index), what


def _of_step(
    step: Step, before: Sequence[Step], machines: Sequence[str], known: AbstractSet[str]
) -> Iterator[tuple[str, str]]:
    """Yield (key, what is wrong) of one step, seen with those before it."""
    ids = {s.id for s in before}
    for need in step.needs:
        if need not in ids:
            yield "needs", f"no step before this one has the id {need!r}"
    for name in step.only:
        if name not in machines:
            yield "only", f"there is no machine {name!r}"
    if step.id is not None and step.id in ids:
        yield "id", f"another step has the id {step.id!r}"
    off = [s for s in before if s.action == "power_off" and not s.only]
    if off and step.on == "machine" and step.action != "wait_console":
        yield "", f"the machine is off after the step {off[0].name!r}"
    for name in sorted({n for text in texts(step) for n in names(text)} - known):
        yield "", f"the variable {name!r} is not declared (known: {', '.join(sorted(known))})"


def _as_error(path: Path, lines: dict[Location, int], error: ValidationError) -> DefinitionError:
    found = []
    for item in error.errors():
        location = tuple(item["loc"])
        what = {
            "extra_forbidden": "unknown key",
            "missing": "is missing",
        }.get(item["type"], item["msg"].removeprefix("Value error, "))
        found.append(f"{path}:{_line(lines, location)}: {_key(location)}: {what}")
    hint = "\n      ".join(found[1:8]) or None
    return DefinitionError(found[0], hint=hint)


def _line(lines: dict[Location, int], location: Location) -> int:
    """Return the line of the nearest thing that stands in the file."""
    for end in range(len(location), 0, -1):
        if location[:end] in lines:
            return lines[location[:end]]
    return 1


def _key(location: Iterable[str | int]) -> str:
    out = ""
    for part in location:
        out += f"[{part}]" if isinstance(part, int) else f".{part}" if out else part
    return out or "plan"
