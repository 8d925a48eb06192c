"""The published description of our own API, made from what routes and checks it (OpenAPI 3.1)."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

from tegu.sandbox.web.fields import Field
from tegu.sandbox.web.operation import Answer, Operation
from tegu.sandbox.web.schemas import ANSWERS

__all__ = ["describe", "main"]

_METHODS = ("GET", "HEAD", "POST", "PUT", "PATCH", "DELETE")


def describe(operations: Sequence[Operation], version: str) -> dict[str, Any]:
    """Return the description as plain data."""
    paths: dict[str, dict[str, Any]] = {}
    for operation in operations:
        path = re.sub(r"\{(\w+):[^}]*\}", r"{\1}", f"/v1{operation.path}")
        for method in _METHODS if operation.method == "*" else (operation.method,):
            found = _one(operation)
            if operation.method == "*":
                found["operationId"] += method.capitalize()
            paths.setdefault(path, {})[method.lower()] = found
    return {
        "openapi": "3.1.0",
        "info": {
            "title": "Tegu sandboxes",
            "version": version,
            "description": "Sandboxes for programs: see docs/sandbox-api.md.",
            "license": {"name": "Apache-2.0", "identifier": "Apache-2.0"},
        },
        "servers": [{"url": "/"}],
        "security": [{"bearer": []}, {"key": []}],
        "paths": paths,
        "components": {
            "schemas": ANSWERS,
            "securitySchemes": {
                "bearer": {"type": "http", "scheme": "bearer"},
                "key": {"type": "apiKey", "in": "header", "name": "X-API-Key"},
            },
            "responses": {
                "Error": {
                    "description": "It failed: why, and what to do.",
                    "content": _json({"$ref": "#/components/schemas/Error"}),
                }
            },
        },
    }


def _json(schema: dict[str, Any]) -> dict[str, Any]:
    return {"application/json": {"schema": schema}}


def _one(operation: Operation) -> dict[str, Any]:
    about = operation.about
    if operation.websocket is not None:
        about = f"{about}\n\nA WebSocket. {operation.websocket}"
    body: dict[str, Any] = {
        "operationId": operation.name,
        "summary": operation.about,
        "description": about,
        "parameters": [
            *(
                {"name": n, "in": "path", "required": True, "schema": {"type": "string"}}
                for n in re.findall(r"\{(\w+)[:}]", operation.path)
            ),
            *(_parameter(f) for f in operation.query),
        ],
        "responses": {
            str(operation.answer.status): _response(operation.answer),
            "default": {"$ref": "#/components/responses/Error"},
        },
    }
    if operation.raw:
        body["requestBody"] = {"content": {"application/octet-stream": {}}}
    elif operation.body is not None:
        body["requestBody"] = {
            "required": any(f.required for f in operation.body),
            "content": _json(_object(operation.body)),
        }
    return body


def _parameter(field: Field) -> dict[str, Any]:
    schema = field.schema()
    about = schema.pop("description")
    return {
        "name": field.name,
        "in": "query",
        "required": field.required,
        "description": about,
        "schema": schema,
    }


def _object(fields: Sequence[Field]) -> dict[str, Any]:
    found: dict[str, Any] = {
        "type": "object",
        "properties": {f.name: f.schema() for f in fields},
        "additionalProperties": False,
    }
    required = [f.name for f in fields if f.required]
    return {**found, "required": required} if required else found


def _response(answer: Answer) -> dict[str, Any]:
    found: dict[str, Any] = {"description": answer.about}
    if answer.media is not None:
        found["content"] = {answer.media: {}}
    if answer.schema is not None:
        schema: dict[str, Any] = {"$ref": f"#/components/schemas/{answer.schema}"}
        if answer.many:
            schema = {"type": "array", "items": schema}
        found["content"] = _json(schema)
    return found


def main() -> None:
    """Print the description, as docs/sandbox-openapi.json has it."""
    import json

    from tegu import __version__
    from tegu.sandbox.web.api import Api
    from tegu.sandbox.web.hub import Hub, Rules
    from tegu.sandbox.web.ports import Ports
    from tegu.sandbox.web.table import operations

    print(json.dumps(describe(operations(Api(Hub(Rules(), None), Ports())), __version__), indent=1))


if __name__ == "__main__":
    main()
