"""kernel.toml: read, and refused with the key that is wrong."""

from __future__ import annotations

from pathlib import Path

import pytest

from tegu.errors import DefinitionError, UnsupportedError
from tegu.kernel import load_recipe

TOML = """
[source]
package = "linux"
version = "6.12.107-1"
[kernel]
name = "tegu"
revision = 2
[fragments]
x86-64 = ["base"]
"""


def write(tmp_path: Path, text: str = TOML) -> Path:
    (tmp_path / "config").mkdir(exist_ok=True)
    (tmp_path / "config/base.config").write_text("# why\nCONFIG_SMP=y\n")
    (tmp_path / "patches").mkdir(exist_ok=True)
    (tmp_path / "patches/series").touch()
    path = tmp_path / "kernel.toml"
    path.write_text(text)
    return path


def test_names(tmp_path: Path) -> None:
    recipe = load_recipe(write(tmp_path))
    assert (recipe.release, recipe.deb_version) == ("6.12.107-tegu", "6.12.107-1+tegu2")
    assert recipe.options["SMP"].value == "y"


@pytest.mark.parametrize(
    ("version", "release"),
    [
        ("1:6.12.107-1", "6.12.107-tegu"),
        ("6.13~rc7-1~exp1", "6.13.0-rc7-tegu"),
        ("6.12-1", "6.12.0-tegu"),
        ("6.12.107-1~bpo12+1", "6.12.107-tegu"),
    ],
)
def test_release_as_the_kernel_says_it(tmp_path: Path, version: str, release: str) -> None:
    recipe = load_recipe(write(tmp_path, TOML.replace("6.12.107-1", version)))
    assert recipe.release == release


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ('version = "6.12.107-1"\n', "", r"source.version is missing"),
        ("revision = 2", "revision = 0", r"kernel.revision: must be a number from 1"),
        ("revision = 2", "revision = true", r"kernel.revision: must be a number"),
        ("6.12.107-1", "6.12.107", r"has no Debian revision"),
        ('"tegu"', '"te gu; echo x"', r"kernel.name: 'te gu; echo x' is none"),
        ('"tegu"', '"../x"', r"kernel.name: '../x' is none"),
        ('"linux"', '"../../linux"', r"source.package: '../../linux' is none"),
        ("6.12.107-1", "6.12.107/../-1", r"source.version: .* is none"),
        ("[fragments]", "[more]\n[fragments]", r"more: there is no such key"),
        ("revision = 2", "revision = 2\ncolour = 1", r"kernel.colour: there is no such key"),
        ('["base"]', '["base", "absent"]', r"cannot read the fragment"),
        ('["base"]', '"base"', r"must be a list"),
        ("[kernel]", "[kernel", r"kernel.toml: "),
    ],
)
def test_refused(tmp_path: Path, old: str, new: str, message: str) -> None:
    with pytest.raises(DefinitionError, match=message):
        load_recipe(write(tmp_path, TOML.replace(old, new)))


def test_no_fragments_for_an_architecture(tmp_path: Path) -> None:
    with pytest.raises(UnsupportedError, match=r"no fragments for arm64 \(it has x86-64\)"):
        load_recipe(write(tmp_path), architecture="arm64")


def test_absent(tmp_path: Path) -> None:
    with pytest.raises(DefinitionError, match="cannot read"):
        load_recipe(tmp_path / "kernel.toml")


def test_a_relative_recipe_is_found_from_anywhere(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = write(tmp_path)
    monkeypatch.chdir(path.parent)
    assert load_recipe(Path(path.name)).path == path
