"""`tegu sandbox serve --http`: the service and its supervisor, started and ended together."""

from __future__ import annotations

import asyncio
import os
import re
import signal
import socket
import sys
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from tegu.errors import SandboxError, TeguError, UnsupportedError, UsageError
from tegu.linux import libc
from tegu.sandbox.client import box_spec
from tegu.sandbox.keeper import keep
from tegu.sandbox.web.hub import Rules
from tegu.sandbox.wire import default_socket

try:
    from tegu.sandbox.web.serve import (
        Settings,
        check,
        parse_address,
        read_tokens,
        serve,
    )
except ModuleNotFoundError as e:
    if e.name != "aiohttp":
        raise
    raise UnsupportedError(
        "sandboxes over HTTP need the Python module aiohttp", hint="pip install 'tegu[web]'"
    ) from e

__all__ = ["offer", "read_templates", "run"]

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,62}")


def offer(
    where: Path,
    addresses: Sequence[str],
    *,
    warm: int,
    compiled: bool,
    token_file: Path | None,
    tls: tuple[Path | None, Path | None],
    domain: str | None,
    templates: Sequence[str],
    limits: Mapping[str, Any],
    most: tuple[float, int],
    ready: Callable[[list[str]], None],
) -> None:
    """Serve as the command line says, until SIGTERM or SIGINT. Raises TeguError."""
    settings = Settings(
        addresses=[parse_address(text, where) for text in addresses],
        rules=Rules(
            templates=read_templates(templates),
            box=box_spec("host", **limits),
            max_timeout=most[0],
            max_sandboxes=most[1],
        ),
        tokens=read_tokens(token_file) if token_file is not None else (),
        certificate=tls[0],
        key=tls[1],
        domain=domain,
        supervisor=where,
    )
    run(settings, warm=warm, compiled=compiled, ready=ready)


def read_templates(words: Sequence[str]) -> dict[str, str]:
    """Return the templates that are named NAME=DIR, and "base", which is the host's unless it is
    among them. Raises UsageError."""
    found = {"base": "host"}
    for word in words:
        name, mark, path = word.partition("=")
        if not mark or _NAME.fullmatch(name) is None or not path:
            raise UsageError(
                f"--template {word!r} is not NAME=DIR", hint="a name has letters, digits, ._-"
            )
        if path != "host" and not Path(path).is_dir():
            raise UsageError(f"--template {word}: there is no such directory")
        found[name] = path if path == "host" else str(Path(path).absolute())
    return found


def run(
    settings: Settings, *, warm: int, compiled: bool, ready: Callable[[list[str]], None]
) -> None:
    """Serve until SIGTERM or SIGINT. `ready` is told the URLs. Raises TeguError.

    A supervisor that serves already is used, and left; else one is started, which ends with us.
    """
    check(settings)
    where = settings.supervisor or default_socket()
    child = 0 if _serves(where) else _start(where, warm=warm, compiled=compiled)
    try:
        asyncio.run(serve(settings, ready))
    finally:
        if child:
            for number in (signal.SIGTERM, signal.SIGINT):
                signal.signal(number, signal.SIG_IGN)  # it is ending already
            with suppress(ProcessLookupError):
                os.kill(child, signal.SIGTERM)
            os.waitpid(child, 0)


def _serves(where: Path) -> bool:
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as link:
        return link.connect_ex(str(where)) == 0


def _start(where: Path, *, warm: int, compiled: bool) -> int:
    """Start a supervisor; returns its keeper's pid once it serves. Raises SandboxError."""
    ready_r, ready_w = os.pipe()
    sys.stdout.flush()
    sys.stderr.flush()
    pid = os.fork()
    if pid == 0:
        os.close(ready_r)
        code = 20
        try:
            libc.parent_death_signal(signal.SIGTERM)
            os.setsid()  # a Ctrl-C is for the service, which ends both in order
            code = keep(where, warm=warm, idle_exit=None, ready=ready_w, compiled=compiled)
        except TeguError as e:
            print(f"tegu: {e.message}", file=sys.stderr)
            code = e.exit_code
        finally:
            sys.stderr.flush()
            os._exit(code)
    os.close(ready_w)
    try:
        if os.read(ready_r, 1) != b"1":
            os.waitpid(pid, 0)
            raise SandboxError("the supervisor did not start", hint="what it said is above")
    finally:
        os.close(ready_r)
    return pid
