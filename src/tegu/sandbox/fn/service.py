"""What clients may ask of the supervisor about functions: `{"op": "fn", "do": ...}`."""

from __future__ import annotations

import asyncio
import fcntl
import os
import stat
from collections.abc import Awaitable, Callable
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from tegu.errors import UsageError
from tegu.sandbox.fn.host import Host, PythonHost
from tegu.sandbox.fn.invocation import INLINE
from tegu.sandbox.fn.invoked import Event, Invoked, Value
from tegu.sandbox.fn.records import Journal, Tally
from tegu.sandbox.fn.shelf import Manifest, read_manifest, read_name, stamp
from tegu.sandbox.fn.spec import check_name

if TYPE_CHECKING:
    from tegu.sandbox.supervisor import Supervisor

__all__ = ["Client", "Functions"]

_TEND_EVERY = 1.0
_MOST_TENANT = 256


class Client(Protocol):
    """A connection: takes answers, and calls all of `leaving` when it closes."""

    leaving: set[Callable[[], None]]

    def reply(self, n: int, ok: object = None, *, fds: list[int] | None = None) -> None:
        """Answer request `n`."""


@dataclass
class _Entry:
    """A name as this supervisor knows it: who answers, and versions that are getting ready."""

    stamp: tuple[int, int] | None = None
    host: Host | None = None
    ready: dict[str, Host] = field(default_factory=dict)
    leaving: list[Host] = field(default_factory=list)
    preparing: list[Host] = field(default_factory=list)
    tally: Tally = field(default_factory=Tally)
    journal: Journal = field(default_factory=Journal)


