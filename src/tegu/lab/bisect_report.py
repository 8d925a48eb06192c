"""A search for the first bad candidate as one HTML page: the answer, then every step."""

from __future__ import annotations

from collections.abc import Mapping
from importlib import resources
from typing import Any

from jinja2 import Environment, StrictUndefined

from tegu import __version__
from tegu.lab.bisect import Found

__all__ = ["bisect_page"]


def bisect_page(
    found: Found, question: Mapping[str, Any], titles: Mapping[str, str] | None = None
) -> str:
    """Return the outcome as an HTML page; `titles` says more about candidates, where there is more.

    `question` has what was asked: the ends, the test, how often it was run.
    """
    environment = Environment(
        autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    source = resources.files("tegu.lab").joinpath("bisect.html.j2").read_text(encoding="utf-8")
    shown = {k: v for k, v in question.items() if not isinstance(v, (list, dict)) and v is not None}
    return environment.from_string(source).render(
        found=found, question=shown, titles=dict(titles or {}), version=__version__
    )
