"""Fragments: options with reasons, merged; and what is refused."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tegu.errors import DefinitionError
from tegu.kernel import load_recipe
from tegu.kernel.fragments import merge, merged_text, parse_config, parse_fragment, read_fragment

FRAGMENT = """
# Disks of virtual machines,
# built in.
CONFIG_VIRTIO_BLK=y
# CONFIG_FLOPPY is not set

# Names.
CONFIG_DEFAULT_HOSTNAME="a host"
CONFIG_NR_CPUS=512
# A second group without an empty line.
CONFIG_BASE=0x10
"""


def test_reasons_go_with_their_group() -> None:
    options = {o.name: o for o in parse_fragment(FRAGMENT, "base.config")}
    assert options["VIRTIO_BLK"].reason == "Disks of virtual machines, built in."
    assert options["FLOPPY"].value == "n"
    assert options["FLOPPY"].reason == options["VIRTIO_BLK"].reason
    assert options["DEFAULT_HOSTNAME"].value == '"a host"'
    assert options["BASE"].reason == "A second group without an empty line."
    assert options["NR_CPUS"].where == "base.config:9"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("CONFIG_A=y", r"f:1: CONFIG_A has no reason"),
        ("# why\nCONFIG_A=y\n\nCONFIG_B=y", r"f:4: CONFIG_B has no reason"),
        ("# why\nCONFIG_A=maybe", r"f:2: CONFIG_A: 'maybe' is no value"),
        ("# why\nA=y", r"f:2: neither an option"),
        ("# why\nCONFIG_A=y\nCONFIG_A=m", r"f:3: CONFIG_A is there twice \(line 2\)"),
        ("# why\nCONFIG_A=y # trailing", r"f:2: CONFIG_A: 'y # trailing' is no value"),
    ],
)
def test_refused(text: str, message: str) -> None:
    with pytest.raises(DefinitionError, match=message):
        parse_fragment(text, "f")


def test_unreadable(tmp_path: Path) -> None:
    with pytest.raises(DefinitionError, match="cannot read"):
        read_fragment(tmp_path / "absent.config")
    (tmp_path / "binary.config").write_bytes(b"\xff\xfe")
    with pytest.raises(DefinitionError, match="not UTF-8"):
        read_fragment(tmp_path / "binary.config")


def test_later_fragments_win_and_the_result_is_a_config() -> None:
    first = parse_fragment("# r\nCONFIG_B=m\nCONFIG_A=y", "1")
    second = parse_fragment("# r\n# CONFIG_B is not set", "2")
    text = merged_text(merge([first, second]))
    assert text == "CONFIG_A=y\n# CONFIG_B is not set\n"
    assert parse_config(text) == {"A": "y", "B": "n"}


@given(st.text())
def test_any_text_is_read_or_refused(text: str) -> None:
    try:
        options = parse_fragment(text, "f")
    except DefinitionError as e:
        assert e.message.startswith("f:")
        return
    assert all(o.line > 0 for o in options)


def test_the_shipped_recipe_is_sound() -> None:
    recipe = load_recipe()
    assert recipe.release == f"{recipe.upstream}-tegu"
    assert len(recipe.options) > 500
    assert all(o.reason for o in recipe.options.values())
    assert all(p.test and p.reason for p in recipe.patches)
