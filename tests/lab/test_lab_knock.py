"""A port that accepts is not yet a server that greets."""

from __future__ import annotations

import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager

from tegu.lab.knock import knock


@contextmanager
def server(*answers: bytes | None) -> Iterator[int]:
    """Accept one connection for each answer; None keeps it open and silent."""
    listener = socket.create_server(("127.0.0.1", 0))
    kept = []

    def serve() -> None:
        for answer in answers:
            try:
                line, _ = listener.accept()
            except OSError:
                return
            kept.append(line)
            if answer is not None:
                line.sendall(answer)
                line.close()

    thread = threading.Thread(target=serve, daemon=True)
    thread.start()
    try:
        yield listener.getsockname()[1]
    finally:
        # A client may have given up early: end the wait for it.
        listener.shutdown(socket.SHUT_RDWR)
        thread.join()
        listener.close()
        for line in kept:
            line.close()


def alive() -> bool:
    return False


def test_a_server_that_greets() -> None:
    with server(b"SSH-2.0-x\r\n") as port:
        assert knock("127.0.0.1", port, b"SSH-", 30, alive) is None


def test_the_first_connection_may_be_lost() -> None:
    with server(None, b"", b"SSH-2.0-x\r\n") as port:
        assert knock("127.0.0.1", port, b"SSH-", 60, alive) is None


def test_why_not() -> None:
    with server() as port:
        assert knock("127.0.0.1", port, b"SSH-", 0.3, alive) == "no greeting"
    with server(b"") as port:
        assert knock("127.0.0.1", port, b"SSH-", 0.5, alive) == "its port is closed"
    with server(b"HTTP/1.0 400\r\n") as port:
        assert knock("127.0.0.1", port, b"SSH-", 0.5, alive) == "something else answers its port"
    assert knock("127.0.0.1", 1, b"SSH-", 0.3, alive) == "Connection refused"


def test_nobody_knocks_at_a_dead_machines_door() -> None:
    asked = []
    with server(None, None, None) as port:
        said = knock(
            "127.0.0.1", port, b"SSH-", 3600, lambda: bool(asked) or asked.append(1) or False
        )
    assert said == "no greeting"
