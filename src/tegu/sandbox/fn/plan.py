"""From what a user says to what is deployed: decorators, options, defaults."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from tegu.errors import UsageError
from tegu.sandbox.fn.discover import functions_of
from tegu.sandbox.fn.spec import FunctionSpec
from tegu.sandbox.spec import parse_size

__all__ = ["plan"]

_SIZES = ("memory", "disk", "max_event", "max_result")


def plan(
    source: Path,
    name: str | None,
    handler: str | None,
    command: Sequence[str],
    options: Mapping[str, Any],
) -> list[FunctionSpec]:
    """Return what to deploy of `source`; `options` (fields of FunctionSpec, None is unsaid) win
    over those of decorators. Raises UsageError."""
    if not source.exists():
        raise UsageError(f"{source}: there is no such file or directory")
    said = {key: value for key, value in options.items() if value is not None}
    if said.get("runtime", "python") != "python":
        return [_spec({**said, "command": tuple(command)}, name or _plain(source.stem))]
    if command:
        raise UsageError("a command belongs to --runtime exec or java")
    if handler is not None:
        function = handler.rpartition(":")[2].lower().strip("_")
        return [_spec({**said, "handler": handler}, name or function)]
    if not source.is_file():
        raise UsageError(
            f"{source}: which function in it?", hint="name one: --handler MODULE:FUNCTION"
        )
    found = functions_of(source)
    if name is not None:
        if len(found) > 1:
            raise UsageError(f"{source}: --name {name}, but {len(found)} functions are marked")
        said["name"] = name
    return [
        _spec({**one.options, **said, "handler": f"{source.stem}:{one.attribute}"}, one.attribute)
        for one in found
    ]


def _plain(text: str) -> str:
    return "".join(c if c.isalnum() else "-" for c in text.lower()).strip("-")


def _spec(values: dict[str, Any], name: str) -> FunctionSpec:
    data = {"name": name.lower().strip("_"), **values}
    for key in _SIZES:
        if data.get(key) is not None:
            data[key] = parse_size(data[key], key)
    return FunctionSpec.from_json(data)
