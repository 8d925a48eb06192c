"""Packages from recipes: the same bytes each time, read back by dpkg and rpm; bad ones refused."""

from __future__ import annotations

import hashlib
import io
import shutil
import subprocess
import tarfile
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import tegu
from tegu.errors import BuildError, RecipeError, TeguError, UnsupportedError, VerifyError
from tegu.packages import open_deb
from tegu.packages.recipe import build_packages, list_recipes, load_recipe
from tegu.packages.recipe.load import find_recipe, outline
from tegu.store import Store

RPM = pytest.mark.skipif(shutil.which("rpmbuild") is None, reason="rpmbuild is not installed")
HEAD = """\
name = "hello-tegu"
version = "1.2"
summary = "greets"
description = "First paragraph\\nof two lines.\\n\\nSecond."
"""


@pytest.fixture
def write(tmp_path: Path):
    def make(text: str, head: str = HEAD) -> Path:
        path = tmp_path / "hello.toml"
        path.write_text(head + text)
        return path

    return make


@pytest.fixture
def archive(tmp_path: Path) -> str:
    """A source archive beside the recipe; returns its SHA-256."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w:gz") as tar:
        info = tarfile.TarInfo("hello-1.2/hello.txt")
        info.size = 6
        tar.addfile(info, io.BytesIO(b"hello\n"))
    (tmp_path / "hello.tar.gz").write_bytes(buffer.getvalue())
    return hashlib.sha256(buffer.getvalue()).hexdigest()


FILES = """
units = ["hello.service"]
[[file]]
path = "/etc/hello.conf"
content = "who = world\\n"
[[file]]
path = "/usr/lib/systemd/system/hello.service"
content = "[Service]\\nExecStart=/bin/true\\n[Install]\\nWantedBy=multi-user.target\\n"
[[file]]
path = "/usr/share/hello-tegu/link"
symlink = "/etc/hello.conf"
[depends]
deb = ["libc6"]
rpm = ["glibc"]
[scripts]
install = "echo installed"
remove = "echo removed"
"""


@RPM
def test_one_recipe_gives_both_formats_twice_the_same(write, tmp_path, store) -> None:
    built = build_packages(write(FILES), tmp_path / "out", store, twice=True)
    assert [p.path.name for p in built] == [
        "hello-tegu_1.2-1_all.deb",
        "hello-tegu-1.2-1.noarch.rpm",
    ]
    with open_deb(built[0].path) as deb:
        assert deb.fields["Depends"] == "libc6"
        assert deb.fields["Description"].startswith("greets\n First paragraph of two lines.\n .\n")
        assert deb.control["conffiles"] == "/etc/hello.conf\n"
        assert "deb-systemd-helper enable hello.service" in deb.control["postinst"]
        assert '"$1" = remove' in deb.control["prerm"]
    query = ["rpm", "-qp", "--dbpath", str(tmp_path / "db")]
    said = subprocess.run(
        [*query, "--requires", "--configfiles", "--scripts", built[1].path],
        capture_output=True,
        text=True,
        check=True,
    ).stdout
    assert "glibc\n" in said and "/etc/hello.conf\n" in said and "preset hello.service" in said
    done = subprocess.run(
        ["rpm", "-K", "--nosignature", built[1].path], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stdout


@RPM
def test_both_formats_hold_the_same_bytes(tmp_path, store) -> None:
    deb_path, rpm_path = (
        p.path for p in build_packages(find_recipe("tegu-tune"), tmp_path / "out", store)
    )
    with open_deb(deb_path) as deb:
        ours = {f"/{i.name}": (c.read(), i.mode) for i, c in deb.data() if c is not None}
    said = subprocess.run(
        ["rpm", "-qp", "--dbpath", str(tmp_path / "db"), "--dump", rpm_path],
        capture_output=True,
        text=True,
        check=True,
    ).stdout
    # path size mtime digest mode owner group isconfig isdoc rdev symlink (rpm(8), --dump)
    lines = [line.split() for line in said.splitlines()]
    rows = {f[0]: f for f in lines if int(f[4], 8) & 0o170000 == 0o100000}
    theirs = {name: (f[3], int(f[4], 8) & 0o7777, f[5], f[6]) for name, f in rows.items()}
    documents = "/usr/share/doc/tegu-tune/changelog.gz"
    assert {n for n in ours if n != documents} == set(theirs)
    for name, (digest, mode, *owner) in theirs.items():
        assert hashlib.sha256(ours[name][0]).hexdigest() == digest
        assert (ours[name][1] & 0o7777, owner) == (mode, ["root", "root"])


def test_steps_see_the_source_and_no_network_or_home(write, archive, tmp_path, store) -> None:
    recipe = write(f"""
formats = ["deb"]
[source]
path = "hello.tar.gz"
sha256 = "{archive}"
[build]
steps = [
  '''
  test "$(id -u)" = 0 && test "$HOME" = /tmp
  test ! -e /root && test ! -e /home
  test "$(grep -c : /proc/net/dev)" = 1
  install -D -m 644 hello.txt $DESTDIR/usr/share/hello-tegu/hello.txt
  ''',
  "ln -s hello.txt $DESTDIR/usr/share/hello-tegu/link",
]
""")
    (built,) = build_packages(recipe, tmp_path / "out", store)
    with open_deb(built.path) as deb:
        members = {i.name: c.read() if c else i.linkname for i, c in deb.data() if not i.isdir()}
    assert members["usr/share/hello-tegu/hello.txt"] == b"hello\n"
    assert members["usr/share/hello-tegu/link"] == "hello.txt"
    assert archive in built.source


def test_what_differs_between_two_builds_is_named(write, archive, tmp_path, store) -> None:
    recipe = write(f"""
