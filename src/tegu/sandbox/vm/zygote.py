"""A process with all loaded that microVMs' processes (tegu.sandbox.vm.host) are clones of.

Python and what `host` imports take longer to start than a guest to be restored. Its clones are the
supervisor's children (CLONE_PARENT), as those of a template's zygote are.
"""

from __future__ import annotations

import gc
import json
import os
import socket
import sys
from contextlib import suppress

from tegu.errors import TeguError
from tegu.linux import libc
from tegu.linux.clone import clone3
from tegu.sandbox import wireless
from tegu.sandbox.vm import host
from tegu.sandbox.vm.drivers import driver_for

__all__ = ["main"]

_CONTROL = 3


def main(control: int) -> None:
    """Serve the supervisor: each message is a box's name and what `host.main` gets, with the box's
    socket beside it; the answer is the name and the pid, with a descriptor of the process."""
    libc.close_range(control + 1)
    link = socket.socket(fileno=control)
    with suppress(TeguError):
        driver_for("microvm-tcg")  # loads what a start needs
    libc.preload()
    gc.collect()
    gc.freeze()
    while True:
        data, fds = wireless.receive(link)
        if not data:
            return
        name, *arguments = wireless.split(data)
        try:
            child = clone3(0, as_sibling=True)
        except OSError as e:
            wireless.tell(link, "failed", name, e.strerror or str(e))
            continue
        if child.pid == 0:
            _become(link, fds, json.loads(arguments[0]))
        wireless.tell(link, "born", name, str(child.pid), fds=[child.pidfd])
        os.close(child.pidfd)
        for fd in fds:
            os.close(fd)


def _become(link: socket.socket, fds: list[int], arguments: list[str]) -> None:
    """In the clone: be the process of one microVM."""
    try:
        os.setsid()
        own = os.dup(fds[0])
        link.detach()
        os.dup2(own, _CONTROL)
        host.main(_CONTROL, arguments)
    except BaseException as e:  # noqa: BLE001 - a clone must never return into the zygote
        with suppress(OSError):
            print(f"tegu: a microVM's process failed: {e!r}", file=sys.stderr, flush=True)
    os._exit(0)
