"""`{{ name }}` in a plan: a value that is known when it is run."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from typing import Final

from tegu.errors import UsageError

__all__ = ["fill", "names"]

# Two braces, so that a shell's ${name} and awk's {print} stay what they are.
_PLACE: Final = re.compile(r"\{\{ *([a-z][a-z0-9_]*) *\}\}")


def names(text: str) -> set[str]:
    """Return the names of the variables that `text` asks for."""
    return set(_PLACE.findall(text))


def fill(
    text: str, variables: Mapping[str, str], quote: Callable[[str], str] = lambda value: value
) -> str:
    """Return `text` with every `{{ name }}` replaced by its value, passed through `quote`.

    UsageError for a name without a value.
    """

    def value(match: re.Match[str]) -> str:
        name = match[1]
        if name not in variables:
            raise UsageError(f"the plan needs a value for {name!r}", hint=f"--var {name}=VALUE")
        return quote(variables[name])

    return _PLACE.sub(value, text)