class Functions:
    """All functions that were asked for since the supervisor started."""

    def __init__(self, supervisor: Supervisor) -> None:
        self._supervisor = supervisor
        self._entries: dict[tuple[str, str], _Entry] = {}
        self._number = 0
        self._loop = asyncio.get_running_loop()
        self._timer = self._loop.call_later(_TEND_EVERY, self._tend)

    def busy(self) -> bool:
        """Whether anything runs or waits."""
        return any(h.running() or h.waiting() for h in self._hosts())

    def _hosts(self) -> list[Host]:
        return [h for e in self._entries.values() for h in _hosts_of(e)]

    def _tend(self) -> None:
        self._timer = self._loop.call_later(_TEND_EVERY, self._tend)
        for entry in self._entries.values():
            for host in list(entry.leaving):
                if not host.running() and not host.waiting():
                    entry.leaving.remove(host)
                    host.close()
            for host in _hosts_of(entry):
                host.tend()
        self._hold()

    def _hold(self) -> None:
        """Keep the ids of those that run: no template of boxes may get the same."""
        busy = {_slot_name(h) for h in self._hosts() if h.warm or h.waiting()}
        preparing = {_slot_name(h) for e in self._entries.values() for h in e.preparing}
        self._supervisor.held = busy | preparing

    def close(self) -> None:
        """End all."""
        self._timer.cancel()
        for host in self._hosts():
            host.close()
        self._entries.clear()

    def answer(
        self, client: Client, n: int, message: dict[str, Any], fds: list[int]
    ) -> Awaitable[None] | None:
        """Carry a request out; what returns an awaitable answers by its end."""
        do = message.get("do")
        if do == "invoke":
            self._invoke(client, n, message, fds)
            return None
        if do == "prepare":
            return self._prepare(client, n, message)
        if do == "list":
            client.reply(n, self._list(message))
        elif do == "logs":
            client.reply(n, self._logs(message))
        elif do == "forget":
            client.reply(n, self._forget(message))
        else:
            raise UsageError(f"fn: there is nothing called {do!a} to do")
        return None

    # Invocations.

    def _invoke(self, client: Client, n: int, message: dict[str, Any], fds: list[int]) -> None:
        root, name = _where(message)
        tenant = message.get("tenant", "")
        if not isinstance(tenant, str) or len(tenant) > _MOST_TENANT or "\0" in tenant:
            raise UsageError(
                f"tenant: {tenant!a} is not a name of at most {_MOST_TENANT} characters"
            )
        host = self._host(root, name)
        event = _event(message, fds)
        self._number += 1
        self._supervisor.last_use = host.last_use

        def gone() -> None:
            host.cancel(one)

        def done(one: Invoked, outcome: str, value: Value) -> None:
            client.leaving.discard(gone)
            host.tally.count(outcome, one.account)
            _note(host, one, outcome, value)
            body: dict[str, Any] = {
                "id": one.number,
                "function": name,
                "version": host.version,
                "outcome": outcome,
                "account": one.account.to_json(),
            }
            if outcome == "queue_full":
                body["retry_after"] = host.retry_after()
            _reply(client, n, body, value)

        one = Invoked(f"{self._number:x}-{os.urandom(4).hex()}", event, done, tenant)
        most = host.spec.max_event
        if event.size > most:
            one.finish(
                "event_too_large", f"the event has {event.size} bytes, more than max_event = {most}"
            )
            return
        client.leaving.add(gone)
        host.submit(one)

    def _host(self, root: str, name: str) -> Host:
        """Return who answers now; a change of the name in the store is seen here."""
        entry = self._entries.get((root, name))
        now = stamp(Path(root), name)
        if entry is not None and entry.host is not None and now == entry.stamp:
            return entry.host
        deployed = read_name(Path(root), name)  # raises when it is not there
        entry = self._entry(root, name)
        entry.stamp = now
        old = entry.host
        if old is None or old.version != deployed.current:
            new = entry.ready.pop(deployed.current, None)
            entry.host = new or self._new(Path(root), entry, deployed.current)
            if old is not None:
                entry.leaving.append(old)
        assert entry.host is not None
        return entry.host

    def _entry(self, root: str, name: str) -> _Entry:
        return self._entries.setdefault((root, name), _Entry())

    def _new(self, root: Path, entry: _Entry, version: str) -> Host:
        manifest = read_manifest(root, version)
        return self._host_of(manifest, version, entry)

    def _host_of(self, manifest: Manifest, version: str, entry: _Entry) -> Host:
        spec = manifest.spec
        self._supervisor.check_limits(spec.memory, spec.cpus)
        arguments = (self._supervisor, spec, version, manifest.code, entry.tally, entry.journal)
        if spec.runtime == "python":
            imports = list(dict.fromkeys([*spec.imports, *manifest.imports]))

            def slot() -> int:
                self._supervisor.held.add(f"fn:{version}")
                return self._supervisor.slot(f"fn:{version}")

            return PythonHost(*arguments, imports=imports, slot=slot)
        from tegu.sandbox.fn.program import ProgramHost

        return ProgramHost(*arguments)

    # Deployments.

    async def _prepare(self, client: Client, n: int, message: dict[str, Any]) -> None:
        root, name = _where(message)
        version = str(message.get("version"))
        entry = self._entry(root, name)
        if entry.host is not None and entry.host.version == version and entry.host.warm:
            client.reply(n, _about(entry.host))
            return
        host = self._new(Path(root), entry, version)
        if host.spec.name != name:
            raise UsageError(f"version {version[:12]} is one of {host.spec.name}, not of {name}")
        entry.preparing.append(host)
        try:
            await host.ready()
        except BaseException:
            entry.preparing.remove(host)
            host.close()
            if entry.host is None and not entry.ready:
                self._entries.pop((root, name), None)
            raise
        entry.preparing.remove(host)
        before = entry.ready.pop(version, None)
        if before is not None:
            before.close()
        entry.ready[version] = host
        client.reply(n, _about(host))

    def _forget(self, message: dict[str, Any]) -> bool:
        root, name = _where(message)
        entry = self._entries.pop((root, name), None)
        for host in _hosts_of(entry) if entry is not None else []:
            host.close()
        return entry is not None

    # Questions.

    def _list(self, message: dict[str, Any]) -> list[dict[str, Any]]:
        root = _root(message)
        found = []
        for (where, name), entry in list(self._entries.items()):
            host = entry.host or next(iter(entry.ready.values()), None)
            if where == root and host is not None:
                found.append({"name": name, **_about(host), **entry.tally.to_json()})
        return found

    def _logs(self, message: dict[str, Any]) -> list[dict[str, Any]]:
        root, name = _where(message)
        after, most = message.get("after", 0), message.get("most", 0)
        if not isinstance(after, int) or not isinstance(most, int) or most < 0:
            raise UsageError("logs: after and most are whole numbers")
        entry = self._entries.get((root, name))
        if entry is None:
            read_name(Path(root), name)  # raises when it is not there
            return []
        entries: list[dict[str, Any]] = []
        size = 0
        for one in entry.journal.after(after, most)[:1000]:
            size += 2 * len(one["text"]) + 200
            if size > INLINE and entries:
                break  # the next question has the rest
            entries.append(one)
        return entries


