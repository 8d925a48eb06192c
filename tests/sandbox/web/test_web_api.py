"""Our own API: sandboxes, programs, files, streams; who may; what is refused."""

from __future__ import annotations

import asyncio
import base64
import json
import os
import re
import socket
import stat
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import aiohttp
import jsonschema
import pytest
from tests.sandbox.conftest import until
from tests.sandbox.web.conftest import TOKEN, OverSocket, Service

from tegu.cli import main

ROOT = Path(__file__).parents[3]


@pytest.fixture
def box(service: Service) -> Iterator[str]:
    status, made = service.call("POST", "/v1/sandboxes", {"timeout": 120, "env": {"A": "b"}})
    assert status == 201, made
    yield f"/v1/sandboxes/{made['id']}"
    service.call("DELETE", f"/v1/sandboxes/{made['id']}")


@pytest.fixture(scope="module")
def description(service: Service) -> Any:
    status, found = service.call("GET", "/openapi.json", token=None)
    assert status == 200
    return found


def fits(description: Any, name: str, value: Any) -> None:
    schema = {"$ref": f"#/components/schemas/{name}", "components": description["components"]}
    jsonschema.Draft202012Validator(schema).validate(value)


def test_life_of_a_sandbox(service: Service, description: Any) -> None:
    asked = {
        "template": "base",
        "timeout": 50,
        "disk": "10M",
        "pids": 50,
        "metadata": {"k": "v"},
        "on_timeout": "pause",
        "wake": True,
    }
    status, made = service.call("POST", "/v1/sandboxes", asked)
    assert status == 201
    fits(description, "Sandbox", made)
    assert (made["disk"], made["pids"], made["state"]) == (10 * 2**20, 50, "running")
    one = f"/v1/sandboxes/{made['id']}"
    status, found = service.call("GET", one)
    assert (status, found) == (200, {k: v for k, v in made.items() if k != "token"})
    status, listed = service.call("GET", "/v1/sandboxes?limit=1000")
    fits(description, "Page", listed)
    assert made["id"] in [s["id"] for s in listed["sandboxes"]]
    status, later = service.call("POST", f"{one}/timeout", {"seconds": 500})
    assert later["ends"] > made["ends"] + 400
    status, paused = service.call("POST", f"{one}/pause")
    assert (status, paused["state"], paused["ends"]) == (200, "paused", None)
    status, again = service.call("POST", f"{one}/pause")
    assert (status, again["error_code"]) == (409, "failed_precondition")
    # A call wakes it, as it was made so.
    assert service.call("POST", f"{one}/run", {"command": "echo up"})[1]["stdout"] == "up\n"
    assert service.call("GET", one)[1]["state"] == "running"
    service.call("POST", f"{one}/pause")
    status, resumed = service.call("POST", f"{one}/resume", {"seconds": 60})
    assert (status, resumed["state"]) == (200, "running")
    status, samples = service.call("GET", f"{one}/metrics")
    fits(description, "Sample", samples[-1])
    assert samples[-1]["disk_total"] == 10 * 2**20 and samples[-1]["memory"] > 0
    status, log = service.call("GET", f"{one}/log")
    fits(description, "LogLine", log[0])
    assert [
        line["text"] for line in log if "used" in line["text"] or "resumed" in line["text"]
    ] == [
        *("paused", "resumed"),
        *("paused", "resumed"),
    ]
    assert service.call("DELETE", one)[0] == 204
    status, error = service.call("GET", one)
    fits(description, "Error", error)
    assert (status, error["message"]) == (
        404,
        f"The sandbox {made['id']} was not found: it was killed",
    )


def test_listing_by_pages(service: Service) -> None:
    made = [service.call("POST", "/v1/sandboxes", {"timeout": 60})[1]["id"] for _ in range(3)]
    found, after = [], ""
    while True:
        status, page = service.call("GET", f"/v1/sandboxes?limit=2{after}")
        assert status == 200 and len(page["sandboxes"]) <= 2
        found += [s["id"] for s in page["sandboxes"]]
        if page["next"] is None:
            break
        after = f"&after={page['next']}"
    assert [i for i in found if i in made] == made
    for name in made:
        service.call("DELETE", f"/v1/sandboxes/{name}")


