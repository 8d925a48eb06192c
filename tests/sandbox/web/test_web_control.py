"""E2B's wire itself: what its present clients do not ask for, and what is wrong on it."""

from __future__ import annotations

import time
from collections.abc import Iterator
from typing import Any

import pytest
from tests.sandbox.web.conftest import TOKEN, Service


@pytest.fixture
def box(service: Service) -> Iterator[Any]:
    status, made = service.call("POST", "/sandboxes", {"templateID": "base", "timeout": 100})
    assert status == 201, made
    yield made
    service.call("DELETE", f"/sandboxes/{made['sandboxID']}")


def inside(service: Service, box: Any, path: str, body: Any, **headers: str) -> tuple[int, Any]:
    return service.call(
        "POST",
        path,
        body,
        token=None,
        **{
            "E2b_Sandbox_Id": box["sandboxID"],
            "X_Access_Token": box["envdAccessToken"],
            "Content_Type": "application/json",
            **headers,
        },
    )


def test_the_first_version_of_the_control_plane(service: Service, box: Any) -> None:
    one = f"/sandboxes/{box['sandboxID']}"
    assert {"templateID", "sandboxID", "clientID", "envdVersion"} <= box.keys()
    status, listed = service.call("GET", "/sandboxes?state=running,paused")
    assert status == 200
    mine = next(s for s in listed if s["sandboxID"] == box["sandboxID"])
    assert mine["cpuCount"] >= 1 and mine["memoryMB"] > 0 and mine["diskSizeMB"] == 256
    # Some clients append a part of their own to the id.
    assert service.call("GET", f"{one}-client")[1]["state"] == "running"
    end = service.call("GET", one)[1]["endAt"]
    assert service.call("POST", f"{one}/refreshes", {"duration": 1})[0] == 204
    assert service.call("GET", one)[1]["endAt"] == end  # it is longer already
    assert service.call("POST", f"{one}/refreshes", {"duration": 5000})[0] == 204
    assert service.call("GET", one)[1]["endAt"] > end
    assert service.call("POST", f"{one}/resume", {})[0] == 409
    assert service.call("POST", f"{one}/pause")[0] == 204
    assert service.call("POST", f"{one}/timeout", {"timeout": 5})[0] == 409
    status, resumed = service.call("POST", f"{one}/resume", {"timeout": 50})
    assert (status, resumed["sandboxID"]) == (201, box["sandboxID"])
    now = int(time.time())
    status, samples = service.call("GET", f"{one}/metrics?start={now - 60}&end={now + 60}")
    assert status == 200 and samples[-1]["diskTotal"] == 256 * 2**20
    assert service.call("GET", f"{one}/metrics?start={now + 600}") == (200, [])
    names = f"{box['sandboxID']},nobody"
    status, many = service.call("GET", f"/sandboxes/metrics?sandbox_ids={names}")
    assert list(many["sandboxes"]) == [box["sandboxID"]]
    lines = [entry["line"] for entry in service.call("GET", f"{one}/logs")[1]["logs"]]
    assert lines == ["started", "paused", "resumed"]
    entries = service.call("GET", f"/v2{one}/logs")[1]["logs"]
    assert [e["message"] for e in entries] == lines
    templates = service.call("GET", "/templates")[1]
    assert [t["templateID"] for t in templates] == ["base"] and templates[0]["spawnCount"] >= 1
    # A timeout of 0 ends it, as E2B has it.
    assert service.call("POST", f"{one}/timeout", {"timeout": 0})[0] == 204
    status, error = service.call("GET", one)
    assert status == 404 and "its timeout was set to 0" in error["message"]


@pytest.mark.parametrize(
    ("method", "path", "body", "status", "message"),
    [
        ("POST", "/sandboxes", {}, 400, "templateID: it is missing"),
        ("POST", "/v2/sandboxes", {"templateID": "x"}, 404, "template 'x' was not found"),
        ("POST", "/sandboxes", {"templateID": "base", "timeout": -1}, 400, "timeout: -1"),
        ("POST", "/sandboxes", {"templateID": "base", "metadata": {"a": 1}}, 400, "metadata"),
        ("POST", "/sandboxes", {"templateID": "base", "mcp": {"x": {}}}, 501, "mcp"),
        ("POST", "/sandboxes", {"templateID": "base", "network": {"x": 1}}, 400, "x: there is no"),
        ("POST", "/sandboxes", {"templateID": "base", "network": {"rules": {}}}, 501, "rules"),
        ("POST", "/sandboxes", {"templateID": "base", "autoResume": {"enabled": 1}}, 400, "auto"),
        ("GET", "/v2/sandboxes?state=dead", None, 400, "state"),
        ("GET", "/v2/sandboxes?limit=x", None, 400, "limit"),
        ("GET", "/v2/sandboxes?nextToken=x", None, 400, "nextToken"),
        ("GET", "/v2/sandboxes?startedAfter=x", None, 400, "startedAfter"),
        ("GET", "/sandboxes/nobody", None, 404, "was not found"),
        ("PUT", "/sandboxes/nobody/network", {}, 501, "unsupported: changes of a network"),
        ("POST", "/sandboxes/nobody/snapshots", {}, 501, "unsupported: snapshots"),
        ("GET", "/volumes", None, 501, "unsupported: volumes"),
        ("PATCH", "/sandboxes", {}, 405, "Method Not Allowed"),
    ],
)
def test_wrong_requests_to_the_control_plane(
    service: Service, method: str, path: str, body: Any, status: int, message: str
) -> None:
    found, error = service.call(method, path, body)
    assert (found, error["code"]) == (status, status)
    assert message in error["message"]


