"""Networks of sandboxes over HTTP: what the service gives, and E2B's words for it."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from typing import Any

import pytest
from tests.sandbox.conftest import Net
from tests.sandbox.web.conftest import TOKEN, Service
from tests.sandbox.world import ALLOWED, HOST, OTHER

from tegu.errors import UnsupportedError
from tegu.sandbox.web.fault import Fault
from tegu.sandbox.web.reach import from_e2b, permitted, to_e2b


@pytest.mark.parametrize(
    ("base", "asked", "given"),
    [
        ("none", "none", "none"),
        ("full", "none", "none"),
        ("full", "full", "full"),
        ("full", ("a.example", "10.0.0.0/8:443"), ("a.example", "10.0.0.0/8:443")),
        ("full", ("full", "!10.0.0.0/8"), ("full", "!10.0.0.0/8")),
        (("full", "!10.0.0.0/8"), ("a.example",), ("a.example", "!10.0.0.0/8")),
        (("full", "!10.0.0.0/8"), ("10.0.0.0/7",), ("10.0.0.0/7", "!10.0.0.0/8")),
        (("full", "!10.0.0.0/8"), "full", ("full", "!10.0.0.0/8")),
        (("a.example", "b.example"), ("b.example",), ("b.example",)),
        (("full", "169.254.169.254"), ("169.254.169.254",), ("169.254.169.254",)),
    ],
)
def test_what_is_given(base: Any, asked: Any, given: Any) -> None:
    assert permitted(base, asked) == given


@pytest.mark.parametrize(
    ("base", "asked"),
    [
        ("none", "full"),
        ("none", ("a.example",)),
        (("a.example",), "full"),
        (("a.example",), ("b.example",)),
        (("a.example",), ("a.example:443",)),
        ("full", ("169.254.169.254",)),
        ("full", ("a.example", "169.254.0.0/16")),
        (("full", "!10.0.0.0/8"), ("10.1.0.0/16",)),
        (("full", "!10.0.0.0/8"), ("10.0.0.0/8",)),
    ],
)
def test_what_is_more_than_there_is(base: Any, asked: Any) -> None:
    with pytest.raises(Fault, match="network: "):
        permitted(base, asked)


@pytest.mark.parametrize(
    ("internet", "network", "said"),
    [
        (None, None, None),
        (True, None, "full"),
        (False, None, "none"),
        (False, {"allowOut": ["a.example"]}, ("a.example",)),
        (None, {}, "full"),
        (None, {"allowOut": ["a.example"]}, ("a.example",)),
        (None, {"allowOut": ["1.1.1.1"], "denyOut": ["0.0.0.0/0"]}, ("1.1.1.1",)),
        (None, {"denyOut": ["0.0.0.0/0"]}, "none"),
        (None, {"denyOut": ["8.8.8.8", "10.0.0.0/8"]}, ("full", "!8.8.8.8", "!10.0.0.0/8")),
        (True, {"allowPublicTraffic": False}, "full"),
        (None, {"allowOut": ["0.0.0.0/0"]}, "full"),
    ],
)
def test_e2bs_words(internet: Any, network: Any, said: Any) -> None:
    assert from_e2b(internet, network) == said


@pytest.mark.parametrize(
    ("network", "kind", "why"),
    [
        ({"denyOut": ["a.example"]}, Fault, "only addresses"),
        ({"allowOut": ["a b"]}, Fault, "no name"),
        ({"allowOut": "a"}, Fault, "allowOut"),
        ({"denyOut": ["!1.1.1.1"]}, Fault, "no address"),
        ({"x": 1}, Fault, "x: there is no such field"),
        ({"egressProxy": {}}, UnsupportedError, "egressProxy"),
        ({"dnsServers": []}, UnsupportedError, "dnsServers"),
        ({"allowPublicTraffic": True}, UnsupportedError, "allowPublicTraffic"),
        ([], Fault, "no"),
    ],
)
def test_e2bs_words_that_are_refused(network: Any, kind: Any, why: str) -> None:
    with pytest.raises(kind, match=why):
        from_e2b(None, network)


def test_what_e2b_is_shown() -> None:
    assert to_e2b("none")["allowInternetAccess"] is False
    assert to_e2b(("full", "!10.0.0.0/8")) == {
        "allowInternetAccess": True,
        "network": {"allowOut": [], "denyOut": ["10.0.0.0/8"]},
    }
    shown = to_e2b(("a.example",))["network"]
    assert shown == {"allowOut": ["a.example"], "denyOut": ["0.0.0.0/0"]}


@pytest.fixture(scope="module")
def open_service(net: Net) -> Iterator[Service]:
    one = Service("--network", "full", within=net.host.enter())
    yield one
    one.stop()


def ask(net: Net, service: Service, script: str) -> list[str]:
    """Run a script beside the service, where its port can be reached; returns its lines."""
    done = subprocess.run(
        [*net.host.enter(), sys.executable, "-c", script],
        capture_output=True,
        text=True,
        env={
            **os.environ,
            **{"E2B_API_URL": service.url, "E2B_SANDBOX_URL": service.url, "E2B_API_KEY": TOKEN},
            **{"URL": service.url, "TOKEN": TOKEN},
        },
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()


FETCH = (
    "python3 -c 'import socket, sys; "
    "s = socket.create_connection((sys.argv[1], 80), 30); print(s.recv(99).decode())'"
)


@pytest.mark.slow
def test_the_published_e2b_client(net: Net, open_service: Service) -> None:
    pytest.importorskip("e2b", reason="E2B's client is not installed")
    script = f"""
