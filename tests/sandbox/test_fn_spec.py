"""What a function may be said to be, and what is read from its source."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tegu.errors import SandboxError, UsageError
from tegu.sandbox.fn.code import compile_tree
from tegu.sandbox.fn.decorator import function
from tegu.sandbox.fn.discover import functions_of, imports_of
from tegu.sandbox.fn.invoked import Event, Invoked, call_words
from tegu.sandbox.fn.plan import plan
from tegu.sandbox.fn.policy import zygote_filter
from tegu.sandbox.fn.records import Account, Journal, Tally
from tegu.sandbox.fn.shelf import read_name
from tegu.sandbox.fn.spec import FunctionSpec, check_name

GOOD = {"name": "f", "handler": "app:main"}


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("name", "Upper"),
        ("name", "../x"),
        ("name", ""),
        ("name", "x" * 64),
        ("runtime", "perl"),
        ("handler", "app"),
        ("handler", "app:main()"),
        ("handler", "os.system:x;y"),
        ("command", ["x"]),
        ("template", "relative"),
        ("template", "/a\0b"),
        ("load", "sometimes"),
        ("sandbox", "none"),
        ("imports", "json"),
        ("imports", ["a b"]),
        ("env", {"a-b": "c"}),
        ("env", {"A": 1}),
        ("env", {"A": "x" * 40_000}),
        ("memory", 1),
        ("memory", "1G"),
        ("memory", True),
        ("cpus", 0),
        ("pids", 1),
        ("files", 3),
        ("disk", -1),
        ("timeout", 0),
        ("timeout", float("nan")),
        ("timeout", float("inf")),
        ("concurrency", 0),
        ("queue", -1),
        ("idle", 0),
        ("max_result", 0),
        ("colour", "red"),
    ],
)
def test_each_wrong_field_is_named(field: str, value: object) -> None:
    with pytest.raises(UsageError) as caught:
        FunctionSpec.from_json({**GOOD, field: value})
    assert "\n" not in caught.value.message
    if field != "name":
        assert field in caught.value.message


def test_a_spec_survives_being_written_down() -> None:
    spec = FunctionSpec("f", handler="a.b:c", memory=2**26, env={"A": "b"}, imports=["json"])
    again = FunctionSpec.from_json(json.loads(json.dumps(spec.to_json())))
    assert again.to_json() == spec.to_json()


@settings(max_examples=40)
@given(st.recursive(st.none() | st.booleans() | st.floats() | st.text(), st.lists) | st.integers())
def test_no_value_breaks_the_reader(value: Any) -> None:
    for field in FunctionSpec("f", handler="a:b").to_json():
        try:
            FunctionSpec.from_json({**GOOD, field: value})
        except UsageError as e:
            assert "\n" not in e.message


@given(st.text())
def test_a_name_is_always_the_name_of_a_file(name: str) -> None:
    try:
        check_name(name)
    except UsageError:
        return
    assert name not in ("", ".", "..")
    assert "/" not in name
    assert "\0" not in name


def test_functions_are_found_without_running_anything(tmp_path: Path) -> None:
    path = tmp_path / "app.py"
    path.write_text(
        "import os.path, json as j\n"
        "from tegu.sandbox.fn import function as fn\n"
        "from tegu.sandbox import fn as room\n"
        "from . import sibling\n"
        "raise SystemExit\n"
        "@fn\n"
        "def one(e): ...\n"
        "@fn(timeout=5, env={'A': 'b'}, memory='64M')\n"
        "async def two(e): ...\n"
        "@room.function()\n"
        "def three(e): ...\n"
        "@other\n"
        "def four(e): ...\n"
    )
    assert [(f.attribute, f.options) for f in functions_of(path)] == [
        ("one", {}),
        ("two", {"timeout": 5, "env": {"A": "b"}, "memory": "64M"}),
        ("three", {}),
    ]
    assert imports_of([path]) == ["json", "os.path", "tegu.sandbox", "tegu.sandbox.fn"]
    specs = plan(path, None, None, [], {"timeout": 9.0, "cpus": None})
    assert [(s.name, s.timeout) for s in specs] == [("one", 9.0), ("two", 9.0), ("three", 9.0)]
    assert specs[1].memory == 64 * 2**20


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("def x(:\n", "app.py:1"),
        ("from tegu.sandbox.fn import function\n@function(timeout=t)\ndef x(e): ...\n", "app.py:2"),
        ("from tegu.sandbox.fn import function\n@function(5)\ndef x(e): ...\n", "by name"),
        ("from tegu.sandbox.fn import function\n@function(**o)\ndef x(e): ...\n", "options"),
        ("x = " + "(" * 5000 + "\n", "app.py"),
        ("a\0b", "app.py"),
    ],
)
def test_source_that_cannot_be_read_is_refused(tmp_path: Path, text: str, words: str) -> None:
    path = tmp_path / "app.py"
    path.write_text(text)
    with pytest.raises(UsageError) as caught:
        functions_of(path)
    assert words in caught.value.message


@given(st.binary(max_size=200))
def test_no_source_breaks_the_reader(data: bytes) -> None:
    import tempfile

    with tempfile.TemporaryDirectory() as name:
        path = Path(name) / "app.py"
        path.write_bytes(data)
        try:
            functions_of(path)
        except UsageError as e:
            assert e.message
        compile_tree(name)


def test_the_decorator_changes_nothing_here() -> None:
    @function(timeout=3)
    def double(event: int) -> int:
        """Twice."""
        return event * 2

    assert double(4) == 8
    assert (double.name, double.__doc__) == ("double", "Twice.")


def test_plans_that_make_no_sense(tmp_path: Path) -> None:
    path = tmp_path / "app.py"
    path.write_text("")
    assert plan(path, None, None, [], {}) == []
    with pytest.raises(UsageError, match="which function"):
        plan(tmp_path, None, None, [], {})
    with pytest.raises(UsageError, match="belongs to --runtime"):
        plan(path, None, None, ["x"], {})
    with pytest.raises(UsageError, match="no program"):
        plan(path, "x", None, [], {"runtime": "exec"})


def test_a_name_in_the_store_that_is_damaged(tmp_path: Path) -> None:
    (tmp_path / "function-names").mkdir()
    target = tmp_path / "function-names" / "f.json"
    for text in ("", "[]", "{", '{"versions": [], "current": "../../etc"}', "\udcff"):
        target.write_bytes(text.encode(errors="surrogateescape"))
        with pytest.raises(SandboxError, match="is damaged"):
            read_name(tmp_path, "f")


def test_a_call_in_words() -> None:
    one = Invoked("7-x", Event("json", b'"a\\u0000b"\0c'), lambda *_: None, "tenant")
    data, fds = call_words(one, 2.5)
    assert data.split(b"\0", 5) == [
        b"call",
        b"7-x",
        b"tenant",
        b"2.500000",
        b"json",
        one.event.data,
    ]
    assert fds == []
    one.event.file = 9
    data, fds = call_words(one, 1)
    assert data.endswith(b"\0json-file\0")
    assert fds == [9]


def test_an_invocation_is_answered_once() -> None:
    heard = []
    one = Invoked("1", Event("json"), lambda _, outcome, value: heard.append((outcome, value.data)))
    one.finish("ok", "fine")
    one.finish("crashed", "late")
    assert heard == [("ok", b"fine")]


def test_the_journal_forgets_the_oldest() -> None:
    journal = Journal()
    for n in range(100):
        journal.add(str(n), "x" * 20_000)
    kept = journal.after(0, 0)
    assert 20 < len(kept) < 60
    assert [e["number"] for e in kept] == list(range(101 - len(kept), 101))
    assert [e["id"] for e in journal.after(98, 1)] == ["99"]


def test_the_tally_counts_what_was_answered() -> None:
    tally = Tally()
    tally.count("ok", Account(wall=0.5))
    tally.count("queue_full", Account(queue=9.0))
    said = tally.to_json()
    assert said["outcomes"] == {"ok": 1, "queue_full": 1}
    assert (said["wall"], said["queue"], said["p50"]) == (0.5, 0.0, 0.5)


def test_the_zygotes_filter_compiles() -> None:
    assert len(zygote_filter()) % 8 == 0
