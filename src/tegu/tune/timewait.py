"""Ends TCP sockets that have been in TIME-WAIT for long enough, in chosen network namespaces.

A socket's age is 60,000 ms less what its timer has left (TCP_TIMEWAIT_LEN, include/net/tcp.h). They
are ended by SOCK_DESTROY in batches over raw netlink; one that goes meanwhile is as good as ended.

What is given up (RFC 9293, 3.4.3, and the quiet time of RFC 793): for twice the maximum segment
lifetime no segment of an old connection may be taken for one of a new connection between the same
ports, and a lost last ACK can be sent again. Timestamps (RFC 7323) tell old segments from new ones
where both ends use them.
"""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from tegu.errors import UnsupportedError
from tegu.linux import libc
from tegu.linux.sockdiag import TIME_WAIT, TIME_WAIT_MS, destroy, tcp_sockets

__all__ = ["Swept", "namespaces", "serve", "sweep"]

_RARELY = 5.0
_NAMED = Path("/run/netns")


@dataclass(frozen=True)
class Swept:
    """One sweep of one namespace: sockets seen in TIME-WAIT, ended, refused by the kernel; and
    seconds until the next is old enough (None: there is none)."""

    namespace: str
    seen: int
    ended: int
    refused: int
    next_in: float | None


def sweep(seconds: float, namespace: str = "") -> Swept:
    """End what has been in TIME-WAIT for `seconds`, in this network namespace or another.

    `namespace` is a file such as /run/netns/NAME or /proc/PID/ns/net. Raises UnsupportedError
    where the kernel has no sock_diag or refuses SOCK_DESTROY, OSError for a namespace that is gone.
    """
    if not namespace:
        return _sweep_here(seconds, "")
    result: list[Swept] = []
    failed: list[Exception] = []

    def inside() -> None:
        # setns(2) concerns this thread alone, which ends with its work.
        try:
            fd = os.open(namespace, os.O_RDONLY | os.O_CLOEXEC)
            try:
                libc.setns(fd, libc.CLONE_NEWNET)
            finally:
                os.close(fd)
            result.append(_sweep_here(seconds, namespace))
        except (OSError, UnsupportedError) as e:
            failed.append(e)

    thread = threading.Thread(target=inside)
    thread.start()
    thread.join()
    if failed:
        raise failed[0]
    return result[0]


def _sweep_here(seconds: float, name: str) -> Swept:
    if not _any_here():
        return Swept(name, 0, 0, 0, None)
    old, young, seen = [], 0, 0
    try:
        for s in tcp_sockets([TIME_WAIT]):
            seen += 1
            age = TIME_WAIT_MS - s.left_ms
            if age >= seconds * 1000:
                old.append(s)
            else:
                young = max(young, age)
        ended, refused = destroy(old)
    except FileNotFoundError as e:
        raise UnsupportedError("this kernel has no sock_diag for TCP", hint="tcp_diag") from e
    except PermissionError as e:
        raise UnsupportedError("no privilege to end sockets", hint="run as root") from e
    except OSError as e:
        raise UnsupportedError(f"sock_diag: {e.strerror}") from e
    next_in = seconds - young / 1000 if seen > len(old) else None
    return Swept(name, seen, ended, refused, next_in)


def _any_here() -> bool:
    """Whether this namespace has any socket in TIME-WAIT: one short file instead of a dump."""
    try:
        content = Path("/proc/thread-self/net/sockstat").read_text()
    except OSError:
        return True
    for line in content.splitlines():
        words = line.split()
        if words[:1] == ["TCP:"] and "tw" in words:
            return words[words.index("tw") + 1] != "0"
    return True


def namespaces(asked: Sequence[str]) -> list[str]:
    """Return the namespaces to sweep: this one, and those asked for; `all` is /run/netns/*."""
    found = [""]
    for name in asked:
        if name == "all":
            found += sorted(str(p) for p in _NAMED.glob("*"))
        else:
            found.append(name if "/" in name else str(_NAMED / name))
    return found


def serve(
    seconds: float,
    asked: Sequence[str],
    stop: threading.Event,
    *,
    tell: Callable[[Swept], None] = lambda _: None,
) -> None:
    """Sweep until `stop`: soon after the next socket is old enough, at most four times a second.

    A namespace that is gone is passed over. Raises UnsupportedError.
    """
    while not stop.is_set():
        began = time.monotonic()
        soonest = seconds
        for name in namespaces(asked):
            try:
                swept = sweep(seconds, name)
            except OSError:
                continue
            tell(swept)
            if swept.next_in is not None:
                soonest = min(soonest, swept.next_in)
        # New ones may come at any time, but none is old enough before `seconds` have passed.
        pause = max(0.25, min(soonest, _RARELY))
        stop.wait(max(0.0, began + pause - time.monotonic()))
