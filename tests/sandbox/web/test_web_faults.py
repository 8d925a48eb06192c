"""What breaks: sandboxes, supervisors, services and clients that die, and who is slow."""

from __future__ import annotations

import json
import os
import signal
import socket
import threading
from pathlib import Path
from typing import Any

import pytest
from tests.sandbox.conftest import children, marked_sleep, pids_of, until
from tests.sandbox.web.conftest import TOKEN, OverSocket, Service

pytestmark = pytest.mark.slow


def made(service: Service, **asked: Any) -> str:
    status, found = service.call("POST", "/v1/sandboxes", {"timeout": 600, **asked})
    assert status == 201, found
    return f"/v1/sandboxes/{found['id']}"


class Waiting:
    """A call that waits, in a thread."""

    def __init__(self, service: Service, *arguments: Any) -> None:
        self.answer: Any = None

        def ask() -> None:
            try:
                self.answer = service.call(*arguments)
            except OSError as e:
                self.answer = e

        self._thread = threading.Thread(target=ask)
        self._thread.start()

    def end(self) -> Any:
        self._thread.join(30)
        assert not self._thread.is_alive(), "the call hangs"
        return self.answer


def test_a_sandbox_that_dies_ends_its_calls(own: Service) -> None:
    box = made(own)
    sleep = marked_sleep()
    waiting = Waiting(own, "POST", f"{box}/run", {"command": sleep})
    assert until(lambda: bool(pids_of(sleep)))
    # Its first process is killed from outside: all of the box ends.
    box_first = int(
        Path(f"/proc/{pids_of(sleep)[0]}/stat").read_text().rpartition(")")[2].split()[1]
    )
    os.kill(box_first, signal.SIGKILL)
    status, error = waiting.end()
    assert status == 502 and "was not found" in error["message"]
    assert own.call("GET", box)[0] == 404
    assert pids_of(sleep) == []


def test_out_of_memory_is_told(own: Service) -> None:
    status, found = own.call("POST", "/v1/sandboxes", {"memory": "32M"})
    if status == 501:
        pytest.skip(found["message"])
    box = f"/v1/sandboxes/{found['id']}"
    status, done = own.call(
        "POST", f"{box}/run", {"command": ["python3", "-c", "x = bytearray(2**28)"]}
    )
    assert done.get("out_of_memory") or "memory limit" in done["message"]


def test_a_supervisor_that_dies(own: Service) -> None:
    box = made(own)
    sleep = marked_sleep()
    waiting = Waiting(own, "POST", f"{box}/run", {"command": sleep})
    assert until(lambda: bool(pids_of(sleep)))
    keeper = children(own.process.pid)[0]
    supervisor = children(children(keeper)[0])[0]
    os.kill(supervisor, signal.SIGKILL)
    status, error = waiting.end()
    assert status == 502 and "its supervisor has ended" in error["message"]
    assert until(lambda: pids_of(sleep) == [])
    assert own.call("GET", box)[0] == 404
    # The next sandbox brings another one up.
    again = made(own)
    assert own.call("POST", f"{again}/run", {"command": "echo up"})[1]["stdout"] == "up\n"


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
def test_a_service_that_is_ended_leaves_nothing(own: Service, number: int) -> None:
    box = made(own)
    sleep = marked_sleep()
    waiting = Waiting(own, "POST", f"{box}/run", {"command": sleep})
    assert until(lambda: bool(pids_of(sleep)))
    keeper = children(own.process.pid)[0]
    own.process.send_signal(number)
    code = own.process.wait(30)
    assert code == (0 if number == signal.SIGTERM else -signal.SIGKILL)
    answer = waiting.end()
    assert isinstance(answer, OSError) or answer[0] == 502
    assert until(lambda: pids_of(sleep) == [])
    assert until(lambda: not Path(f"/proc/{keeper}").exists())
    assert until(lambda: not own.supervisor.exists())
    if number == signal.SIGTERM:
        assert not own.socket.exists()


def test_a_client_that_vanishes_mid_stream(own: Service) -> None:
    box = made(own)
    name = box.rpartition("/")[2]
    start = json.dumps(
        {"process": {"cmd": "/bin/sh", "args": ["-c", "yes; true"]}, "stdin": False}
    ).encode()
    body = b"\0" + len(start).to_bytes(4, "big") + start
    for _ in range(5):
        link = socket.create_connection(("127.0.0.1", own.port))
        link.sendall(
            f"POST /process.Process/Start HTTP/1.1\r\nHost: x\r\nE2b-Sandbox-Id: {name}\r\n"
            f"X-API-Key: {TOKEN}\r\nContent-Type: application/connect+json\r\n"
            f"Content-Length: {len(body)}\r\n\r\n".encode()
            + body
        )
        assert link.recv(100).startswith(b"HTTP/1.1 200")
        link.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
        link.close()  # a reset, in the middle of it
    # The programs go on (their clients may come again), bounded, and can be ended.
    processes = own.call("GET", f"{box}/processes")[1]
    assert [p["state"] for p in processes] == ["running"] * 5
    assert until(lambda: all(p["lost"] for p in own.call("GET", f"{box}/processes")[1]))
    for p in processes:
        answer = own.call("POST", f"{box}/processes/{p['pid']}/signal", {"signal": "KILL"})
        assert answer[0] == 204
    assert until(lambda: {p["state"] for p in own.call("GET", f"{box}/processes")[1]} == {"ended"})


