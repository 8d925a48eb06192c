"""`tegu new`: what it writes, and what it refuses to write over."""

from __future__ import annotations

import errno
import os
import shutil
import sys
import zipfile
from contextlib import contextmanager
from importlib import resources
from pathlib import Path

import pytest

from tegu.definition import load, shipped_definition
from tegu.definition.scaffold import scaffold
from tegu.errors import DefinitionError, TeguError, UsageError
from tegu.process import run

ROOT = Path(__file__).parents[2]
FILES = {"README.md", "files", "files/.gitkeep", "tegu.toml"}


def tree(directory: Path) -> set[str]:
    return {str(p.relative_to(directory)) for p in directory.rglob("*")}


@pytest.mark.parametrize("profile", ["minimal", "server", "container-host"])
def test_it_makes_a_definition_that_loads(checkout, tmp_path, profile):
    made = scaffold("my-os", tmp_path / "my-os", profile=profile)
    assert tree(made.directory) == FILES
    assert made.directory.stat().st_mode & 0o777 == 0o755
    definition = load(made.directory / "tegu.toml")
    assert definition.system.name == "my-os"
    assert "systemd" in definition.packages.install
    assert ("openssh-server" in definition.packages.install) == (profile == "server")
    assert definition.overlay[-1] == made.directory / "files"
    assert len((made.directory / "README.md").read_text().splitlines()) == 2


@pytest.mark.skipif(
    not (ROOT / "distro/tegu.toml").is_file(), reason="this tree has no distro/tegu.toml yet"
)
@pytest.mark.parametrize("profile", ["minimal", "server", "container-host"])
def test_it_builds_on_tegu_linux_itself(tmp_path, profile):
    load(shipped_definition(), profile=profile)
    made = scaffold("my-os", tmp_path / "my-os", profile=profile)
    definition = load(made.directory / "tegu.toml")
    assert definition.system.name == "my-os"
    assert definition.packages.install


@pytest.mark.parametrize(
    ("name", "hint"),
    [
        ("My OS", "such as 'my-os'"),
        ("", None),
        ("-x", "such as 'x'"),
        ("a/b", "such as 'a-b'"),
        ("..", None),
        ("ä", None),
        ("a\nb", "such as 'a-b'"),
    ],
)
def test_a_bad_name_is_refused_with_a_reason(checkout, tmp_path, name, hint):
    with pytest.raises(UsageError, match="is not a short name") as e:
        scaffold(name, tmp_path / "new")
    assert e.value.hint == hint
    assert "\n" not in e.value.message
    assert not (tmp_path / "new").exists()


def test_a_name_that_is_too_long(checkout, tmp_path):
    with pytest.raises(UsageError, match="longer than 64"):
        scaffold("a" * 65, tmp_path / "new")


def test_an_unknown_profile(checkout, tmp_path):
    with pytest.raises(UsageError, match="no profile 'servre'; it has minimal, server") as e:
        scaffold("a", tmp_path / "new", profile="servre")
    assert e.value.hint == "did you mean 'server'?"


@pytest.mark.parametrize("there", ["tegu.toml", "README.md", "files/.gitkeep"])
def test_nothing_is_overwritten(checkout, tmp_path, there):
    target = tmp_path / "new"
    (target / there).parent.mkdir(parents=True)
    (target / there).write_text("mine")
    before = tree(target)
    with pytest.raises(DefinitionError, match=f"{there}: is there already, and is not overwrit"):
        scaffold("a", target)
    assert tree(target) == before
    assert (target / there).read_text() == "mine"


def test_a_broken_link_is_not_written_through(checkout, tmp_path):
    (tmp_path / "new").mkdir()
    (tmp_path / "new/tegu.toml").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(DefinitionError, match="is not overwritten"):
        scaffold("a", tmp_path / "new")
    assert not (tmp_path / "elsewhere").exists()


def test_a_directory_with_other_things_in_it_is_filled(checkout, tmp_path, monkeypatch):
    (tmp_path / "new/.git").mkdir(parents=True)
    monkeypatch.chdir(tmp_path / "new")
    scaffold("a", Path())
    assert tree(Path()) == FILES | {".git"}


def test_a_file_in_the_way(checkout, tmp_path):
    (tmp_path / "new").write_text("x")
    with pytest.raises(DefinitionError, match="is there already, and is no directory"):
        scaffold("a", tmp_path / "new")


def test_no_directory_to_write_in(checkout, tmp_path):
    with pytest.raises(DefinitionError, match="there is no such directory to write in"):
        scaffold("a", tmp_path / "no" / "new")


FULL = OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


@pytest.mark.parametrize("exists", [False, True])
@pytest.mark.parametrize("failure", [FULL, KeyboardInterrupt()])
def test_a_full_disk_or_ctrl_c_leaves_nothing(checkout, tmp_path, monkeypatch, exists, failure):
    target = tmp_path / "new"
    if exists:
        target.mkdir()
    before = tree(tmp_path)
    opened = Path.open

    class Full:
        def write(self, text):
            raise failure

    @contextmanager
    def full(path, mode="r", *args, **kwargs):
        with opened(path, mode, *args, **kwargs) as f:
            yield Full() if path.name == ".gitkeep" and mode != "r" else f

    monkeypatch.setattr(Path, "open", full)
    expected = DefinitionError if isinstance(failure, OSError) else KeyboardInterrupt
    with pytest.raises(expected) as e:
        scaffold("a", target)
    monkeypatch.undo()
    if isinstance(e.value, TeguError):
        assert e.value.message.endswith("new: can not be written: No space left on device")
    assert tree(tmp_path) == before


def test_the_templates_are_package_data():
    folder = resources.files("tegu.definition").joinpath("templates")
    assert {"tegu.toml.in", "README.md.in"} <= {entry.name for entry in folder.iterdir()}


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("uv") is None, reason="uv, which builds the wheel, is missing")
def test_the_wheel_holds_templates_and_works_without_the_source(tmp_path):
    # The system's certificates: a registry's mirror may be signed by an authority of one's own.
    environment = {**os.environ, "UV_NATIVE_TLS": "1", "UV_SYSTEM_CERTS": "1"}
    run(["uv", "build", "--wheel", "--out-dir", tmp_path, ROOT], timeout=300, env=environment)
    (wheel,) = tmp_path.glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        names = set(archive.namelist())
        archive.extractall(tmp_path / "site")
    assert "tegu/definition/templates/tegu.toml.in" in names
    assert "tegu/distro/tegu.toml" in names, "pyproject: force-include distro as tegu/distro"
    code = (
        f"import sys; sys.path.insert(0, {str(tmp_path / 'site')!r})\n"
        "from pathlib import Path\nfrom tegu.definition import load, shipped_directory\n"
        "from tegu.definition.scaffold import scaffold\n"
        "made = scaffold('my-os', Path('new'))\nload(made.directory / 'tegu.toml')\n"
        "print(shipped_directory())\n"
    )
    done = run([sys.executable, "-c", code], cwd=tmp_path)
    assert done.stdout.strip() == str(tmp_path / "site/tegu/distro")
