"""What comes from outside: read, or refused by one clear line; never another exception."""

from __future__ import annotations

import asyncio
import base64
import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest
from aiohttp import StreamReader, web
from aiohttp.base_protocol import BaseProtocol
from hypothesis import given
from hypothesis import strategies as st
from multidict import CIMultiDict

from tegu.errors import UsageError
from tegu.sandbox.web import connect, gate, listing, schemas, transfer
from tegu.sandbox.web.fault import Fault
from tegu.sandbox.web.fields import Fields, from_json, read
from tegu.sandbox.web.program import signal_number
from tegu.sandbox.web.serve import parse_address
from tegu.sandbox.web.start import read_templates
from tegu.sandbox.web.tree import Tree

JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
    max_leaves=8,
)


@given(st.binary())
def test_json(data: bytes) -> None:
    try:
        from_json(data)
    except Fault as e:
        assert e.status == 400


def test_deep_json() -> None:
    with pytest.raises(Fault, match="no JSON"):
        from_json(b"[" * 100_000)


@given(JSON | st.fixed_dictionaries({}, optional={f.name: JSON for f in schemas.NEW_SANDBOX}))
def test_bodies(data: Any) -> None:
    try:
        said = read(data, schemas.NEW_SANDBOX)
    except Fault as e:
        assert e.status == 400
    else:
        assert set(said) <= {f.name for f in schemas.NEW_SANDBOX}


@given(JSON | st.dictionaries(st.sampled_from(["pid", "tag", "watcherId", "data"]), JSON))
def test_messages(data: Any) -> None:
    for ask in (
        lambda m: m.whole("pid"),
        lambda m: m.text("tag"),
        lambda m: m.text("watcher_id"),
        lambda m: m.data("data"),
        lambda m: m.table("data"),
        lambda m: m.texts("data"),
        lambda m: m.flag("pid"),
        lambda m: m.message("data").message("tag").text("pid"),
    ):
        try:
            ask(Fields(data))
        except Fault as e:
            assert e.status == 400


@given(st.binary())
def test_bytes_of_messages(data: bytes) -> None:
    for encode in (base64.b64encode, base64.urlsafe_b64encode):
        text = encode(data).decode()
        assert Fields({"x": text}).data("x") == data
        assert Fields({"x": text.rstrip("=")}).data("x") == data


def test_names_of_messages() -> None:
    message = Fields({"includeEntry": True, "allow_network_mounts": True, "pid": "12"})
    assert message.flag("include_entry") and message.flag("allow_network_mounts")
    assert message.whole("pid") == 12


def stream(data: bytes) -> list[Any] | Fault:
    async def work() -> list[Any]:
        reader = StreamReader(BaseProtocol(asyncio.get_running_loop()), 2**16)
        reader.feed_data(data)
        reader.feed_eof()
        request = cast(web.Request, SimpleNamespace(content=reader))
        return [m async for m in connect._messages(request)]

    try:
        return asyncio.run(work())
    except Fault as e:
        return e


def test_streams() -> None:
    one = b"\0\0\0\0\x02{}"
    found = stream(one * 3 + b"\x02\0\0\0\x02{}" + b"ignored")
    assert isinstance(found, list) and len(found) == 3
    for wrong, code in (
        (one[:-1], "invalid_argument"),
        (one[:3], "invalid_argument"),
        (b"\x01" + one[1:], "unimplemented"),
        (b"\0\xff\xff\xff\xff", "resource_exhausted"),
        (b"\0\0\0\0\x02no", "invalid_argument"),
    ):
        fault = stream(one + wrong)
        assert isinstance(fault, Fault) and fault.code == code


@given(st.binary(max_size=64))
def test_any_stream(data: bytes) -> None:
    stream(data)


@given(
    st.text()
    | st.binary().map(lambda b: base64.urlsafe_b64encode(b).decode())
    | JSON.map(lambda j: base64.urlsafe_b64encode(json.dumps(j).encode()).decode())
)
def test_page_tokens(token: str) -> None:
    try:
        listing.page([], {"nextToken": token})
    except Fault as e:
        assert e.status == 400


