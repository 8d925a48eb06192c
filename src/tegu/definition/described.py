"""What the models say about themselves: the text of each table and of each of its options."""

from __future__ import annotations

import ast
import inspect
from collections.abc import Mapping
from functools import cache

from tegu.definition import models

__all__ = ["option_texts", "table_text"]


@cache
def _texts() -> Mapping[str, Mapping[str, str]]:
    """Read the string after each field. pydantic could too, but at every start of the program."""
    found: dict[str, dict[str, str]] = {}
    for node in ast.parse(inspect.getsource(models)).body:
        if not isinstance(node, ast.ClassDef):
            continue
        texts = found.setdefault(node.name, {})
        for field, after in zip(node.body, node.body[1:], strict=False):
            if (
                isinstance(field, ast.AnnAssign)
                and isinstance(field.target, ast.Name)
                and isinstance(after, ast.Expr)
                and isinstance(after.value, ast.Constant)
                and isinstance(after.value.value, str)
            ):
                texts[field.target.id] = " ".join(after.value.value.split())
    return found


def option_texts(model: type[models.Table]) -> Mapping[str, str]:
    """Return the documentation of each option of `model`; tables among them are not in it."""
    return _texts()[model.__name__]


def table_text(model: type[models.Table]) -> str:
    """Return the documentation of `model` itself, paragraphs kept apart."""
    paragraphs = inspect.cleandoc(model.__doc__ or "").split("\n\n")
    return "\n\n".join(" ".join(paragraph.split()) for paragraph in paragraphs)
