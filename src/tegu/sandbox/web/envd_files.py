"""What E2B's clients expect inside a sandbox: its files, as a Connect RPC service.

Service `filesystem.Filesystem`, by its published names and fields.
"""

from __future__ import annotations

import secrets
from collections.abc import AsyncIterator
from datetime import UTC, datetime
from typing import Any

from aiohttp import web

from tegu.sandbox.web import connect
from tegu.sandbox.web.fault import Fault
from tegu.sandbox.web.fields import Fields
from tegu.sandbox.web.gate import HELD
from tegu.sandbox.web.tree import Info, Tree
from tegu.sandbox.web.users import HOME, check_named_user
from tegu.sandbox.web.watch import Change, Watcher

__all__ = ["routes"]

_FILE_TYPES = {
    "file": "FILE_TYPE_FILE",
    "directory": "FILE_TYPE_DIRECTORY",
    "link": "FILE_TYPE_SYMLINK",
    "other": "FILE_TYPE_UNSPECIFIED",
}


def _entry(info: Info) -> dict[str, Any]:
    modified = datetime.fromtimestamp(max(0.0, min(info.modified, 253402300799.0)), UTC)
    entry: dict[str, Any] = {
        "name": info.name,
        "type": _FILE_TYPES[info.kind],
        "path": info.path,
        "size": str(info.size),
        "mode": info.mode,
        "permissions": info.permissions,
        "owner": info.owner,
        "group": info.group,
        "modifiedTime": modified.isoformat().replace("+00:00", "Z"),
    }
    if info.target is not None:
        entry |= {"symlinkTarget": info.target, "isSymlink": True}
    if info.metadata:
        entry["metadata"] = info.metadata
    return entry


def _place(request: web.Request, message: Fields, name: str = "path") -> tuple[Tree, str]:
    check_named_user(request)
    tree = Tree(request[HELD])
    return tree, tree.resolve(message.text(name), HOME)


async def _stat(request: web.Request, message: Fields) -> dict[str, Any]:
    tree, path = _place(request, message)
    return {"entry": _entry(await tree.stat(path))}


async def _make_dir(request: web.Request, message: Fields) -> dict[str, Any]:
    tree, path = _place(request, message)
    if not await tree.make_directories(path):
        raise Fault("already_exists", f"{path}: it is there already")
    return {"entry": _entry(await tree.stat(path))}


async def _move(request: web.Request, message: Fields) -> dict[str, Any]:
    tree, source = _place(request, message, "source")
    target = tree.resolve(message.text("destination"), HOME)
    await tree.move(source, target)
    return {"entry": _entry(await tree.stat(target))}


async def _list_dir(request: web.Request, message: Fields) -> dict[str, Any]:
    tree, path = _place(request, message)
    found = await tree.entries(path, max(1, message.whole("depth")))
    return {"entries": [_entry(info) for info in found]}


async def _remove(request: web.Request, message: Fields) -> dict[str, Any]:
    tree, path = _place(request, message)
    await tree.remove(path)
    return {}


def _change(change: Change) -> dict[str, Any]:
    found: dict[str, Any] = {"name": change.name, "type": f"EVENT_TYPE_{change.kind.upper()}"}
    if change.info is not None:
        found["entry"] = _entry(change.info)
    return found


async def _watcher(request: web.Request, message: Fields) -> Watcher:
    _, path = _place(request, message)
    watcher = Watcher(
        request[HELD],
        path,
        recursive=message.flag("recursive"),
        with_info=message.flag("include_entry"),
    )
    await watcher.start()
    return watcher


async def _watch_dir(
    request: web.Request, message: Fields, _: float | None
) -> AsyncIterator[dict[str, Any]]:
    watcher = await _watcher(request, message)
    try:
        yield {"start": {}}
        while True:
            yield {"filesystem": _change(await watcher.next())}
    finally:
        watcher.close()


async def _create_watcher(request: web.Request, message: Fields) -> dict[str, Any]:
    watcher = await _watcher(request, message)
    name = f"polled-{secrets.token_hex(8)}"
    request[HELD].attachments[name] = watcher
    return {"watcherId": name}


def _polled(request: web.Request, message: Fields) -> Watcher:
    name = message.text("watcher_id")
    found = request[HELD].attachments.get(name)
    if not isinstance(found, Watcher) or not name.startswith("polled-"):
        raise Fault("not_found", f"there is no watcher {name!r}")
    return found


async def _get_watcher_events(request: web.Request, message: Fields) -> dict[str, Any]:
    return {"events": [_change(c) for c in await _polled(request, message).settled_changes()]}


async def _remove_watcher(request: web.Request, message: Fields) -> dict[str, Any]:
    _polled(request, message).close()
    del request[HELD].attachments[message.text("watcher_id")]
    return {}


def routes() -> list[web.RouteDef]:
    """Return the routes of the service."""
    methods = {
        "Stat": connect.unary(_stat),
        "MakeDir": connect.unary(_make_dir),
        "Move": connect.unary(_move),
        "ListDir": connect.unary(_list_dir),
        "Remove": connect.unary(_remove),
        "WatchDir": connect.stream(_watch_dir, deadline=True),
        "CreateWatcher": connect.unary(_create_watcher),
        "GetWatcherEvents": connect.unary(_get_watcher_events),
        "RemoveWatcher": connect.unary(_remove_watcher),
    }
    return [
        web.post(f"/filesystem.Filesystem/{name}", handler) for name, handler in methods.items()
    ]