formats = ["deb"]
[source]
path = "hello.tar.gz"
sha256 = "{archive}"
[build]
steps = ["mkdir -p $DESTDIR/usr/share/x; cat /proc/sys/kernel/random/uuid > $DESTDIR/usr/share/x/y"]
""")
    with pytest.raises(BuildError, match=r"the bytes differ: usr/share/x/y"):
        build_packages(recipe, tmp_path / "out", store, twice=True)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("text", "kind", "what"),
    [
        ("colour = 1\n", RecipeError, r"hello.toml:5: colour: there is no such key"),
        ("[depends\n", RecipeError, "not valid TOML"),
        ("[build]\nsteps = ['true']\n", RecipeError, "build.steps need a source"),
        ("[source]\npath = 'x'\n", RecipeError, "needs sha256"),
        ("[[file]]\npath = '/a'\n", RecipeError, "exactly one of content"),
        ("[[file]]\npath = '/a/../b'\ncontent = ''\n", RecipeError, "leads elsewhere"),
        ("[[file]]\npath = '/a'\nsource = 'none'\n", RecipeError, "No such file"),
        ("[[file]]\npath = '/a'\ncontent = '{{ x }}'\n", RecipeError, "no such variable"),
        ("units = ['x.service']\n", RecipeError, "x.service is not in the package"),
        ("formats = ['deb']\n[content]\nmeta = true\n", RecipeError, "need definition"),
        ("[variable.key]\nhelp = 'the key'\n", RecipeError, "the variable key has no value"),
        (
            f"[source]\npath = 'none'\nsha256 = '{'0' * 64}'\n[build]\nsteps = ['true']\n",
            RecipeError,
            "is not a file",
        ),
        (
            f"[source]\npath = 'hello.tar.gz'\nsha256 = '{'0' * 64}'\n[build]\nsteps = ['true']\n",
            VerifyError,
            "the recipe wants 0000",
        ),
        (
            "[source]\ntegu = 'packages'\n[build]\nneeds = ['no-such-program']\nsteps = ['true']\n",
            UnsupportedError,
            "no-such-program is not installed",
        ),
        (
            "[source]\ntegu = '../..'\n[build]\nsteps = ['true']\n",
            RecipeError,
            "tegu has no directory",
        ),
        (
            "[source]\ntegu = 'packages/solver'\n[build]\nsteps = ['echo oops >&2; false']\n",
            BuildError,
            "step 1 .* exited with 1: oops",
        ),
    ],
)
def test_a_bad_recipe_is_one_clear_line(write, archive, tmp_path, store, text, kind, what) -> None:
    with pytest.raises(kind, match=what) as caught:
        build_packages(write(text), tmp_path / "out", store, formats=["deb"])
    assert "\n" not in caught.value.message
    assert not (tmp_path / "out").exists()


def test_a_version_that_is_none_is_refused(write, tmp_path, store) -> None:
    with pytest.raises(RecipeError, match="is no version"):
        build_packages(write(""), tmp_path, store, version="1-2")


def test_all_shipped_recipes_are_sound() -> None:
    shipped = list_recipes()
    assert {"tegu", "tegu-release", "tegu-tune", "tegu-server"} <= {p.stem for p in shipped}
    assert all(outline(p).name == p.stem for p in shipped)
    with pytest.raises(RecipeError, match="no such recipe"):
        find_recipe("tegu-nothing")


def test_the_meta_package_follows_the_definition(tmp_path, store) -> None:
    (built,) = build_packages(find_recipe("tegu-container-host"), tmp_path, store)
    with open_deb(built.path) as deb:
        words = deb.fields["Depends"].split(", ")
    assert {"podman", "openssh-server", "tegu-release"} <= set(words)


def test_the_release_package_says_its_own_version(tmp_path, store) -> None:
    (tmp_path / "k.asc").write_text("a key\n")
    values = {"keyring": str(tmp_path / "k.asc"), "uri": "https://packages.example.org"}
    recipe = find_recipe("tegu-release")
    (built,) = build_packages(
        recipe, tmp_path, store, version="27.02", formats=["deb"], values=values
    )
    with open_deb(built.path) as deb:
        files = {i.name: c.read().decode(errors="replace") for i, c in deb.data() if c}
    assert 'VERSION_ID="27.02"' in files["usr/share/tegu/os-release"]
    assert tegu.__version__ not in files["usr/share/tegu/os-release"]
    assert "URIs: https://packages.example.org\n" in files["etc/apt/sources.list.d/tegu.sources"]
    assert files["usr/share/keyrings/tegu-archive-keyring.asc"] == "a key\n"


@settings(max_examples=60, deadline=None)
@given(st.text(alphabet='abn=[]"{}#\n .-1,', max_size=80))
def test_any_text_is_a_recipe_or_a_clear_error(tmp_path_factory, text) -> None:
    path = tmp_path_factory.mktemp("recipe") / "r.toml"
    path.write_text(HEAD + text)
    try:
        load_recipe(path)
    except TeguError as e:
        assert str(path) in e.message


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("lintian") is None, reason="lintian is not installed")
def test_lintian_finds_nothing_in_our_packages(tmp_path: Path) -> None:
    store = Store(tmp_path / "store")
    (tmp_path / "k.asc").write_text("a key\n")
    values = {"keyring": str(tmp_path / "k.asc"), "uri": "https://packages.example.org"}
    for recipe in list_recipes():
        given_values = values if recipe.stem == "tegu-release" else {}
        if recipe.stem == "tegu-launcher" and shutil.which("gcc") is None:
            continue
        build_packages(recipe, tmp_path / "out", store, formats=["deb"], values=given_values)
    debs = sorted((tmp_path / "out").glob("*.deb"))
    done = subprocess.run(
        ["lintian", "--no-cfg", "--fail-on", "error,warning", *debs], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stdout
