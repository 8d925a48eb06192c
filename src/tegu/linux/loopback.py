"""The loopback interface of a new network namespace, which starts out down (netdevice(7))."""

from __future__ import annotations

import fcntl

__all__ = ["loopback_up"]

_SIOCSIFFLAGS = 0x8914
_IFF_UP = 0x1
_IFF_RUNNING = 0x40
_AF_INET = 2
_SOCK_DGRAM = 2


def loopback_up() -> None:
    """Bring `lo` up in this network namespace; the kernel then gives it 127.0.0.1 and ::1."""
    import _socket  # the socket module proper costs a sandbox's zygote six milliseconds

    request = b"lo".ljust(16, b"\0") + (_IFF_UP | _IFF_RUNNING).to_bytes(2, "little") + bytes(22)
    s = _socket.socket(_AF_INET, _SOCK_DGRAM, 0)
    try:
        fcntl.ioctl(s.fileno(), _SIOCSIFFLAGS, request)
    finally:
        s.close()
