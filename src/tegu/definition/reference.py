"""The reference part of `docs/definition.md`, made of the models, so that it can not go stale.

`python -m tegu.definition.reference` writes it and `docs/tegu.schema.json` anew.
"""

from __future__ import annotations

import re
import sys
import types
import typing
from collections.abc import Iterator
from pathlib import Path

from pydantic.fields import FieldInfo

from tegu.definition.described import option_texts, table_text
from tegu.definition.models import Definition, Table
from tegu.definition.schema import schema_text
from tegu.definition.shape import KEYED, type_at
from tegu.definition.types import WORDS
from tegu.files import write_atomic

__all__ = ["reference", "render"]

_BEGIN, _END = "<!-- reference: made of the models -->", "<!-- end of the reference -->"
# Defaults that are made when the definition is.
_DEFAULTS = {
    ("kernel", "package"): "by architecture",
    ("image", "firmware"): "by architecture",
    ("image", "grow"): "`true`, with erofs `false`",
}


def render(text: str) -> str:
    """Return `text` (of docs/definition.md) with the reference in it replaced by a fresh one."""
    before, _, rest = text.partition(_BEGIN)
    _, _, after = rest.partition(_END)
    return f"{before}{_BEGIN}\n\n{reference()}\n{_END}{after}"


def reference() -> str:
    """Return one Markdown section per table of a definition, every option in it."""
    parts = list(_section("", Definition, "At the top of the file, before any table."))
    for name in Definition.model_fields:
        model = _model(name)
        if model is not None:
            parts += _section(name, model, table_text(model))
        elif type_at((name,)) is not None and typing.get_origin(type_at((name,))) is dict:
            parts += [f"### `[{name}]`", "", option_texts(Definition)[name], ""]
    return "\n".join(parts)


def _model(name: str) -> type[Table] | None:
    here = type_at((name, 0)) if (name,) in KEYED else type_at((name,))
    return here if isinstance(here, type) and issubclass(here, Table) else None


def _section(name: str, model: type[Table], text: str) -> Iterator[str]:
    brackets = f"`[[{name}]]`" if (name,) in KEYED else f"`[{name}]`"
    yield from (f"### {brackets if name else 'Top level'}", "", text, "")
    yield from ("| Option | Value | Default | Meaning |", "|---|---|---|---|")
    for key, option in model.model_fields.items():
        if model is Definition and (_model(key) is not None or key == "sysctl"):
            continue
        cells = (
            f"`{key}`",
            _type(option.annotation, option),
            _default(name, key, option),
            option_texts(model)[key],
        )
        yield "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |"
    yield ""


def _type(annotation: object, option: FieldInfo | None = None) -> str:
    metadata = list(option.metadata) if option is not None else []
    while typing.get_origin(annotation) is typing.Annotated:
        annotation, *more = typing.get_args(annotation)
        metadata = [*more, *metadata]
    origin = typing.get_origin(annotation)
    if isinstance(annotation, types.UnionType) or origin is typing.Union:
        members = [a for a in typing.get_args(annotation) if a is not type(None)]
        return " or ".join(_with(member, metadata) for member in members)
    return _with(annotation, metadata)


def _with(annotation: object, metadata: list[typing.Any]) -> str:
    origin = typing.get_origin(annotation)
    if origin is typing.Annotated:
        return _type(annotation)
    if origin is typing.Literal:
        return ", ".join(f"`{word}`" for word in typing.get_args(annotation))
    if origin is list:
        inner = _type(typing.get_args(annotation)[0])
        return "list of strings" if inner == "string" else f"list: {inner}"
    if origin is dict:
        return "table of names and versions"
    words = _pattern_words(metadata)
    if words:
        return words
    names = {str: "string", int: "integer", bool: "`true` or `false`", Path: "path"}
    bounds = [getattr(m, side) for side in ("ge", "le") for m in metadata if hasattr(m, side)]
    name = names[typing.cast(type, annotation)]
    return f"{name}, {bounds[0]} to {bounds[1]}" if len(bounds) == 2 else name


def _pattern_words(metadata: list[typing.Any]) -> str | None:
    for item in metadata:
        inner = item.metadata if isinstance(item, FieldInfo) else [item]
        for rule in inner:
            words = WORDS.get(str(getattr(rule, "pattern", "")))
            if words:
                return re.sub(r"'([^']+)'", r"`\1`", words.partition(": ")[0])
    return None


def _default(table: str, key: str, option: FieldInfo) -> str:
    if (table, key) in _DEFAULTS:
        return _DEFAULTS[(table, key)]
    if option.is_required():
        return "required"
    value = option.default
    if value is None or value in ("", [], {}):
        return ""
    if isinstance(value, bool):
        return f"`{str(value).lower()}`"
    if isinstance(value, list):
        return ", ".join(f'`"{item}"`' for item in value)
    return f"`{value}`" if isinstance(value, int) else f'`"{value}"`'


def main(docs: Path) -> None:
    """Write the reference in `docs`/definition.md and `docs`/tegu.schema.json anew."""
    page = docs / "definition.md"
    write_atomic(page, render(page.read_text()))
    write_atomic(docs / "tegu.schema.json", schema_text())


if __name__ == "__main__":
    main(Path(sys.argv[1] if len(sys.argv) > 1 else "docs"))
