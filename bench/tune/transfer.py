"""A transfer over a path with delay, for proofs: prints {"metric": seconds, "guards": {...}}.

`after-idle BYTES`: one connection asks for BYTES twice, two seconds apart; the second counts.
`bulk BYTES`: one connection asks once. The guard is the processor time of the whole transfer.
"""

from __future__ import annotations

import json
import socket
import sys
import threading
import time

PAUSE = 2.0


def serve(listener: socket.socket, size: int) -> None:
    """Answer each byte with `size` bytes."""
    connection, _ = listener.accept()
    with connection:
        while connection.recv(1):
            connection.sendall(bytes(size))


def ask(client: socket.socket, size: int) -> float:
    """Return the seconds from the question to the last byte."""
    began = time.monotonic()
    client.sendall(b"x")
    left = size
    while left:
        left -= len(client.recv(min(left, 1 << 18)))
    return time.monotonic() - began


def main() -> None:
    """Run one transfer."""
    kind, size = sys.argv[1], int(sys.argv[2])
    with socket.socket() as listener, socket.socket() as client:
        listener.bind(("127.0.0.1", 0))
        listener.listen()
        threading.Thread(target=serve, args=(listener, size), daemon=True).start()
        client.connect(listener.getsockname())
        used = time.process_time()
        first = ask(client, size)
        if kind == "bulk":
            found = first
        else:
            time.sleep(PAUSE)
            found = ask(client, size)
        used = time.process_time() - used
    print(json.dumps({"metric": found, "guards": {"processor": round(used, 3)}}))


if __name__ == "__main__":
    main()