@given(st.text())
def test_times_and_filters(text: str) -> None:
    listing.metadata(text)
    try:
        listing.when(text)
    except Fault as e:
        assert e.status == 400


def asked(path: str = "/files", host: str = "x", **headers: str) -> web.Request:
    return cast(
        web.Request,
        SimpleNamespace(
            headers=CIMultiDict({k.replace("_", "-"): v for k, v in headers.items()}),
            host=host,
            path=path,
            query={},
            method="GET",
        ),
    )


@given(st.text(), st.text())
def test_sandboxes_named_by_host_or_header(host: str, port: str) -> None:
    gate._named(asked(host=host))
    try:
        gate._named(asked(E2b_Sandbox_Id="a", E2b_Sandbox_Port=port))
    except Fault as e:
        assert e.status == 400


def test_which_sandbox_is_named() -> None:
    assert gate._named(asked(host="49983-abc1.example.org:443")) == (49983, "abc1")
    assert gate._named(asked(host="8080-abc1-old.example.org")) == (49983, "")
    assert gate._named(asked(E2b_Sandbox_Id="abc-client", E2b_Sandbox_Port="80")) == (80, "abc")
    assert gate._named(asked(host="localhost:49983")) == (49983, "")


@pytest.mark.parametrize(
    ("header", "name"),
    [
        ('form-data; name="file"; filename="/a/b"', "/a/b"),
        ('form-data; name="file"; filename="a%22b%0D%0Ac"', 'a"b\r\nc'),
        ('form-data; name="file"; filename="a\\\\b"', "a\\b"),
        ('form-data; name="file"; filename="é"', "é"),
        ('form-data; name="file"', "other"),
    ],
)
def test_names_of_uploads(header: str, name: str) -> None:
    part = SimpleNamespace(headers={"Content-Disposition": header}, filename="other")
    assert transfer._filename(cast(Any, part)) == name


@given(st.text(), st.integers(0, 2**40))
def test_ranges(text: str, size: int) -> None:
    try:
        start, length, partial = transfer._range(asked(Range=text), size)
    except web.HTTPRequestRangeNotSatisfiable:
        return
    assert start >= 0 and start + length <= size and (partial or length == size)


@given(st.text())
def test_paths(path: str) -> None:
    tree = Tree(cast(Any, None))
    try:
        found = tree.resolve(path)
    except Fault as e:
        assert e.status == 400
    else:
        assert found.startswith("/") and "\0" not in found


def test_which_path() -> None:
    tree = Tree(cast(Any, None))
    for path, wanted in (
        ("x", "/root/x"),
        ("~/x/", "/root/x"),
        ("~", "/root"),
        ("/", "/"),
        ("/a/..", "/"),
        ("/a/./b", "/a/./b"),
        ("/link/../b", "/link/../b"),  # where that leads is the box's to say
    ):
        assert tree.resolve(path) == wanted


@given(st.text() | st.integers())
def test_signals(name: str | int) -> None:
    try:
        number = signal_number(name)
    except Fault as e:
        assert e.status == 400
    else:
        assert number is None or 0 < number < 65


def test_which_signal() -> None:
    assert [signal_number(n) for n in ("TERM", "sigint", "KILL", 9, 10)] == [15, 2, None, None, 10]


@given(st.text())
def test_addresses(text: str) -> None:
    try:
        parse_address(text)
    except UsageError as e:
        assert text[:0] in e.message


def test_which_address() -> None:
    for text, shown in (
        (":80", "127.0.0.1:80"),
        ("[::1]:80", "[::1]:80"),
        ("unix:/run/x", "unix:/run/x"),
        ("/run/x", "unix:/run/x"),
    ):
        assert str(parse_address(text)) == shown
    assert parse_address("unix", Path("/run/tegu/s")).path == Path("/run/tegu/sandbox-http.sock")


@given(st.lists(st.text()))
def test_templates(words: list[str]) -> None:
    try:
        assert "base" in read_templates(words)
    except UsageError as e:
        assert "--template" in e.message