def test_run(service: Service, box: str, description: Any) -> None:
    status, done = service.call(
        "POST",
        f"{box}/run",
        {"command": "cat; echo $A $B; echo oops >&2; exit 3", "stdin": "héllo ", "env": {"B": "c"}},
    )
    fits(description, "Result", done)
    assert (status, done["exit_code"], done["stdout"], done["stderr"]) == (
        200,
        3,
        "héllo b c\n",
        "oops\n",
    )
    data = base64.b64encode(bytes(range(256))).decode()
    status, done = service.call("POST", f"{box}/run", {"command": ["cat"], "stdin_base64": data})
    assert done["stdout_base64"] == data and "stdout" not in done
    status, done = service.call("POST", f"{box}/run", {"command": "sleep 630", "timeout": 0.3})
    assert (done["timed_out"], done["exit_code"], done["signal"]) == (True, 137, 9)
    status, done = service.call(
        "POST", f"{box}/run", {"command": "head -c 5000000 /dev/zero", "max_output": 10}
    )
    assert (done["truncated"], done["stdout"]) == (True, "\0" * 10)
    status, error = service.call("POST", f"{box}/run", {"command": ["no-such-program"]})
    assert (status, error["error_code"]) == (400, "invalid_argument")
    assert "cannot start no-such-program" in error["message"]


def test_giving_a_run_up_kills_it(service: Service, box: str) -> None:
    host = socket.create_connection(("127.0.0.1", service.port))
    body = json.dumps({"command": "echo up > /up; sleep 631"})
    host.sendall(
        f"POST {box}/run HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {TOKEN}\r\n"
        f"Content-Length: {len(body)}\r\n\r\n{body}".encode()
    )
    assert until(lambda: service.call("GET", f"{box}/files/stat?path=/up")[0] == 200)
    host.close()
    assert until(
        lambda: [p["state"] for p in service.call("GET", f"{box}/processes")[1]] == ["ended"]
    )
    left = service.call("POST", f"{box}/run", {"command": "cat /proc/[0-9]*/cmdline"})[1]
    assert "sleep\0" not in left["stdout"]


def test_processes(service: Service, box: str, description: Any) -> None:
    script = "trap 'echo term; exit 7' TERM; read a; echo got $a; while :; do sleep 0.05; done"
    asked = {"command": script}
    status, process = service.call("POST", f"{box}/processes", {**asked, "tag": "mine"})
    fits(description, "Process", process)
    assert (status, process["state"], process["tag"]) == (201, "running", "mine")
    one = f"{box}/processes/{process['pid']}"

    async def attach() -> tuple[list[Any], bytes]:
        said: list[Any] = []
        data = b""
        headers = {"Authorization": f"Bearer {TOKEN}"}
        async with (
            aiohttp.ClientSession(headers=headers) as session,
            session.ws_connect(f"{service.url}{one}/stream") as ws,
        ):
            await ws.send_bytes(b"\x00it\n")
            async for message in ws:
                if message.type == aiohttp.WSMsgType.BINARY:
                    assert message.data[0] == 1
                    data += message.data[1:]
                    if data == b"got it\n":
                        await ws.send_str("nonsense")
                        await ws.send_json({"signal": "NOPE"})
                        await ws.send_json({"signal": "TERM"})
                else:
                    said.append(json.loads(message.data))
        return said, data

    said, data = asyncio.run(attach())
    assert data == b"got it\nterm\n"
    assert said[0] == {"started": process["pid"]}
    assert [s["refused"]["error_code"] for s in said[1:-1]] == ["invalid_argument"] * 2
    assert said[-1]["ended"]["exit_code"] == 7
    assert service.call("GET", one)[1]["exit_code"] == 7
    status, error = service.call("POST", f"{one}/signal", {"signal": "TERM"})
    assert (status, error["error_code"]) == (404, "not_found")


def test_reattaching_and_input_by_request(service: Service, box: str) -> None:
    _, process = service.call("POST", f"{box}/processes", {"command": "cat; exit 4"})
    one = f"{box}/processes/{process['pid']}"
    assert service.call("POST", f"{one}/stdin", b"first ")[0] == 204
    assert service.call("POST", f"{one}/stdin?end=true", b"second")[0] == 204
    assert until(lambda: service.call("GET", one)[1]["state"] == "ended")
    assert service.call("POST", f"{one}/stdin", b"late")[0] == 404

    async def attach() -> list[Any]:
        headers = {"X-API-Key": TOKEN}
        async with (
            aiohttp.ClientSession(headers=headers) as session,
            session.ws_connect(f"{service.url}{one}/stream") as ws,
        ):
            return [m.data async for m in ws]

    heard = asyncio.run(attach())
    assert b"".join(h[1:] for h in heard if isinstance(h, bytes)) == b"first second"
    assert json.loads(heard[-1])["ended"]["exit_code"] == 4