def _hosts_of(entry: _Entry) -> list[Host]:
    now = [entry.host] if entry.host is not None else []
    return [*now, *entry.ready.values(), *entry.leaving]


def _slot_name(host: Host) -> str:
    return f"fn:{host.version}"


def _about(host: Host) -> dict[str, Any]:
    return {
        "version": host.version,
        "runtime": host.spec.runtime,
        "warm": host.warm,
        "running": host.running(),
        "waiting": host.waiting(),
        "zygote": getattr(host, "zygote", 0),
        "python": getattr(host, "python", ""),
    }


def _root(message: dict[str, Any]) -> str:
    root = message.get("store")
    if not isinstance(root, str) or not root.startswith("/") or "\0" in root:
        raise UsageError(f"store: {root!a} is not an absolute path")
    return root


def _where(message: dict[str, Any]) -> tuple[str, str]:
    return _root(message), check_name(message.get("name"))


def _event(message: dict[str, Any], fds: list[int]) -> Event:
    kind = message.get("kind", "json")
    if kind not in ("json", "bytes"):
        raise UsageError(f"kind: {kind!a} is neither json nor bytes")
    if fds:
        about = os.fstat(fds[0])
        path_only = fcntl.fcntl(fds[0], fcntl.F_GETFL) & os.O_PATH
        if path_only or not stat.S_ISREG(about.st_mode):
            raise UsageError("event: a regular file is wanted")
        return Event(kind, file=os.dup(fds[0]), size=about.st_size)
    payload = message.get("payload", "null")
    if not isinstance(payload, str):
        raise UsageError("payload: text is wanted")
    try:
        data = payload.encode()
    except UnicodeEncodeError:
        raise UsageError("payload: it holds what is no character") from None
    if len(data) > INLINE:
        raise UsageError(f"payload: more than {INLINE} bytes come in a file")
    return Event(kind, data, size=len(data))


def _reply(client: Client, n: int, body: dict[str, Any], value: Value) -> None:
    """Answer with the value in the message, or in a file beside it."""
    body["kind"] = value.kind
    if value.file is not None:
        client.reply(n, body, fds=[value.file])
        return
    if value.kind != "bytes":
        try:
            text = value.data.decode(errors="strict" if value.kind == "json" else "replace")
        except UnicodeDecodeError:
            body["outcome"], body["kind"], text = "crashed", "text", "it answered nonsense"
        if len(text) <= INLINE // 3:  # a character may take six bytes in a message
            client.reply(n, {**body, "payload": text})
            return
    from tegu.sandbox.exchange import secret_file

    fd = secret_file(value.data)
    try:
        client.reply(n, body, fds=[fd])
    finally:
        os.close(fd)


def _note(host: Host, one: Invoked, outcome: str, value: Value) -> None:
    """Write how it ended into the log, unless it went well."""
    if outcome == "ok":
        return
    words = value.data.decode(errors="replace")[:4000] if value.file is None else ""
    if outcome == "raised":
        import json

        with suppress(ValueError, KeyError, TypeError):
            words = json.loads(words)["traceback"]
    host.journal.add(one.number, words, version=host.version, outcome=outcome)