@pytest.mark.parametrize(
    ("path", "body", "headers", "status", "code"),
    [
        ("process.Process/SendInput", b"no", {}, 400, "invalid_argument"),
        ("process.Process/SendInput", {}, {}, 404, "not_found"),
        ("process.Process/SendInput", {"process": {"pid": -1}}, {}, 400, "invalid_argument"),
        ("process.Process/SendInput", {"process": {"tag": "x"}}, {}, 404, "not_found"),
        ("process.Process/SendSignal", {"process": {"pid": 9}}, {}, 404, "not_found"),
        ("filesystem.Filesystem/Stat", {"path": ""}, {}, 400, "invalid_argument"),
        ("filesystem.Filesystem/Stat", {"path": "/nothing"}, {}, 404, "not_found"),
        ("filesystem.Filesystem/MakeDir", {"path": "/tmp"}, {}, 409, "already_exists"),
        ("filesystem.Filesystem/MakeDir", {"path": "/etc/passwd/x"}, {}, 400, "invalid_argument"),
        ("filesystem.Filesystem/Remove", {"path": "/"}, {}, 400, "invalid_argument"),
        ("filesystem.Filesystem/GetWatcherEvents", {"watcherId": "x"}, {}, 404, "not_found"),
        (
            "filesystem.Filesystem/Stat",
            {"path": "/"},
            {"Authorization": "Basic bm9ib2R5Og=="},  # nobody:
            401,
            "unauthenticated",
        ),
        (
            "filesystem.Filesystem/Stat",
            {"path": "/"},
            {"Connect_Timeout_Ms": "soon"},
            400,
            "invalid_argument",
        ),
        (
            "filesystem.Filesystem/Stat",
            {"path": "/"},
            {"Connect_Content_Encoding": "br"},
            501,
            "unimplemented",
        ),
    ],
)
def test_wrong_calls_of_connect(
    service: Service, box: Any, path: str, body: Any, headers: Any, status: int, code: str
) -> None:
    found, error = inside(service, box, f"/{path}", body, **headers)
    assert (found, error["code"]) == (status, code), error


def test_other_codecs_are_refused_as_the_protocol_says(service: Service, box: Any) -> None:
    for path in ("filesystem.Filesystem/Stat", "process.Process/Start"):
        status, _ = inside(service, box, f"/{path}", b"\x0a\x01/", Content_Type="application/proto")
        assert status == 415


def test_a_call_has_its_own_deadline(service: Service, box: Any) -> None:
    data = b'{"path": "/tmp"}'
    body = b"\0" + len(data).to_bytes(4, "big") + data
    status, said = inside(
        service,
        box,
        "/filesystem.Filesystem/WatchDir",
        body,
        Content_Type="application/connect+json",
        Connect_Timeout_Ms="300",
        Keepalive_Ping_Interval="1",
    )
    assert status == 200
    assert said.startswith(b'\0\0\0\0\x0c{"start":{}}')
    assert b'"deadline_exceeded"' in said[said.rindex(b"\x02\0\0") :]


def test_what_a_sandbox_is_told_at_its_start(service: Service, box: Any) -> None:
    assert inside(service, box, "/init", {"envVars": {"LATE": "yes"}})[0] == 204
    run = {"command": "echo $LATE"}
    done = service.call("POST", f"/v1/sandboxes/{box['sandboxID']}/run", run)[1]
    assert done["stdout"] == "yes\n"
    assert inside(service, box, "/init", {"accessToken": "mine"})[0] == 400
    status, used = service.call(
        "GET",
        "/metrics",
        token=None,
        E2b_Sandbox_Id=box["sandboxID"],
        X_API_Key=TOKEN,
    )
    assert status == 200 and used["disk_total"] == 256 * 2**20