def test_terminals(service: Service, box: str) -> None:
    asked = {"command": "stty size; read x; stty size", "terminal": {"rows": 11, "columns": 22}}
    _, process = service.call("POST", f"{box}/processes", asked)
    one = f"{box}/processes/{process['pid']}"
    assert service.call("POST", f"{one}/size", {"rows": 33, "columns": 44})[0] == 204
    assert service.call("POST", f"{one}/stdin", b"x\n")[0] == 204
    assert until(lambda: service.call("GET", one)[1]["state"] == "ended")

    async def attach() -> bytes:
        headers = {"X-API-Key": TOKEN}
        async with (
            aiohttp.ClientSession(headers=headers) as session,
            session.ws_connect(f"{service.url}{one}/stream") as ws,
        ):
            return b"".join([m.data[1:] async for m in ws if isinstance(m.data, bytes)])

    assert asyncio.run(attach()).endswith(b"33 44\r\n")
    asked["terminal"] = {"rows": 0, "columns": 1}
    assert service.call("POST", f"{box}/processes", asked)[0] == 400


def test_output_that_nobody_hears_does_not_stop_a_program(service: Service, box: str) -> None:
    _, process = service.call(
        "POST", f"{box}/processes", {"command": "head -c 5000000 /dev/zero; echo end"}
    )
    one = f"{box}/processes/{process['pid']}"
    assert until(lambda: service.call("GET", one)[1]["state"] == "ended")
    assert service.call("GET", one)[1]["lost"] >= 5_000_000 - 2**20


def test_files(service: Service, box: str, description: Any) -> None:
    data = os.urandom(700_000)
    status, written = service.call("PUT", f"{box}/files/content?path=/d/e/f%20g", data)
    fits(description, "File", written)
    assert (status, written["size"], written["owner"]) == (200, 700_000, "root")
    assert service.call("GET", f"{box}/files/content?path=/d/e/f%20g") == (200, data)
    part = service.call("GET", f"{box}/files/content?path=/d/e/f%20g", Range="bytes=10-19")
    assert part == (206, data[10:20])
    part = service.call("GET", f"{box}/files/content?path=/d/e/f%20g", Range="bytes=-5")
    assert part == (206, data[-5:])
    assert (
        service.call("GET", f"{box}/files/content?path=/d/e/f%20g", Range="bytes=900000-")[0] == 416
    )
    status, made = service.call("POST", f"{box}/files/directory", {"path": "/d/h"})
    assert (status, made["kind"]) == (200, "directory")
    status, moved = service.call(
        "POST", f"{box}/files/move", {"from": "/d/e/f g", "to": "/new/place"}
    )
    assert (status, moved["path"]) == (200, "/new/place")
    service.call("POST", f"{box}/run", {"command": "ln -s /nowhere /d/link; mkfifo /d/fifo"})
    status, found = service.call("GET", f"{box}/files?path=/d&depth=3")
    assert [(f["path"], f["kind"], f["target"]) for f in found] == [
        ("/d/e", "directory", None),
        ("/d/fifo", "other", None),
        ("/d/h", "directory", None),
        ("/d/link", "link", "/nowhere"),
    ]
    assert service.call("GET", f"{box}/files/content?path=/d/fifo")[0] == 400
    assert service.call("GET", f"{box}/files/stat?path=/")[1]["kind"] == "directory"
    assert service.call("DELETE", f"{box}/files?path=/d")[0] == 204
    assert service.call("GET", f"{box}/files/stat?path=/d")[0] == 404
    assert service.call("DELETE", f"{box}/files?path=/")[0] == 400


@pytest.mark.slow
def test_directories_deeper_than_calls_nest(service: Service, box: str) -> None:
    program = "import os\nfor _ in range(1020): os.mkdir('d'); os.chdir('d')"
    made = {"command": ["python3", "-c", program], "cwd": "/tmp"}
    assert service.call("POST", f"{box}/run", made)[1]["exit_code"] == 0
    status, found = service.call("GET", f"{box}/files?path=/tmp&depth=9999")
    assert status == 200 and len(found) == 1020
    assert service.call("DELETE", f"{box}/files?path=/tmp/d")[0] == 204
    assert service.call("GET", f"{box}/files?path=/tmp") == (200, [])


