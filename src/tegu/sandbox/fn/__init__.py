"""Functions: code that is called with an event, each time in a fresh sandbox of its own.

A version of a function is kept in the store. For each that is of use the supervisor keeps a zygote,
a Python with the imports loaded, that is forked into new namespaces for each invocation; where none
is of use, nothing runs. Other runtimes are programs, started in boxes. `function` marks what
`tegu fn deploy` finds; `deploy`, `invoke` and the others are for programs.
"""

from __future__ import annotations

TYPE_CHECKING = False  # as type checkers know it; the typing module takes long to load
if TYPE_CHECKING:
    from tegu.sandbox.fn.client import Answer, FunctionError, invoke
    from tegu.sandbox.fn.decorator import Function, function
    from tegu.sandbox.fn.deployment import deploy, deployed, remove, rollback
    from tegu.sandbox.fn.spec import FunctionSpec

__all__ = [
    "Answer",
    "Function",
    "FunctionError",
    "FunctionSpec",
    "deploy",
    "deployed",
    "function",
    "invoke",
    "remove",
    "rollback",
]

_HOMES = {
    "Function": "decorator",
    "function": "decorator",
    "FunctionSpec": "spec",
    "deploy": "deployment",
    "deployed": "deployment",
    "remove": "deployment",
    "rollback": "deployment",
}


def __getattr__(name: str) -> object:
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    import importlib

    module = importlib.import_module(f"tegu.sandbox.fn.{_HOMES.get(name, 'client')}")
    value = getattr(module, name)
    globals()[name] = value
    return value
