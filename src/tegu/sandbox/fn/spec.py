"""What a function is: its code, its limits, how it is kept; checked at the border."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields
from typing import Any

from tegu.errors import UsageError

__all__ = ["LOADS", "RUNTIMES", "SANDBOXES", "FunctionSpec", "check_name"]

RUNTIMES = ("python", "exec", "java")
LOADS = ("late", "early")
SANDBOXES = ("invocation", "tenant")
_NAME = re.compile(r"[a-z0-9]([a-z0-9_-]{0,61}[a-z0-9])?")
_HANDLER = re.compile(r"[A-Za-z_]\w*(\.[A-Za-z_]\w*)*:[A-Za-z_]\w*")
_MODULE = re.compile(r"[A-Za-z_]\w*(\.[A-Za-z_]\w*)*")
_VARIABLE = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")
_MOST_TEXT = 32 * 1024


def check_name(name: object) -> str:
    """Return a function's name, or raise UsageError: lower-case letters, digits, - and _."""
    if not isinstance(name, str) or _NAME.fullmatch(name) is None:
        raise UsageError(
            f"{name!a} is not the name of a function",
            hint="1 to 63 lower-case letters, digits, '-' and '_', the first and last no sign",
        )
    return name


@dataclass(frozen=True)
class FunctionSpec:
    """One version of a function. Sizes are bytes, times seconds."""

    name: str
    runtime: str = "python"
    handler: str = ""
    """`module:function`, of the runtime python."""
    command: Sequence[str] = ()
    """The program of the other runtimes: event on stdin, result on stdout. Its directory is the
    code's, /fn."""
    archive: bool = True
    """Whether a deployment of the runtime java makes an archive of the classes that it loads."""
    train: str = "null"
    """The event, as JSON, of the run that collects them."""
    template: str = "host"
    load: str = "late"
    """When the author's module runs: "late", in each invocation, as strictly held as all that it
    does; or "early", once, in the zygote that invocations are forked from."""
    imports: Sequence[str] = ()
    """Modules of the template that the zygote imports beside those that the code names."""
    sandbox: str = "invocation"
    """What a sandbox of its own is for: each "invocation", or each "tenant"."""
    env: Mapping[str, str] = field(default_factory=dict)
    memory: int | None = None
    cpus: float | None = None
    pids: int = 64
    files: int = 256
    disk: int = 64 * 2**20
    timeout: float = 30.0
    concurrency: int = 8
    """Invocations that run at the same time."""
    queue: int = 64
    """Invocations that wait; one more is refused."""
    idle: float = 300.0
    """Seconds without an invocation after which nothing of it is kept running."""
    max_event: int = 6 * 2**20
    max_result: int = 6 * 2**20

    def __post_init__(self) -> None:
        check_name(self.name)
        _one_of("runtime", self.runtime, RUNTIMES)
        _one_of("load", self.load, LOADS)
        _one_of("sandbox", self.sandbox, SANDBOXES)
        if self.runtime == "python":
            _text("handler", self.handler)
            if _HANDLER.fullmatch(self.handler) is None:
                raise UsageError(
                    f"handler: {self.handler!a} is not MODULE:FUNCTION",
                    hint="app:main is the function main of app.py",
                )
            if self.command:
                raise UsageError("command: the runtime python has a handler, not a command")
        else:
            self._check_command()
        if self.template != "host" and not _text("template", self.template).startswith("/"):
            raise UsageError(f"template: {self.template!r} is neither 'host' nor an absolute path")
        for module in _texts("imports", self.imports):
            if _MODULE.fullmatch(module) is None:
                raise UsageError(f"imports: {module!a} is not the name of a module")
        if not isinstance(self.archive, bool):
            raise UsageError(f"archive: {self.archive!a} is neither true nor false")
        _text("train", self.train)
        if not isinstance(self.env, Mapping):
            raise UsageError("env: a table is wanted")
        for name, value in self.env.items():
            if not isinstance(name, str) or _VARIABLE.fullmatch(name) is None:
                raise UsageError(f"env: {name!a} is not the name of a variable")
            _text(f"env: {name}", value)
        if sum(len(k) + len(v) for k, v in self.env.items()) > _MOST_TEXT:
            raise UsageError(f"env: more than {_MOST_TEXT} characters")
        self._check_limits()

    def _check_command(self) -> None:
        if self.handler:
            raise UsageError(f"handler: the runtime {self.runtime} has a command, not a handler")
        words = _texts("command", self.command)
        if not words or not words[0]:
            raise UsageError("command: there is no program to run")
        if sum(len(w) for w in words) > _MOST_TEXT:
            raise UsageError(f"command: more than {_MOST_TEXT} characters")
        if self.load != "late":
            raise UsageError(f"load: the runtime {self.runtime} loads nothing early")
        if self.sandbox != "invocation":
            raise UsageError(f"sandbox: the runtime {self.runtime} has one for each invocation")

    def _check_limits(self) -> None:
        for what, low, high in (
            ("memory", 16 * 2**20, 2**50),
            ("pids", 2, 2**15),
            ("files", 128, 2**20),
            ("disk", 2**16, 2**50),
            ("concurrency", 1, 1024),
            ("queue", 0, 2**16),
            ("max_event", 0, 2**30),
            ("max_result", 1, 2**30),
        ):
            _number(what, getattr(self, what), low, high, whole=True)
        _number("cpus", self.cpus, 0.01, 4096, whole=False)
        _number("timeout", self.timeout, 0.01, 86400, whole=False)
        _number("idle", self.idle, 1, 86400, whole=False)

    def to_json(self) -> dict[str, Any]:
        """Return plain data that `from_json` reads."""
        values = asdict(self)
        return {**values, "command": list(self.command), "imports": list(self.imports)}

    def canonical(self) -> bytes:
        """Return what a version's key is made of, beside its code: the same words for the same."""
        return json.dumps(self.to_json(), sort_keys=True, separators=(",", ":")).encode()

    @classmethod
    def from_json(cls, data: object) -> FunctionSpec:
        """Read plain data. Raises UsageError that names the field."""
        if not isinstance(data, dict):
            raise UsageError("function: a table is wanted")
        known = {f.name for f in fields(cls)}
        for key in data:
            if key not in known:
                raise UsageError(f"function: there is no field {key!a}")
        if "name" not in data:
            raise UsageError("function: it has no name")
        return cls(**data)


def _one_of(what: str, value: object, words: Sequence[str]) -> None:
    if value not in words:
        raise UsageError(f"{what}: {value!a} is none of {', '.join(words)}")


def _number(what: str, value: object, low: float, high: float, *, whole: bool) -> None:
    if value is None and what in ("memory", "cpus"):
        return
    if not isinstance(value, int if whole else (int, float)) or isinstance(value, bool):
        raise UsageError(f"{what}: {value!a} is not a {'whole ' if whole else ''}number")
    assert isinstance(value, int | float)
    if not low <= value <= high:
        raise UsageError(f"{what}: {value} is not between {low:g} and {high:g}")


def _text(what: str, value: object) -> str:
    if not isinstance(value, str):
        raise UsageError(f"{what}: {value!a} is not text")
    if "\0" in value:
        raise UsageError(f"{what}: a NUL character cannot be passed on")
    try:
        value.encode(errors="surrogateescape")
    except UnicodeEncodeError:
        raise UsageError(f"{what}: {value!a} holds what is no character") from None
    return value


def _texts(what: str, values: object) -> list[str]:
    if isinstance(values, str) or not isinstance(values, Sequence):
        raise UsageError(f"{what}: a list is wanted")
    return [_text(what, value) for value in values]
