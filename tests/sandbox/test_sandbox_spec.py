"""What is asked for is checked at the border, field by field."""

from __future__ import annotations

import fcntl
import os
import stat
import sys
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tegu.errors import UsageError
from tegu.linux.seccomp import Compare, Policy, Rule, compile_filter
from tegu.sandbox.native import open_launcher
from tegu.sandbox.policy import box_filter, box_policy
from tegu.sandbox.spec import BoxSpec, Limits, RunSpec, parse_size
from tegu.sandbox.template import find_template

JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=8,
)


@pytest.mark.parametrize(
    ("text", "size"),
    [("1", 1), ("64K", 65536), ("256M", 2**28), ("1.5GiB", 3 * 2**29), (77, 77), ("2gb", 2**31)],
)
def test_sizes(text: int | str, size: int) -> None:
    assert parse_size(text, "memory") == size


@pytest.mark.parametrize("text", ["", "M", "-1", "0", "1X", "1e9", "١M", "9" * 30, "nan", True])
def test_bad_sizes_name_the_field(text: str) -> None:
    with pytest.raises(UsageError, match="memory"):
        parse_size(text, "memory")


@pytest.mark.parametrize(
    ("data", "word"),
    [
        ({"limits": {"pids": 0}}, "pids"),
        ({"limits": {"cpus": "two"}}, "cpus"),
        ({"limits": {"memory": 1}}, "memory"),
        ({"limits": {"colour": 1}}, "colour"),
        ({"kind": "vm"}, "class"),
        ({"template": "debian"}, "template"),
        ({"template": "/a\0b"}, "template"),
        ({"timeout": float("nan")}, "timeout"),
        ({"timeout": True}, "timeout"),
        ({"hostname": "-x"}, "hostname"),
        ({"nonsense": 1}, "nonsense"),
        ([], "table"),
    ],
)
def test_a_wrong_box_is_one_clear_line(data: Any, word: str) -> None:
    with pytest.raises(UsageError, match=word):
        BoxSpec.from_json(data)


@pytest.mark.parametrize(
    ("data", "word"),
    [
        ({"argv": []}, "program"),
        ({"argv": [""]}, "program"),
        ({"argv": "true"}, "list"),
        ({"argv": ["a\0b"]}, "NUL"),
        ({"argv": [1]}, "text"),
        ({"argv": ["true"], "env": {"A=B": "x"}}, "env"),
        ({"argv": ["true"], "env": {"A": 1}}, "env"),
        ({"argv": ["true"], "cwd": "tmp"}, "cwd"),
        ({"argv": ["true"], "timeout": 0}, "timeout"),
        ({"argv": ["x" * 200_000]}, "bytes"),
        ({}, "argv"),
    ],
)
def test_a_wrong_run_is_one_clear_line(data: Any, word: str) -> None:
    with pytest.raises(UsageError, match=word):
        RunSpec.from_json(data)


@given(JSON)
def test_anything_is_a_spec_or_a_usage_error(data: object) -> None:
    for kind in (BoxSpec, RunSpec):
        try:
            kind.from_json(data)
        except UsageError as e:
            assert "\n" not in e.message or "\n" in str(data)


@given(st.dictionaries(st.sampled_from(["template", "kind", "limits", "timeout", "env"]), JSON))
def test_known_fields_with_any_value(data: dict[str, object]) -> None:
    try:
        spec = BoxSpec.from_json(data)
    except UsageError:
        return
    assert BoxSpec.from_json(spec.to_json()) == spec


def test_a_template_must_hold_a_root_file_system(tmp_path: Any) -> None:
    with pytest.raises(UsageError, match="no root file system"):
        find_template(str(tmp_path))
    with pytest.raises(UsageError, match="not a directory"):
        find_template(str(tmp_path / "none"))


def test_the_host_template_says_nothing_of_this_machine() -> None:
    template = find_template("host")
    paths = {path for path, _, _ in template.skeleton}
    assert "/etc/passwd" in paths
    assert not paths & {"/etc/shadow", "/etc/machine-id", "/etc/hostname", "/etc/fstab"}
    assert not any("private" in path for path in paths)
    assert {outside for _, outside in template.mounts} <= {
        "/usr", "/bin", "/sbin", "/lib", "/lib32", "/lib64", "/libx32"
    }  # fmt: skip


def test_the_filter_compiles_to_whole_instructions() -> None:
    program = compile_filter(box_policy())
    assert program
    assert len(program) % 8 == 0
    assert box_filter().endswith(program)
    assert len(box_filter()) == len(program) + 6 * 8


def test_the_launcher_is_sealed_and_cannot_be_read(tmp_path: Path) -> None:
    program = tmp_path / "program"
    program.write_bytes(Path(sys.executable).read_bytes())
    fd = open_launcher(program)
    try:
        assert stat.S_IMODE(os.fstat(fd).st_mode) == 0o111
        assert fcntl.fcntl(fd, fcntl.F_GET_SEALS) & fcntl.F_SEAL_WRITE
        with pytest.raises(PermissionError), Path(f"/proc/self/fd/{fd}").open("r+b") as f:
            f.truncate(0)
    finally:
        os.close(fd)


def test_a_filter_leaves_out_what_this_library_does_not_know() -> None:
    with_it = compile_filter(Policy([Rule(["read", "no_such_call_ever"])]))
    assert with_it == compile_filter(Policy([Rule(["read"])]))
    assert compile_filter(Policy([Rule(["read"], when=[Compare(0, "==", 1)])])) != with_it


def test_limits_without_a_value_are_no_limits() -> None:
    assert Limits().memory is None
    assert Limits().cpus is None
