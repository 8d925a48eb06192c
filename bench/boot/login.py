"""The first login: when sshd answers, with the key from the user-data, in the guest's own time.

ssh talks through a relay which stops the machine whenever it is the client's turn, so that only
what the guest does takes the guest's time.
"""

from __future__ import annotations

import select
import socket
import subprocess
import threading
import time
from contextlib import closing, suppress
from dataclasses import dataclass
from pathlib import Path

from bench.boot.guest import Guest
from bench.common import BenchError

from tegu.process import require

__all__ = ["Login", "log_in"]

CLOSED_PORT = 9
SSH_PORT = 22
CLIENT_SECONDS = 1.0
"""How long the client may think before the machine goes on without its answer (host's seconds)."""


@dataclass(frozen=True, slots=True)
class Login:
    """What the command said, and how many host's seconds after the machine's start it was."""

    output: str
    wall: float


def log_in(guest: Guest, user: str, key: Path, command: str, timeout: float) -> Login:
    """Log in as soon as the machine lets us, run `command` there and return its output.

    `command` should first write `/proc/uptime`: that is the moment at which the login is complete.
    The relay stops looking after the guest's time once the command has written its first line.
    Raises BenchError when that takes more than `timeout` seconds of the host.
    """
    started = time.monotonic()
    deadline = started + timeout
    _await_network(guest, deadline)
    while True:
        output = _attempt(guest, user, key, command, deadline)
        if output:
            return Login(output, time.monotonic() - started)
        _check(guest, deadline, "let the key in")
        time.sleep(0.1)


def _await_network(guest: Guest, deadline: float) -> None:
    """Wait until the guest resets a connection to a closed port: its network is up.

    Until then QEMU's network holds connections open, and later delivers all of them at once.
    """
    port = guest.port(CLOSED_PORT)
    while True:
        _check(guest, deadline, "bring up its network")
        with closing(socket.socket()) as probe, suppress(TimeoutError):
            probe.settimeout(0.3)
            try:
                probe.connect(("127.0.0.1", port))
                if probe.recv(1) == b"":
                    return
            except ConnectionError:
                return
        time.sleep(0.02)


def _attempt(guest: Guest, user: str, key: Path, command: str, deadline: float) -> str:
    """Try one login; return the output of the command, or nothing if it was refused."""
    with closing(_await_banner(guest, deadline)) as server:
        listener = socket.create_server(("127.0.0.1", 0))
        with closing(listener), guest.stopped():
            ssh = subprocess.Popen(
                _ssh(listener.getsockname()[1], user, key, command),
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.DEVNULL,
            )
            try:
                listener.settimeout(30)
                client, _ = listener.accept()
            except BaseException:
                ssh.kill()
                ssh.wait()
                raise
        relay = _Relay(guest, client, server)
        relay.start()
        output = b""
        try:
            # The relay's turn-taking is only worth its price until the login is complete.
            assert ssh.stdout is not None
            output = ssh.stdout.readline()
            relay.measuring = False
            rest, _ = ssh.communicate(timeout=max(1.0, deadline - time.monotonic()))
            output += rest
        except subprocess.TimeoutExpired as e:
            raise BenchError(f"the machine does not finish its report: {guest.last_words()}") from e
        finally:
            if ssh.poll() is None:
                ssh.kill()
                ssh.wait()
            relay.stop()
    return output.decode(errors="replace")


def _await_banner(guest: Guest, deadline: float) -> socket.socket:
    """Return a connection on which the server has said who it is; never more than one at a time."""
    port = guest.port(SSH_PORT)
    while True:
        _check(guest, deadline, "answer on port 22")
        server = socket.socket()
        server.settimeout(max(1.0, deadline - time.monotonic()))
        try:
            server.connect(("127.0.0.1", port))
            if server.recv(4, socket.MSG_PEEK) == b"SSH-":
                return server
        except OSError:
            pass
        except BaseException:
            server.close()
            raise
        server.close()
        time.sleep(0.02)


class _Relay(threading.Thread):
    """Carries bytes both ways; while `measuring`, the machine stands still for the client."""

    def __init__(self, guest: Guest, client: socket.socket, server: socket.socket) -> None:
        super().__init__(daemon=True)
        self.measuring = True
        self._guest = guest
        self._client = client
        self._server = server

    def run(self) -> None:
        with suppress(OSError, BenchError):
            while self._turn():
                pass
        for end in (self._client, self._server):
            with suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)

    def stop(self) -> None:
        """End the relay and wait for it."""
        for end in (self._client, self._server):
            with suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)
        self.join(10)
        self._client.close()

    def _turn(self) -> bool:
        ready, _, _ = select.select([self._client, self._server], [], [], 0.5)
        if self._client in ready and not _pass_on(self._client, self._server):
            return False
        if self._server not in ready:
            return True
        if not self.measuring:
            return _pass_on(self._server, self._client)
        with self._guest.stopped():
            if not _pass_on(self._server, self._client):
                return False
            deadline = time.monotonic() + CLIENT_SECONDS
            while self.measuring and (left := deadline - time.monotonic()) > 0:
                ready, _, _ = select.select([self._client, self._server], [], [], min(left, 0.05))
                if self._server in ready and not _pass_on(self._server, self._client):
                    return False
                if self._client in ready:
                    return _pass_on(self._client, self._server)
        return True


def _pass_on(source: socket.socket, target: socket.socket) -> bool:
    data = source.recv(65536)
    if data:
        target.sendall(data)
    return bool(data)


def _ssh(port: int, user: str, key: Path, command: str) -> list[str]:
    options = {
        "StrictHostKeyChecking": "no",
        "UserKnownHostsFile": "/dev/null",
        "LogLevel": "ERROR",
        "BatchMode": "yes",
        "IdentitiesOnly": "yes",
        "ConnectTimeout": "120",
    }
    argv = [require("ssh", package="openssh-client"), "-F", "none", "-i", str(key), "-p", str(port)]
    for name, value in options.items():
        argv += ["-o", f"{name}={value}"]
    return [*argv, f"{user}@127.0.0.1", command]


def _check(guest: Guest, deadline: float, what: str) -> None:
    guest.check()
    if time.monotonic() > deadline:
        raise BenchError(
            f"the machine did not {what} in time; its console ends: {guest.last_words()}"
        )