def test_a_client_that_does_not_read_holds_only_its_program_up(own: Service) -> None:
    box = made(own)
    _, process = own.call(
        "POST", f"{box}/processes", {"command": "head -c 50000000 /dev/zero; echo > /over"}
    )
    link = OverSocket(own.socket)
    link.request(
        "GET",
        f"{box}/processes/{process['pid']}/stream",
        headers={
            "Connection": "Upgrade",
            "Upgrade": "websocket",
            "Sec-WebSocket-Version": "13",
            "Sec-WebSocket-Key": "AAAAAAAAAAAAAAAAAAAAAA==",
        },
    )
    before = resident(own)
    # Others are served all the while.
    for _ in range(20):
        done = own.call("POST", f"{box}/run", {"command": "echo served"})[1]
        assert done["stdout"] == "served\n"
    assert resident(own) - before < 30 * 2**20
    assert own.call("GET", f"{box}/processes/{process['pid']}")[1]["state"] == "running"
    link.close()
    assert until(lambda: own.call("GET", f"{box}/files/stat?path=/over")[0] == 200)


def test_streams_of_changes_end_with_their_clients(own: Service) -> None:
    box = made(own)
    name = box.rpartition("/")[2]

    def watches() -> int:
        links = [str(p.readlink()) for p in Path(f"/proc/{own.process.pid}/fd").iterdir()]
        return links.count("anon_inode:inotify")

    said = json.dumps({"path": "/tmp", "recursive": True}).encode()
    body = b"\0" + len(said).to_bytes(4, "big") + said
    before = watches()
    links = []
    for _ in range(3):
        link = socket.create_connection(("127.0.0.1", own.port))
        link.sendall(
            "POST /filesystem.Filesystem/WatchDir HTTP/1.1\r\nHost: x\r\n"
            f"E2b-Sandbox-Id: {name}\r\n"
            f"X-API-Key: {TOKEN}\r\nContent-Type: application/connect+json\r\n"
            f"Content-Length: {len(body)}\r\n\r\n".encode()
            + body
        )
        assert link.recv(100).startswith(b"HTTP/1.1 200")
        links.append(link)
    assert watches() == before + 3
    for link in links:
        link.close()
    assert until(lambda: watches() == before)


def test_time_stands_still_while_paused(own: Service) -> None:
    box = made(own)
    _, process = own.call(
        "POST", f"{box}/processes", {"command": "sleep 1; exit 5", "timeout": 2.5}
    )
    one = f"{box}/processes/{process['pid']}"
    assert own.call("POST", f"{box}/pause")[0] == 200
    assert not until(lambda: own.call("GET", one)[1]["state"] == "ended", 3)
    assert own.call("POST", f"{box}/resume", {"seconds": 60})[0] == 200
    assert until(lambda: own.call("GET", one)[1]["state"] == "ended")
    assert own.call("GET", one)[1]["exit_code"] in (5, 137)  # the latter on a very slow machine


def resident(service: Service) -> int:
    return int(Path(f"/proc/{service.process.pid}/statm").read_text().split()[1]) * 4096


def test_many_starts_do_not_grow(own: Service) -> None:
    def descriptors() -> int:
        return len(list(Path(f"/proc/{own.process.pid}/fd").iterdir()))

    box = made(own)
    name = box.rpartition("/")[2]

    def once() -> None:
        other = made(own)
        assert own.call("POST", f"{other}/run", {"command": "echo x"})[1]["stdout"] == "x\n"
        assert own.call("DELETE", other)[0] == 204
        assert own.call("POST", f"{box}/run", {"command": ["nothing"]})[0] == 400
        assert own.call("PUT", f"{box}/files/content?path=/x", b"x" * 10_000)[0] == 200
        assert own.call("GET", f"{box}/files/content?path=/nothing")[0] == 404
        terminal = {"command": "true", "terminal": {}}
        assert own.call("POST", f"{box}/processes", terminal)[0] == 201
        watched = own.call(
            "POST",
            "/filesystem.Filesystem/CreateWatcher",
            {"path": "/tmp"},
            E2b_Sandbox_Id=name,
            Content_Type="application/json",
        )
        assert watched[0] == 200
        removed = own.call(
            "POST",
            "/filesystem.Filesystem/RemoveWatcher",
            watched[1],
            E2b_Sandbox_Id=name,
            Content_Type="application/json",
        )
        assert removed[0] == 200

    for _ in range(5):
        once()
    assert until(lambda: all(p["state"] == "ended" for p in own.call("GET", f"{box}/processes")[1]))
    before = descriptors()
    for _ in range(25):
        once()
    assert until(lambda: descriptors() <= before + 2)
    assert len(own.call("GET", f"{box}/processes")[1]) <= 40


def test_too_many_sandboxes_are_refused() -> None:
    one = Service("--max-sandboxes", "2")
    try:
        boxes = [made(one) for _ in range(2)]
        status, error = one.call("POST", "/v1/sandboxes", {})
        assert (status, error["error_code"]) == (429, "resource_exhausted")
        one.call("DELETE", boxes[0])
        made(one)
    finally:
        one.stop()
