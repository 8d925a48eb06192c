"""`@function`: marks a Python function that can be deployed, and calls it where it is.

    from tegu.sandbox.fn import function

    @function(timeout=5, memory="128M")
    def greet(event):
        return {"hello": event["name"]}

    greet({"name": "world"})          # here, as any function
    greet.invoke({"name": "world"})   # in a sandbox, once `tegu fn deploy app.py` was done

It is imported inside of functions as well, so it imports nothing itself.
"""

from __future__ import annotations

TYPE_CHECKING = False  # as type checkers know it; the typing module takes long to load
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any

__all__ = ["Function", "function"]


class Function:
    """A function that can be deployed; `options` are fields of FunctionSpec."""

    def __init__(self, code: Callable[..., Any], options: dict[str, Any]) -> None:
        self.__wrapped__ = code
        self.__doc__ = code.__doc__
        self.name = str(options.get("name") or code.__name__.lower().strip("_"))
        self.options = options

    def __call__(self, *arguments: Any, **named: Any) -> Any:
        """Call it here and now."""
        return self.__wrapped__(*arguments, **named)

    def invoke(self, event: Any = None, *, tenant: str = "") -> Any:
        """Call it where it is deployed; returns its result, or raises FunctionError."""
        from tegu.sandbox.fn.client import invoke

        return invoke(self.name, event, tenant=tenant).result()


def function(code: Callable[..., Any] | None = None, **options: Any) -> Any:
    """Mark a function, with or without options: `@function` or `@function(timeout=5)`.

    Options are the fields of FunctionSpec, written as literals: `tegu fn deploy` reads them without
    running the file.
    """
    if code is not None:
        return Function(code, options)
    return lambda found: Function(found, options)