import e2b
def fetch(box, host):
    try:
        return box.commands.run({FETCH!r} + " " + host).stdout.split()[0]
    except e2b.CommandExitException as e:
        return e.stderr.strip().splitlines()[-1].split(":")[0]
for options in ({{}}, {{"allow_internet_access": True}}, {{"allow_internet_access": False}},
                {{"network": {{"allow_out": ["allowed.example"],
                               "deny_out": lambda ctx: [ctx.all_traffic]}}}},
                {{"network": {{"deny_out": ["{OTHER}/32"]}}}}):
    box = e2b.Sandbox.create(**options)
    about = box.get_info()
    print(about.allow_internet_access, *(fetch(box, h) for h in ("allowed.example", "{OTHER}")))
    box.kill()
for refused in ({{"allow_out": ["169.254.169.254"]}}, {{"allow_out": ["{HOST}"]}}):
    try:
        e2b.Sandbox.create(network=refused); print("made")
    except e2b.SandboxException as e: print(e)
"""
    lines = ask(net, open_service, script)
    assert lines[:5] == [
        f"True {ALLOWED} {OTHER}",
        f"True {ALLOWED} {OTHER}",
        "False socket.gaierror OSError",
        f"True {ALLOWED} ConnectionRefusedError",
        f"True {ALLOWED} ConnectionRefusedError",
    ]
    assert "network: '169.254.169.254' is more than the service gives" in lines[5]
    assert f"network: '{HOST}' is more than the service gives" in lines[6]


def test_our_own_api(net: Net, open_service: Service) -> None:
    script = f"""
import json, os, urllib.request, urllib.error
def call(path, body):
    r = urllib.request.Request(os.environ["URL"] + path, json.dumps(body).encode(),
                               {{"Authorization": "Bearer " + os.environ["TOKEN"]}})
    try:
        return json.load(urllib.request.urlopen(r))
    except urllib.error.HTTPError as e:
        return json.load(e)
for network in (["allowed.example"], "none", "allow:169.254.169.254", "half"):
    made = call("/v1/sandboxes", {{"network": network}})
    print(made.get("network", made["message"] if "message" in made else ""))
    if "id" in made:
        body = {{"command": {FETCH!r} + " allowed.example"}}
        done = call("/v1/sandboxes/" + made["id"] + "/run", body)
        print(done["exit_code"], done["stdout"].split())
"""
    # Lines of which the last say what was refused.
    lines = ask(net, open_service, script)
    assert lines[:4] == ["['allowed.example']", f"0 ['{ALLOWED}', '80']", "none", "1 []"]
    assert "more than the service gives" in lines[4]
    assert "network: 'half' is neither none, full nor allow" in lines[5]


def test_a_service_without(service: Service) -> None:
    status, error = service.call("POST", "/v1/sandboxes", {"network": "full"})
    assert (status, error["message"]) == (400, "network: this service gives none")
    assert "--network" in error["hint"]
    status, made = service.call("POST", "/v1/sandboxes", {})
    assert (status, made["network"]) == (201, "none")
    service.call("DELETE", f"/v1/sandboxes/{made['id']}")
