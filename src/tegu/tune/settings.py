"""Keeps `tcp_tw_timeout`: by the kernel's own setting where there is one, else by the sweep."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from tegu.errors import TeguError, UnsupportedError, UsageError
from tegu.files import write_atomic
from tegu.process import run

__all__ = ["TimeWait", "clear", "current", "put"]

SYSCTL = Path("/proc/sys/net/ipv4/tcp_tw_timeout")
_KEPT = Path("/etc/sysctl.d/90-tegu-tune.conf")
CONFIG = Path("/etc/tegu/tcp_tw_timeout.json")
UNIT = "tegu-time-wait.service"
_WANTED = Path("/etc/systemd/system/multi-user.target.wants") / UNIT
LEAST, MOST, DEFAULT, RISKY = 1, 600, 60, 5


@dataclass(frozen=True)
class TimeWait:
    """How it stands: `by` is "kernel", "sweep" or "default"."""

    seconds: int
    by: str
    namespaces: tuple[str, ...] = ()
    warning: str = ""


def put(seconds: int, namespaces: Sequence[str] = (), *, root: Path = Path("/")) -> TimeWait:
    """Set how long TIME-WAIT lasts, now and after the next boot.

    Raises UsageError for less than 1 s or more than 600, UnsupportedError for more than a minute
    on a kernel without the setting: a sweep can only end sockets sooner.
    """
    if not LEAST <= seconds <= MOST:
        raise UsageError(f"tcp_tw_timeout is {LEAST} to {MOST} seconds, not {seconds}")
    warning = ""
    if seconds < RISKY:
        warning = (
            f"below {RISKY} s a segment of an old connection may reach a new one between the same"
            " ports (RFC 793, quiet time): only where segments cannot live that long, and with"
            " net.ipv4.tcp_timestamps=1 on both ends"
        )
    sysctl = _below(root, SYSCTL)
    if sysctl.exists() and not namespaces:
        sysctl.write_text(str(seconds))
        write_atomic(_below(root, _KEPT), f"net.ipv4.tcp_tw_timeout = {seconds}\n")
        return TimeWait(seconds, "kernel", (), warning)
    if seconds > DEFAULT:
        raise UnsupportedError(
            f"this kernel ends TIME-WAIT after {DEFAULT} s, and a sweep can only end it sooner"
        )
    body = json.dumps({"seconds": seconds, "namespaces": list(namespaces)})
    write_atomic(_below(root, CONFIG), body + "\n")
    if root == Path("/"):
        run(["systemctl", "--quiet", "add-wants", "multi-user.target", UNIT], timeout=60)
        run(["systemctl", "restart", UNIT], timeout=60)
    return TimeWait(seconds, "sweep", tuple(namespaces), warning)


def clear(*, root: Path = Path("/")) -> TimeWait:
    """Go back to the kernel's default."""
    sysctl = _below(root, SYSCTL)
    _below(root, _KEPT).unlink(missing_ok=True)
    if sysctl.exists():
        sysctl.write_text(str(DEFAULT))
    if _below(root, CONFIG).exists():
        if root == Path("/"):
            _WANTED.unlink(missing_ok=True)
            run(["systemctl", "daemon-reload"], timeout=60)
            run(["systemctl", "stop", UNIT], timeout=60)
        _below(root, CONFIG).unlink(missing_ok=True)
    return current(root=root)


def current(*, root: Path = Path("/")) -> TimeWait:
    """Return how it stands; raises TeguError for a file of ours that is damaged."""
    config = _below(root, CONFIG)
    if config.exists():
        try:
            value = json.loads(config.read_text())
            seconds, names = value["seconds"], value["namespaces"]
            if type(seconds) is not int or not LEAST <= seconds <= DEFAULT:
                raise ValueError("seconds")
            if not isinstance(names, list) or not all(isinstance(n, str) for n in names):
                raise ValueError("namespaces")
            return TimeWait(seconds, "sweep", tuple(names))
        except (ValueError, KeyError, TypeError) as e:
            raise TeguError(
                f"{config} is damaged ({e})", hint="tegu tune set tcp_tw_timeout=N writes it anew"
            ) from e
    sysctl = _below(root, SYSCTL)
    if sysctl.exists():
        return TimeWait(int(sysctl.read_text()), "kernel")
    return TimeWait(DEFAULT, "default")


def _below(root: Path, path: Path) -> Path:
    return root / path.relative_to("/")
