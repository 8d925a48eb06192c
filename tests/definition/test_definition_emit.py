"""The resolved definition as TOML and JSON: complete, valid, and equal when it is loaded again."""

from __future__ import annotations

import json
import os
import tomllib
import types
import typing
from pathlib import Path
from typing import Any
from unittest.mock import patch

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import BaseModel

from tegu.definition import Definition, examine, load, to_json, to_toml
from tegu.definition.origins import comments
from tegu.errors import DefinitionError

# TOML strings hold any character but lone surrogates.
_TEXT = st.text(st.characters(exclude_categories=["Cs"]), max_size=30)
_PATHS = st.text(
    st.characters(exclude_categories=["Cs"], exclude_characters="\0/"), max_size=9
).map(lambda name: Path("/srv") / name)


def _strategy(annotation: object, metadata: tuple[Any, ...] = ()) -> st.SearchStrategy[Any]:
    """Values for a field, made of its own annotation."""
    origin, inner = typing.get_origin(annotation), typing.get_args(annotation)
    if origin is typing.Annotated:
        found = _strategy(inner[0], (*inner[1:], *metadata))
    elif isinstance(annotation, types.UnionType) or origin is typing.Union:
        found = st.one_of(st.none() if m is type(None) else _strategy(m, metadata) for m in inner)
    elif origin is typing.Literal:
        found = st.sampled_from(inner)
    elif origin is list:
        found = _list(inner[0], 1 if _bound(metadata, "min_length") else 0)
    elif origin is dict:
        found = st.dictionaries(_strategy(inner[0]), _strategy(inner[1]), max_size=3)
    elif isinstance(annotation, type) and issubclass(annotation, BaseModel):
        found = _table(annotation)
    elif annotation is str:
        found = _string(metadata)
    else:
        low, high = _bound(metadata, "ge"), _bound(metadata, "le")
        numbers = st.integers(-(2**63) if low is None else low, 2**63 - 1 if high is None else high)
        found = {bool: st.booleans(), int: numbers, Path: _PATHS}[annotation]
    return found


def _string(metadata: tuple[Any, ...]) -> st.SearchStrategy[str]:
    pattern = _bound(metadata, "pattern")
    if pattern is None:
        return _TEXT.filter(bool) if _bound(metadata, "min_length") else _TEXT
    most = _bound(metadata, "max_length") or 200
    return st.from_regex(pattern, fullmatch=True).filter(lambda text: len(text) <= most)


def _bound(metadata: tuple[Any, ...], name: str) -> Any:
    for item in metadata:
        for rule in (item, *getattr(item, "metadata", ())):
            value = getattr(rule, name, None)
            if value is not None:
                return value
    return None


def _list(item: object, least: int) -> st.SearchStrategy[list[Any]]:
    if isinstance(item, type) and issubclass(item, BaseModel):
        keys = {"Repository": ("uri", "suite"), "File": ("path",), "User": ("name",)}[item.__name__]
        return st.lists(
            _strategy(item), max_size=2, unique_by=lambda t: tuple(t[key] for key in keys)
        )
    # What starts with "-" takes something out, so no list holds it.
    values = _strategy(item).filter(lambda v: not str(v).startswith("-"))
    return st.lists(values, min_size=least, max_size=3, unique=True)


@st.composite
def _table(draw: st.DrawFn, model: type[BaseModel]) -> dict[str, Any]:
    table = {}
    for name, option in model.model_fields.items():
        if model is Definition and name == "include":
            continue
        if option.is_required() or draw(st.booleans()):
            table[name] = draw(_strategy(option.annotation, tuple(option.metadata)))
    return table


@settings(deadline=None, max_examples=150)
@given(data=_table(Definition))
def test_what_is_written_loads_back_equal(tmp_path_factory, data) -> None:
    definition = Definition.model_validate(data)
    if definition.profile == "default":
        return  # no profile can be called so
    text = to_toml(definition)
    path = tmp_path_factory.mktemp("emit") / "tegu.toml"
    path.write_text(text, newline="")
    # Any value goes, here: the rules between values and the files named are not what is tested.
    with patch("tegu.definition.loader.flaws", return_value=[]):
        again = load(path)
    assert again == definition
    assert to_toml(again) == text


FULL = """include = ["base.toml"]
overlay = ["files"]
plan = ["accept.toml"]
[system]
name = "acme"
version = "1"
[[file]]
path = "/etc/motd"
content = '''
Welcome\\
  "to" 'it'\t
'''
[sysctl]
net.core.somaxconn = 4096
[packages]
install = ["less"]
[hardening]
setuid = []
[profile]
default = "big server"
["profile"."big server".image]
size = "40G"
"""
BASE = """
[packages]
install = ["vim"]
pin.vim = "2"
[[user]]
name = "ops"
"""


@pytest.fixture
def full(write):
    return write({"tegu.toml": FULL, "base.toml": BASE, "accept.toml": "", "files/a": "x"})


def test_a_definition_with_everything_loads_back_equal(full, write):
    definition = load(full)
    text = to_toml(definition)
    again = write({"again/tegu.toml": text})
    assert load(again) == definition
    assert 'content = """\nWelcome\\\\\n' in text
    assert "include" not in tomllib.loads(text)


def test_every_option_that_has_a_value_is_written(full):
    definition = load(full)
    data = tomllib.loads(to_toml(definition))
    shown = to_json(definition)
    for name, option in type(definition).model_fields.items():
        value = getattr(definition, name)
        if isinstance(value, BaseModel):
            expected = {key for key, inner in value if inner is not None and inner != {}}
            assert set(data[name]) == expected
            assert set(shown[name]) >= expected
        elif name not in ("include", "profile") and value:
            assert name in data, option
    json.dumps(shown)


def test_no_kernel_survives(write):
    text = '[system]\nname="a"\nversion="1"\n[kernel]\npackage="none"\n[image]\nformats=["tar"]\n'
    definition = load(write(text))
    written = to_toml(definition)
    assert 'package = "none"' in written
    assert load(write(written)).kernel.package is None
    assert to_json(definition)["kernel"]["package"] == "none"


def test_origins_name_file_and_line_of_every_value(full, write):
    examined = examine(full)
    assert examined.definition is not None
    text = to_toml(examined.definition, comment=comments(examined))
    assert 'size = "40G"  # tegu.toml:22' in text
    assert '  "vim",  # base.toml:3\n  "less",  # tegu.toml:16\n' in text
    assert '"net.core.somaxconn" = 4096  # tegu.toml:14' in text
    assert 'name = "ops"  # base.toml:6' in text
    assert 'hostname = "localhost"\n' in text
    assert load(write({"again/tegu.toml": text})) == examined.definition


def test_a_path_that_is_not_text_is_refused(write):
    definition = load(write('[system]\nname="a"\nversion="1"\n'))
    odd = definition.model_copy(update={"overlay": [Path(os.fsdecode(b"/srv/\xff"))]})
    with pytest.raises(DefinitionError, match="a name is not UTF-8"):
        to_toml(odd)
