"""The keys of a policy as the schema of a custom resource (OpenAPI 3.0, "structural").

kubernetes.io/docs/tasks/extend-kubernetes/custom-resources/custom-resource-definitions: each level
has one type, and what is not named is dropped by the API server. What two keys may not be together
is for the reader of the policy.
"""

from __future__ import annotations

from typing import Any

from tegu.qos.keys import POLICY, SIZE, TIME, Key, Table

__all__ = ["policy_schema"]


def policy_schema() -> dict[str, Any]:
    """Return the schema of a policy: the `spec` of a QosPolicy."""
    return _table(POLICY)


def _table(table: Table) -> dict[str, Any]:
    found: dict[str, Any] = {"type": "object", "description": table.about}
    if table.named:
        (value,) = table.keys.values()
        found["additionalProperties"] = _schema(value)
        return found
    found["properties"] = {name: _schema(value) for name, value in table.keys.items()}
    if table.required:
        found["required"] = list(table.required)
    return found


def _schema(value: Key | Table) -> dict[str, Any]:
    if isinstance(value, Table):
        return _table(value)
    found = _of_kind(value)
    found["description"] = value.about
    return found


def _of_kind(key: Key) -> dict[str, Any]:
    if key.kind in ("whole", "number"):
        number = "integer" if key.kind == "whole" else "number"
        return {"type": number, "minimum": _plain(key.low), "maximum": _plain(key.high)}
    if key.kind == "flag":
        return {"type": "boolean"}
    if key.kind == "time":
        return {"type": "string", "pattern": f"^{TIME}$"}
    if key.kind == "size":
        # A number or a text: the one form in which two types are allowed.
        return {
            "x-kubernetes-int-or-string": True,
            "anyOf": [{"type": "integer"}, {"type": "string"}],
            "pattern": f"^{SIZE}$",
            "minimum": 0,
        }
    if key.kind in ("text", "texts"):
        text: dict[str, Any] = {"type": "string"}
        if key.pattern:
            text["pattern"] = f"^{key.pattern}$"
        return {"type": "array", "items": text} if key.kind == "texts" else text
    choice = {"type": "string", "enum": list(key.choices)}
    return {"type": "array", "items": choice} if key.kind == "choices" else choice


def _plain(number: float) -> float:
    return int(number) if number == int(number) else number
