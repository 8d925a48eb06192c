"""The published schema and the reference are current, and the schema judges files rightly."""

from __future__ import annotations

import json
import re
import tomllib
from pathlib import Path

import pytest

from tegu.definition import load, models
from tegu.definition.described import option_texts
from tegu.definition.models import Definition, Table
from tegu.definition.reference import reference, render
from tegu.definition.schema import json_schema, schema_text

DOCS = Path(__file__).parents[2] / "docs"
AGAIN = "run: python -m tegu.definition.reference"
TABLES = [t for t in vars(models).values() if isinstance(t, type) and issubclass(t, Table)]
jsonschema = pytest.importorskip("jsonschema", reason="the package jsonschema is not installed")


def test_the_published_schema_is_current():
    assert (DOCS / "tegu.schema.json").read_text() == schema_text(), AGAIN


def test_the_reference_is_current():
    text = (DOCS / "definition.md").read_text()
    assert render(text) == text, AGAIN


def test_every_option_is_in_the_reference_and_explained():
    text = reference()
    for table in TABLES:
        for name, option in table.model_fields.items():
            inner = re.search(r"models\.([A-Z]\w+)", repr(option.annotation))
            if inner is None and table is not Table:
                assert option_texts(table).get(name), f"{table.__name__}.{name} says nothing"
                assert f"`{name}`" in text or f"`[{name}]`" in text


def test_the_schema_is_a_schema_with_texts():
    schema = json_schema()
    jsonschema.Draft7Validator.check_schema(schema)
    packages = schema["definitions"]["Packages"]
    assert packages["title"] == "Packages"
    assert packages["properties"]["recommends"]["description"].startswith("Install recommended")
    assert set(Definition.model_fields) <= set(schema["properties"])


def errors(text: str) -> list[str]:
    validator = jsonschema.Draft7Validator(json_schema())
    found = validator.iter_errors(json.loads(json.dumps(tomllib.loads(text))))
    return [".".join(map(str, e.absolute_path)) for e in found]


def test_the_examples_in_the_page_fit_the_schema():
    text = (DOCS / "definition.md").read_text()
    examples = re.findall(r"```toml\n(.*?)```", text, re.DOTALL)
    assert len(examples) >= 4
    for example in examples:
        if "[[rule]]" not in example:  # that one is Taplo's own file
            assert errors(example) == [], example


def test_the_worked_example_loads(write, checkout):
    example = re.findall(r"```toml\n(.*?)```", (DOCS / "definition.md").read_text(), re.DOTALL)[0]
    path = write({"tegu.toml": example, "nginx.conf": "", "files/etc/motd": "Acme\n"})
    definition = load(path)
    assert definition.system.name == "acme"
    assert {"systemd", "openssh-server", "nginx-light"} <= set(definition.packages.install)
    debug = load(path, profile="debug", architecture="arm64")
    assert debug.system.name == "acme-debug"
    assert "gdb" in debug.packages.install
    assert "console=ttyAMA0" in debug.kernel.cmdline


@pytest.mark.parametrize(
    "text",
    [
        'include = ["base.toml"]\n[packages]\ninstall = ["-vim", "-*", "less"]\n',
        '[[file]]\npath = "-/etc/motd"\n',
        '[packages.pin]\n"-vim" = true\nless = "1*"\n',
        '[sysctl]\n"-vm.x" = true\nnet.core.somaxconn = 1\n"vm.y" = "z"\n',
        '[kernel]\npackage = "none"\n',
        'profile = "server"\n',
        '[profile]\ndefault = "a"\n[profile.a.image]\nsize = "1G"\n',
        '[architecture.arm64.packages]\ninstall = ["a1"]\n',
    ],
)
def test_the_schema_takes_what_is_right_in_a_file(text):
    assert errors(text) == []


@pytest.mark.parametrize(
    ("text", "where"),
    [
        ("nonsense = 1\n", ""),
        ("[packages]\ninstal = []\n", "packages"),
        ('[packages]\ninstall = ["A B"]\n', "packages.install.0"),
        ('[image]\nfilesystem = "ext5"\n', "image.filesystem"),
        ("[system]\nversion = 26.11\n", "system.version"),
        ('[[file]]\ncontent = "x"\n', "file.0"),
        ("[sysctl]\nx = 1\n", "sysctl.x"),
        ("[profile.a.image]\nsise = '1G'\n", "profile"),
        ("[architecture.arm]\n", "architecture"),
        ("[profile.a]\ninclude = []\n", "profile"),
    ],
)
def test_the_schema_refuses_what_is_wrong(text, where):
    assert where in errors(text)
