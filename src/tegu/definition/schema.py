"""The JSON Schema of a `tegu.toml`, for editors.

It describes one file rather than a whole definition: a file may leave out what an included one
says, its lists may take inherited elements out, and it has profiles. `tegu definition check` judges
the whole. Draft 7, which is what editors' TOML plug-ins know.
"""

from __future__ import annotations

import json
from typing import Any

from tegu.definition import models
from tegu.definition.architecture import ARCHITECTURES
from tegu.definition.described import option_texts, table_text
from tegu.definition.models import Definition, Table
from tegu.definition.shape import KEYED, MAPS, type_at

__all__ = ["json_schema", "schema_text"]

_REF = "#/definitions/{model}"
_TAKE_OUT = {"type": "string", "pattern": "^-.", "description": "Take an inherited one out."}
# Their defaults depend on the architecture or on another option; the text says how.
_DEPENDENT = {("Kernel", "package"), ("Image", "firmware"), ("Image", "grow")}


def schema_text() -> str:
    """Return the schema as the text of `docs/tegu.schema.json`."""
    return json.dumps(json_schema(), indent=2) + "\n"


def json_schema() -> dict[str, Any]:
    """Return the schema as data."""
    raw = Definition.model_json_schema(ref_template=_REF, mode="validation")
    definitions: dict[str, Any] = raw.pop("$defs")
    definitions["Part"] = raw
    for name, schema in definitions.items():
        _finish(Definition if name == "Part" else getattr(models, name), name, schema)
    part = definitions["Part"]
    for key in ("include", "profile"):
        part["properties"].pop(key)
    part["title"] = "Part of a definition"
    whole = dict(part["properties"])
    part["description"] = "Options that a profile or an architecture lays over the rest."
    return {
        "$schema": "http://json-schema.org/draft-07/schema#",
        "title": "tegu.toml",
        "description": table_text(Definition),
        "type": "object",
        "additionalProperties": False,
        "properties": _file_keys() | whole,
        "definitions": definitions,
    }


def _file_keys() -> dict[str, Any]:
    part = {"$ref": _REF.format(model="Part")}
    texts = option_texts(Definition)
    by_name = {
        "type": "object",
        "properties": {"default": {"type": "string", "description": texts["profile"]}},
        "additionalProperties": part,
    }
    return {
        "include": {
            "type": "array",
            "items": {"type": "string", "minLength": 1},
            "description": texts["include"],
        },
        "profile": {
            "anyOf": [{"type": "string"}, by_name],
            "description": "Profiles by name, and the `default` one; or just a default's name.",
        },
        "architecture": {
            "type": "object",
            "properties": dict.fromkeys(ARCHITECTURES, part),
            "additionalProperties": False,
            "description": "Options for one architecture only.",
        },
    }


def _finish(model: type[Table], name: str, schema: dict[str, Any]) -> None:
    texts = option_texts(model)
    location = next((k for k in KEYED if type_at((*k, 0)) is model), None)
    keys = KEYED[location] if location else ()
    schema["description"] = table_text(model)
    schema.pop("required", None)
    if keys:
        schema["required"] = list(keys)
    for key, option in schema["properties"].items():
        _without_null(option)
        option.pop("title", None)
        if key in texts:
            option["description"] = texts[key]
        if (name, key) in _DEPENDENT or "$ref" in option:
            option.pop("default", None)
        if option.get("type") == "array" and "$ref" not in option["items"]:
            option.pop("minItems", None)  # counted after merging
            option["items"] = {"anyOf": [option["items"], _TAKE_OUT]}
        if key in keys[:1]:
            _let_take_out(option)
        if (key,) in MAPS or (name.lower(), key) in MAPS:
            _finish_map(option, dotted=(key,) in MAPS)


def _without_null(option: dict[str, Any]) -> None:
    if option.get("default", 0) is None:
        del option["default"]
    for key in ("anyOf", "allOf"):  # pydantic before 2.9 wraps a lone reference in allOf
        choices = [c for c in option.get(key, []) if c != {"type": "null"}]
        if len(choices) == 1:
            del option[key]
            option.update(choices[0])


def _let_take_out(option: dict[str, Any]) -> None:
    rules = {k: option.pop(k) for k in ("type", "pattern", "maxLength") if k in option}
    option["anyOf"] = [rules, _TAKE_OUT]


def _finish_map(option: dict[str, Any], *, dotted: bool) -> None:
    option.setdefault("patternProperties", {})["^-."] = {"const": True}
    # `net.core.somaxconn = 1` without quotes is tables within tables to TOML.
    option["additionalProperties"] = {"type": "object"} if dotted else False
    option.pop("propertyNames", None)