def test_watching(service: Service, box: str) -> None:
    service.call("POST", f"{box}/files/directory", {"path": "/w/deep"})

    async def watch() -> list[Any]:
        heard: list[Any] = []
        async with (
            aiohttp.ClientSession(headers={"X-API-Key": TOKEN}) as session,
            session.ws_connect(f"{service.url}{box}/files/watch?path=/w&recursive=true") as ws,
        ):
            async for message in ws:
                said = json.loads(message.data)
                if "watching" in said:
                    url = f"{service.url}{box}/run"
                    body = {"command": "echo 1 > /w/deep/x; rm -r /w"}
                    async with session.post(url, json=body) as answer:
                        assert answer.status == 200
                heard.append(said)
        return heard

    heard = asyncio.run(watch())
    assert heard[0] == {"watching": "/w"}
    assert {"name": "deep/x", "kind": "create"} in heard
    assert {"name": "deep/x", "kind": "remove"} in heard
    assert heard[-1]["error"]["message"] == "/w: it was removed"


@pytest.mark.parametrize(
    ("path", "body", "message"),
    [
        ("/sandboxes", b"{", "the body is no JSON"),
        ("/sandboxes", b"[]", "not a JSON object"),
        ("/sandboxes", {"tmeout": 1}, "tmeout: there is no such field"),
        ("/sandboxes", {"timeout": "1"}, "timeout: .* is not a number"),
        ("/sandboxes", {"timeout": 0}, "timeout: 0 is not above 0"),
        ("/sandboxes", {"timeout": 1e9}, "at most 86400 seconds"),
        ("/sandboxes", {"template": "x"}, "template 'x' was not found"),
        ("/sandboxes", {"disk": "many"}, "disk: 'many' is not a size"),
        ("/sandboxes", {"disk": "1T"}, "disk: .* is more than the service gives"),
        ("/sandboxes", {"class": "paper"}, "class: 'paper' is none of"),
        ("/sandboxes", {"class": "tee"}, "unsupported: "),
        ("/sandboxes", {"on_timeout": "sleep"}, "on_timeout: .* is none of kill, pause"),
        ("/sandboxes", {"env": {"A": 1}}, "env: .* is not a table of texts"),
        ("/sandboxes/nope/run", {"command": "true"}, "The sandbox nope was not found"),
        ("BOX/run", {}, "command: it is missing"),
        ("BOX/run", {"command": []}, "argv: there is no program"),
        ("BOX/run", {"command": "a\0b"}, "NUL"),
        ("BOX/run", {"command": "a", "env": {"A=B": ""}}, "is not the name of a variable"),
        ("BOX/run", {"command": "x" * 200_000}, "are more than"),
        ("BOX/run", {"command": "cat", "stdin": "a", "stdin_base64": "YQ=="}, "one of them"),
        ("BOX/run", {"command": "cat", "stdin_base64": "!"}, "is not base64"),
        ("BOX/processes/1/signal", {"signal": "TERM"}, "there is no process 1"),
        ("BOX/processes/x/signal", {"signal": "TERM"}, "is no process id"),
        ("BOX/files/directory", {"path": "/usr/x"}, "/usr/x: "),
        ("BOX/files/directory", {"path": "a\0b"}, "is no path"),
        ("BOX/files/move", {"from": "/nothing", "to": "/x"}, "/nothing: No such file"),
        ("BOX/nonsense", {}, "Not Found"),
        ("BOX/run", b"x" * (33 * 2**20), "exceed"),
    ],
)
def test_wrong_requests(service: Service, box: str, path: str, body: Any, message: str) -> None:
    where = path.replace("BOX", box) if "BOX" in path else f"/v1{path}"
    status, error = service.call("POST", where, body)
    assert 400 <= status < 600 and status != 500, error
    assert error["code"] == status
    assert re.search(message, error["message"]), error


def test_who_may(service: Service, box: str) -> None:
    for token in (None, "", "wrong", TOKEN + "x", "é"):
        for path in ("/v1/sandboxes", box, "/sandboxes", "/v1/nothing"):
            status, error = service.call(
                "GET", path, token=token and token.encode().decode("latin1")
            )
            assert (status, error["error_code"]) == (401, "unauthenticated")
    assert service.call("GET", "/v1/sandboxes", token=None, X_API_Key=TOKEN)[0] == 200
    # A sandbox's own token opens that one, and nothing else.
    one, other = (service.call("POST", "/v1/sandboxes", {"timeout": 60})[1] for _ in range(2))
    mine = {"E2b_Sandbox_Id": one["id"], "X_Access_Token": one["token"]}
    assert service.call("GET", "/envs", token=None, **mine)[0] == 200
    assert (
        service.call("GET", "/envs", token=None, **{**mine, "E2b_Sandbox_Id": other["id"]})[0]
        == 401
    )
    assert service.call("GET", f"/v1/sandboxes/{one['id']}", token=None, **mine)[0] == 401
    assert service.call("GET", f"/v1/sandboxes/{one['id']}", token=one["token"])[0] == 401
    for made in (one, other):
        service.call("DELETE", f"/v1/sandboxes/{made['id']}")


