"""Sandboxes: programs in boxes of their own, started in milliseconds.

A resident supervisor (`tegu sandbox serve`, or one that the first client starts) keeps zygotes that
already stand in a template's root file system, and boxes made ahead; a start is a clone and an
exec. How strongly a box is held is its class, chosen by name and never lowered silently
(`doctor`). `Sandbox` and `run` are for programs; what they need is loaded when it is used, as this
room must start fast.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from tegu.sandbox.aio import AsyncSandbox
    from tegu.sandbox.client import Result, Sandbox, run
    from tegu.sandbox.spec import BoxSpec, Limits

__all__ = ["AsyncSandbox", "BoxSpec", "Limits", "Result", "Sandbox", "run"]

_HOMES = {"AsyncSandbox": "aio", "BoxSpec": "spec", "Limits": "spec"}


def __getattr__(name: str) -> object:
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    import importlib

    value = getattr(importlib.import_module(f"tegu.sandbox.{_HOMES.get(name, 'client')}"), name)
    globals()[name] = value
    return value
