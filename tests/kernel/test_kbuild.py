"""Running make as the kernel's build does: at a fixed place, logged, with errors that tell."""

from __future__ import annotations

import subprocess
from collections.abc import Mapping
from pathlib import Path

import pytest

from tegu.errors import BuildError, DefinitionError, UnsupportedError, UsageError
from tegu.kernel import build_kernel, last_built, load_recipe
from tegu.kernel import toolchain as tools
from tegu.kernel.build import built_sources
from tegu.kernel.kbuild import PLACE, Kbuild
from tegu.kernel.package import write_packages
from tegu.packages import open_deb
from tegu.packages.deb_write import DebEntry
from tegu.store import Store

from .test_recipe import write

MAKEFILE = """
there:
\t@pwd; echo $(KCFLAGS) $(LOCALVERSION) $$KBUILD_BUILD_TIMESTAMP $$SECRET; touch made
broken:
\t@echo '  CC      net/a.o'
\t@echo "net/a.c:3:1: error: expected ';'" >&2; exit 1
"""


@pytest.fixture
def kbuild(tmp_path: Path) -> Kbuild:
    probe = ["unshare", "--mount", "true"]
    if subprocess.run(probe, capture_output=True).returncode != 0:
        pytest.skip("this machine refuses mount namespaces")
    tree = tmp_path / "linux"
    tree.mkdir()
    (tree / "Makefile").write_text(MAKEFILE)
    return Kbuild(
        load_recipe(write(tmp_path)),
        tree,
        timestamp=1_788_000_000,
        cache=tmp_path / "ccache",
        jobs=1,
        log=tmp_path / "log",
    )


def test_place_flags_and_time(kbuild: Kbuild, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SECRET", "leaked")
    said: list[str] = []
    out = kbuild.make("there", say=said.append).split()
    assert out[0] == PLACE
    assert f"-ffile-prefix-map={PLACE}=/usr/src/linux" in out
    assert "-tegu" in out
    assert "2026" in out
    assert "leaked" not in out
    assert (kbuild.tree / "made").exists()


def test_first_error_is_told_and_the_rest_kept(kbuild: Kbuild) -> None:
    with pytest.raises(BuildError, match=r"make broken failed: net/a.c:3:1: error: expected") as e:
        kbuild.make("broken")
    assert str(kbuild.log) in str(e.value.hint)
    assert "CC      net/a.o" in kbuild.log.read_text()


def test_no_such_target(kbuild: Kbuild) -> None:
    with pytest.raises(BuildError, match=r"No rule to make target"):
        kbuild.make("absent")


def test_packages(tmp_path: Path) -> None:
    recipe = load_recipe(write(tmp_path))
    image = [
        DebEntry("/boot/vmlinuz-6.12.107-tegu", b"kernel"),
        DebEntry("/boot/System.map-6.12.107-tegu", b"map", mode=0o600),
        DebEntry("/usr/lib/modules/6.12.107-tegu/modules.dep", b""),
    ]

    def make(name: str) -> Mapping[str, bytes]:
        out = tmp_path / name
        out.mkdir()
        written = write_packages(
            recipe,
            out,
            image=image,
            headers=[DebEntry("/usr/src/linux-headers-6.12.107-tegu/Makefile", b"all:\n")],
            selftests=[DebEntry("/usr/lib/linux-selftests/net/x.py", b"#!/bin/sh\n", mode=0o755)],
            copyright_text=b"GPL-2\n",
            timestamp=1_788_000_000,
        )
        return {p.name: p.read_bytes() for p in written}

    first = make("one")
    assert first == make("two")
    assert list(first) == [
        f"linux-{kind}_6.12.107-1+tegu2_amd64.deb"
        for kind in (
            "image-6.12.107-tegu",
            "headers-6.12.107-tegu",
            "image-tegu",
            "selftests-tegu",
        )
    ]
    with open_deb(tmp_path / "one" / next(iter(first))) as deb:
        assert deb.fields["Package"] == "linux-image-6.12.107-tegu"
        assert deb.fields["Source"] == "linux (6.12.107-1)"
        scripts = {k: v for k, v in deb.control.items() if k in ("postinst", "prerm", "postrm")}
    assert "/etc/kernel/postinst.d" in scripts["postinst"]
    for text in scripts.values():
        subprocess.run(["sh", "-n"], input=text, text=True, check=True)


def test_the_postinst_runs_hooks_when_it_configures(tmp_path: Path) -> None:
    recipe = load_recipe(write(tmp_path))
    written = write_packages(
        recipe,
        tmp_path,
        image=[],
        headers=[],
        selftests=[],
        copyright_text=b"",
        timestamp=0,
    )
    with open_deb(written[0]) as deb:
        text = deb.control["postinst"]
    hooks = tmp_path / "postinst.d"
    hooks.mkdir()
    (hooks / "zz-note").write_text(f'#!/bin/sh\necho "$DEB_MAINT_PARAMS:$1:$2" >> {tmp_path}/ran\n')
    (hooks / "zz-note").chmod(0o755)
    text = text.replace("/etc/kernel/postinst.d", str(hooks))
    for words in (["abort-upgrade", "1"], ["configure", "6.12.106"]):
        subprocess.run(["sh", "-s", *words], input=text, text=True, check=True)
    ran = (tmp_path / "ran").read_text()
    assert ran == "configure 6.12.106:6.12.107-tegu:/boot/vmlinuz-6.12.107-tegu\n"


def test_missing_tools_are_named_together(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    wanted = {"no-such-program": "no-such-package", "nor-this-one": "another"}
    monkeypatch.setattr(tools, "PROGRAMS", wanted)
    monkeypatch.setattr(tools, "_HEADERS", {})
    with pytest.raises(UnsupportedError, match="no-such-program, nor-this-one") as caught:
        build_kernel(load_recipe(write(tmp_path)), Store(tmp_path / "store"))
    assert str(caught.value.hint).startswith("apt-get install another no-such-package")


@pytest.mark.parametrize("content", [b"nonsense", b"-----BEGIN CERTIFICATE-----\n"])
def test_a_key_that_is_none(tmp_path: Path, content: bytes) -> None:
    from tegu.kernel.build import _key
    from tegu.packages import SourcePackage

    recipe = load_recipe(write(tmp_path))
    package = SourcePackage("linux", "1", "", "", "", ())
    with pytest.raises(UsageError, match="cannot read the key"):
        _key(recipe, package, {}, tmp_path / "absent.pem")
    (tmp_path / "key.pem").write_bytes(content)
    with pytest.raises(DefinitionError, match="not a private key with its certificate"):
        _key(recipe, package, {}, tmp_path / "key.pem")


def test_nothing_is_built_in_an_empty_store(tmp_path: Path) -> None:
    store = Store(tmp_path / "store")
    assert last_built(store) is None
    assert built_sources(store, "6.12.107-tegu") is None