def test_sandboxes_by_host_name(service: Service) -> None:
    status, made = service.call("POST", "/v1/sandboxes", {"timeout": 60})
    host = f"49983-{made['id']}.sandbox.example"
    access = {"X_Access_Token": made["token"]}
    assert service.call("GET", "/health", token=None, Host=host)[0] == 204
    assert service.call("GET", "/envs", token=None, Host=host, **access)[0] == 200
    other = host.replace("49983", "8080")
    status, error = service.call("GET", "/health", token=None, Host=other, **access)
    assert status == 502 and "port is not open" in error["message"]
    service.call("DELETE", f"/v1/sandboxes/{made['id']}")
    assert service.call("GET", "/health", token=None, Host=host)[0] == 502


def test_the_unix_socket_asks_for_no_token(service: Service) -> None:
    assert stat.S_IMODE(service.socket.stat().st_mode) == 0o600
    link = OverSocket(service.socket)
    link.request("GET", "/v1/health")
    answer = link.getresponse()
    assert answer.status == 200 and "base" in json.loads(answer.read())["templates"]


def test_the_description_is_that_of_the_documentation(description: Any) -> None:
    kept = json.loads((ROOT / "docs/sandbox-openapi.json").read_text())
    kept["info"]["version"] = description["info"]["version"]
    assert kept == description, (
        "renew it: python -m tegu.sandbox.web.openapi > docs/sandbox-openapi.json"
    )


def test_the_description_is_openapi(description: Any) -> None:
    assert description["openapi"].startswith("3.1")
    names = [o["operationId"] for p in description["paths"].values() for o in p.values()]
    assert len(names) == len(set(names)) > 20
    for schema in description["components"]["schemas"].values():
        jsonschema.Draft202012Validator.check_schema(schema)
    for path, methods in description["paths"].items():
        for method in methods.values():
            said = {p["name"] for p in method["parameters"] if p["in"] == "path"}
            assert said == set(re.findall(r"\{(\w+)\}", path))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--http", ":0"), "TCP is not served without a token"),
        (("--http", "here"), "'here' is no address"),
        (("--http", "127.0.0.1:99999"), "is no address"),
        (("--http", "unix:relative"), "the path of a socket is absolute"),
        (("--http", ":0", "--token-file", "DIR/none"), "there is no such file of tokens"),
        (("--http", ":0", "--token-file", "DIR/open"), "others may read it"),
        (("--http", ":0", "--token-file", "DIR/short"), "token 1 is no token"),
        (("--http", ":0", "--token-file", "DIR/empty"), "there is no token in it"),
        (("--http", "unix:DIR/h", "--tls-cert", "DIR/short"), "belong together"),
        (
            ("--http", "unix:DIR/h", "--tls-cert", "DIR/short", "--tls-key", "DIR/no"),
            "no such file",
        ),
        (
            ("--http", "unix:DIR/h", "--tls-cert", "DIR/short", "--tls-key", "DIR/short"),
            "no certificate",
        ),
        (("--http", "unix:DIR/h", "--template", "x"), "is not NAME=DIR"),
        (("--http", "unix:DIR/h", "--template", "x=/nowhere"), "there is no such directory"),
        (("--http", "unix:DIR/h", "--memory", "lots"), "memory: 'lots' is not a size"),
        (("--domain", "x"), "these options are for --http"),
    ],
)
def test_wrong_settings(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], options: tuple[str, ...], message: str
) -> None:
    files = {"open": "token1234", "short": "x", "empty": "# no\n", "good": "token1234"}
    for name, text in files.items():
        (tmp_path / name).write_text(text)
        (tmp_path / name).chmod(0o644 if name == "open" else 0o600)
    words = [o.replace("DIR", str(tmp_path)) for o in options]
    assert main(["sandbox", "serve", "--socket", str(tmp_path / "s"), *words]) == 2
    said = capsys.readouterr().err
    assert message in said
    assert len(said.strip().splitlines()) <= 3


def test_an_address_that_is_not_ours(service: Service) -> None:
    command = [sys.executable, "-m", "tegu", "sandbox", "serve", "--socket", service.supervisor]
    tokens = service.directory / "tokens"
    for address in ("192.0.2.1:1", f"127.0.0.1:{service.port}", f"unix:{service.socket}"):
        done = subprocess.run(
            [*command, "--http", address, "--token-file", tokens],
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )
        assert done.returncode == 20
        assert re.search(r"cannot listen on|another service listens", done.stderr)
        assert "Traceback" not in done.stderr
    assert service.call("GET", "/v1/health")[0] == 200
