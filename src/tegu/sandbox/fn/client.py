"""Calling functions: `invoke`, and a connection for many calls."""

from __future__ import annotations

import json
import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tegu.errors import SandboxError, UsageError
from tegu.sandbox import wire
from tegu.sandbox.client import supervisor
from tegu.sandbox.exchange import secret_file
from tegu.sandbox.fn.invocation import INLINE
from tegu.sandbox.launch import connect
from tegu.store import Store

__all__ = ["Answer", "Caller", "FunctionError", "invoke", "logs", "running"]

_TITLES = {
    "raised": "raised an exception",
    "exited": "ended without an answer",
    "crashed": "crashed",
    "timed_out": "timed out",
    "out_of_memory": "ran out of memory",
    "not_serialisable": "gave a result that cannot be passed on",
    "event_too_large": "was not called: the event is too large",
    "result_too_large": "gave a result that is too large",
    "start_failed": "did not start",
    "queue_full": "was not called: its queue is full",
    "cancelled": "was cancelled",
}


class FunctionError(SandboxError):
    """An invocation did not come to a result; `kind` says how, as in tegu.sandbox.fn.records.

    `retry_after` are the seconds after which there may be room (kind "queue_full"); `traceback` is
    the function's own (kind "raised").
    """

    def __init__(
        self,
        message: str,
        kind: str,
        *,
        hint: str | None = None,
        retry_after: int | None = None,
        traceback: str = "",
    ) -> None:
        super().__init__(message, hint=hint)
        self.kind = kind
        self.retry_after = retry_after
        self.traceback = traceback


@dataclass(frozen=True)
class Answer:
    """How an invocation ended. `account` holds what it cost (tegu.sandbox.fn.records.Account).

    `kind` says what `data` is: "json" (a result, or what was raised), "bytes", or "text" about a
    failure.
    """

    id: str
    function: str
    version: str
    outcome: str
    kind: str
    data: bytes
    account: dict[str, Any] = field(default_factory=dict)
    retry_after: int | None = None

    def result(self) -> Any:
        """Return what the function returned, or raise FunctionError."""
        self.check()
        return self.data if self.kind == "bytes" else json.loads(self.data)

    def check(self) -> Answer:
        """Return itself, or raise FunctionError when there is no result."""
        if self.outcome == "ok":
            return self
        words, trace = self.data.decode(errors="replace"), ""
        if self.outcome == "raised":
            try:
                told = json.loads(words)
                said = str(told["message"])
                words = str(told["type"]) + (f": {said}" if said else "")
                trace = str(told["traceback"])
            except (ValueError, KeyError, TypeError):
                words = "(it cannot be put into words)"
        message = f"{self.function} {_TITLES.get(self.outcome, self.outcome)}: {words}"
        raise FunctionError(
            " ".join(message.split()),
            self.outcome,
            retry_after=self.retry_after,
            traceback=trace,
            hint=f"see `tegu fn logs {self.function}`" if self.outcome != "queue_full" else None,
        )


class Caller:
    """A connection to the supervisor for calls, one after the other. Close it, or use `with`."""

    def __init__(self, path: Path | None = None, store: Path | None = None) -> None:
        self._link = connect(path)
        self._store = str(store or Store.default().root)
        self._n = 0

    def __enter__(self) -> Caller:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Close the connection; what it still waits for is cancelled."""
        self._link.close()

    def call(self, name: str, event: Any = None, *, tenant: str = "") -> Answer:
        """Call a function with anything that JSON can say, or with bytes.

        Raises SandboxError when there is no such function or the supervisor ends.
        """
        if isinstance(event, bytes | bytearray):
            return self.call_raw(name, bytes(event), "bytes", tenant=tenant)
        try:
            text = json.dumps(event, allow_nan=False)
        except (TypeError, ValueError, RecursionError) as e:
            raise UsageError(f"the event is no JSON: {e}") from e
        return self.call_raw(name, text.encode(), "json", tenant=tenant)

    def call_raw(self, name: str, data: bytes, kind: str, *, tenant: str = "") -> Answer:
        """Call a function with `data` as it is, JSON text or bytes ("json", "bytes")."""
        self.send(name, data, kind, tenant=tenant)
        return self.answer()

    def fileno(self) -> int:
        """Return what can be read once there is an answer."""
        return self._link.fileno()

    def send(self, name: str, data: bytes, kind: str, *, tenant: str = "") -> None:
        """Call without waiting; `answer` waits."""
        self._n += 1
        request = {"op": "fn", "do": "invoke", "n": self._n, "store": self._store, "name": name}
        request.update(kind=kind, tenant=tenant)
        try:
            if kind == "json" and len(data) <= INLINE // 3:
                wire.send(self._link, {**request, "payload": data.decode()})
            else:
                fd = secret_file(data)
                try:
                    wire.send(self._link, request, [fd])
                finally:
                    os.close(fd)
        except UnicodeDecodeError as e:
            raise UsageError("the event is not UTF-8") from e
        except OSError as e:
            raise SandboxError("the supervisor has ended, and what it ran") from e

    def answer(self) -> Answer:
        """Wait for the answer to the last call."""
        while True:
            try:
                message, fds = wire.receive(self._link)
            except OSError:
                message, fds = None, []
            if message is None:
                raise SandboxError("the supervisor has ended, and what it ran")
            try:
                if message.get("n") != self._n:
                    continue
                if "error" in message:
                    raise wire.to_error(message["error"])
                return _read(message["ok"], fds)
            finally:
                for fd in fds:
                    os.close(fd)


def _read(body: dict[str, Any], fds: list[int]) -> Answer:
    if fds:
        data = b""
        with open(os.dup(fds[0]), "rb") as f:  # noqa: PTH123
            f.seek(0)
            data = f.read()
    else:
        data = body.pop("payload", "").encode()
    body.pop("payload", None)
    return Answer(data=data, **body)


def invoke(
    name: str,
    event: Any = None,
    *,
    tenant: str = "",
    path: Path | None = None,
    store: Store | None = None,
) -> Answer:
    """Call a deployed function once; `Answer.result()` is what it returned.

    An event is what JSON can say, or bytes. `path` is the supervisor's socket.
    """
    with Caller(path, store.root if store else None) as caller:
        return caller.call(name, event, tenant=tenant)


def logs(
    name: str,
    *,
    after: int = 0,
    most: int = 0,
    path: Path | None = None,
    store: Store | None = None,
) -> list[dict[str, Any]]:
    """Return what a function printed and how its invocations failed, oldest first.

    Of the entries after number `after` the last `most` (0: all that are kept).
    """
    where = str((store or Store.default()).root)
    found: list[dict[str, Any]] = []
    while True:
        more = supervisor(
            "fn", path=path, start=True, do="logs", store=where, name=name, after=after, most=most
        )
        found += more
        if not more:
            return found
        after, most = more[-1]["number"], 0


def running(path: Path | None = None, store: Store | None = None) -> dict[str, dict[str, Any]]:
    """Return what the supervisor knows of functions, by name; nothing where none serves."""
    where = str((store or Store.default()).root)
    try:
        found = supervisor("fn", path=path, do="list", store=where)
    except SandboxError as e:
        if "no supervisor" in e.message:
            return {}
        raise
    return {str(about["name"]): about for about in found}
