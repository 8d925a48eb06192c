"""Files that can not be read, are not TOML, or are not what they should be: one clear line each."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tegu.definition import examine, load
from tegu.definition.nodes import plain
from tegu.definition.problems import Stop
from tegu.definition.source import MAX_BYTES, parse
from tegu.errors import DefinitionError


def error(path: Path) -> DefinitionError:
    with pytest.raises(DefinitionError) as e:
        load(path)
    assert "\n" not in e.value.message
    return e.value


def test_missing(write):
    write({"other.toml": ""})
    e = error(Path("tegu.toml"))
    assert e.message == "tegu.toml: no such file"
    assert e.hint == "`tegu new NAME` starts a definition; -f names another file"
    assert e.exit_code == 3


def test_a_directory(write):
    write({"os/tegu.toml": ""})
    e = error(Path("os"))
    assert e.message == "os: is a directory, not a file"
    assert e.hint is not None
    assert e.hint.endswith("os/tegu.toml")


def test_a_pipe_is_not_waited_for(write, tmp_path):
    write("")
    os.mkfifo(tmp_path / "pipe")
    assert error(Path("pipe")).message == "pipe: is not a regular file"


def test_not_utf8(write):
    path = write({"tegu.toml": b"# one\nname = '\xff'\n"})
    assert error(path).message == "tegu.toml:2: is not UTF-8 (byte 0xff)"


def test_a_byte_order_mark_is_no_trouble(write):
    path = write({"tegu.toml": b'\xef\xbb\xbf[system]\nname = "a"\nversion = "1"\n'})
    assert load(path).system.name == "a"


def test_huge(write):
    path = write({"tegu.toml": b"#" * (MAX_BYTES + 1)})
    assert error(path).message == "tegu.toml: is larger than 4 MiB, so no definition"


def test_as_large_as_allowed(write):
    text = '[system]\nname = "a"\nversion = "1"\n#'
    path = write(text + "x" * (MAX_BYTES - len(text)))
    assert load(path).system.name == "a"


def test_below_a_file(write):
    write({"file": ""})
    message = error(Path("file/tegu.toml")).message
    assert message == "file/tegu.toml: cannot be read: Not a directory"


def test_no_permission(write):
    path = write("x = 1")
    path.chmod(0)
    if os.access(path, os.R_OK):
        pytest.skip("this user (root) may read every file")
    assert error(path).message == "tegu.toml: cannot be read: Permission denied"


def test_a_symbolic_link_to_itself(write, tmp_path):
    write({"other.toml": ""})
    (tmp_path / "tegu.toml").symlink_to("tegu.toml")
    assert error(Path("tegu.toml")).message.startswith("tegu.toml: cannot be read: ")


def test_a_name_that_is_not_text_is_still_shown(write, tmp_path):
    write("")
    name = os.fsdecode(b"\xff.toml")
    assert error(Path(name)).message == r"\udcff.toml: no such file"


def test_a_nul_in_an_include(write):
    e = error(write('include = ["a\\u0000b"]\n'))
    assert e.message == "tegu.toml:1: include: must be file names"


@pytest.mark.parametrize(
    ("text", "where"),
    [
        ("[system]\nname = acme\n", "tegu.toml:2:8: "),
        ("[system]\nname = ", "tegu.toml:2:8: "),
        ("a = 1\na = 2\n", "tegu.toml:2:6: "),
        ("[a]\n[a]\n", "tegu.toml:2:3: "),
        ("a = [1,\n2", "tegu.toml:2:2: "),
        ('a = "x\n', "tegu.toml:1:7: "),
        ("a\r\nb = 1", "tegu.toml:1:2: "),
        ("profile = 'x'\n[profile.x]\n", "tegu.toml:2:11: "),
    ],
)
def test_syntax_errors_give_line_and_column(write, text, where):
    assert error(write(text)).message.startswith(f"{where}not valid TOML: ")


@pytest.mark.parametrize(
    "text", ["a = " + "[" * 50_000, "a = " + "{b=" * 50_000, ".".join("a" * 2000) + " = 1"]
)
def test_deep_nesting_is_no_traceback(write, text):
    examined = examine(write(text))
    assert [str(p) for p in examined.problems] == ["tegu.toml: is nested too deeply"]


def test_a_number_of_thousands_of_digits_is_no_traceback(write):
    e = error(write("a = " + "9" * 5000))
    assert e.message.startswith("tegu.toml: is not valid TOML: ")


@settings(deadline=None)
@given(st.text(st.one_of(st.sampled_from("[]{}\"'=.,#\n\\ab1"), st.characters()), max_size=40))
def test_any_text_is_parsed_or_refused(text: str) -> None:
    try:
        root = parse(text, Path("x.toml"))
    except Stop as stop:
        assert str(stop.problem).startswith("x.toml")
    else:
        assert isinstance(plain(root), dict)


_KEYS = st.sampled_from(["path", "name", "install", "-x", "default"])
_VALUES = st.recursive(
    st.sampled_from(["1", '"x"', "true", "1.5", "1979-05-27", "[]", "{}", '"-x"', '"-*"', '""']),
    lambda inner: st.one_of(
        st.lists(inner, max_size=2).map(lambda items: f"[{', '.join(items)}]"),
        st.dictionaries(_KEYS, inner, max_size=2).map(
            lambda table: "{" + ", ".join(f'"{k}" = {v}' for k, v in table.items()) + "}"
        ),
    ),
    max_leaves=5,
)
_ANYWHERE = st.sampled_from(
    [
        *("system", "system.name", "base.suites", "base.keyring", "repository", "packages"),
        *("packages.install", "packages.pin", "overlay", "file", "units", "kernel.package"),
        *("sysctl", "sysctl.a.b", "image.size", "user", "hardening.setuid", "include", "profile"),
        *("profile.p", "plan", "architecture", "architecture.arm64", "nonsense"),
    ]
)


@settings(deadline=None, max_examples=200)
@given(_VALUES, _ANYWHERE)
def test_any_value_anywhere_is_taken_or_refused_with_its_line(tmp_path_factory, value, key) -> None:
    path = tmp_path_factory.mktemp("any") / "tegu.toml"
    path.write_text(f"{key} = {value}\n")
    examined = examine(path)
    # None of these makes a whole definition: there is always something to say.
    assert examined.definition is None
    assert examined.problems
    for problem in examined.problems:
        assert problem.line in (None, 1)
        assert "\n" not in str(problem)
