"""The kernel's packages for RPM: the same files as in the .deb, byte for byte."""

from __future__ import annotations

import hashlib
import shutil
import subprocess
from pathlib import Path

import pytest

from tegu.cli import front
from tegu.errors import UnsupportedError
from tegu.kernel import Built, load_recipe, rpm_packages
from tegu.kernel.package import write_packages
from tegu.kernel.payload import Selftests
from tegu.packages import open_deb, rpm_write
from tegu.packages.deb_write import DebEntry
from tegu.store import Store

from .test_recipe import write

TIME = 1_788_000_000
RELEASE = "6.12.107-tegu"
IMAGE = [
    DebEntry(f"/boot/vmlinuz-{RELEASE}", b"kernel"),
    DebEntry(f"/boot/System.map-{RELEASE}", b"map", mode=0o600),
    DebEntry(f"/usr/lib/modules/{RELEASE}/modules.dep", b""),
    DebEntry(f"/usr/lib/modules/{RELEASE}/build", target=f"/usr/src/linux-headers-{RELEASE}"),
]
HEADERS = [
    DebEntry(f"/usr/src/linux-headers-{RELEASE}/Makefile", b"all:\n"),
    DebEntry(f"/usr/src/linux-headers-{RELEASE}/scripts/sign-file", b"\x7fELF", mode=0o755),
]


@pytest.fixture
def built(tmp_path: Path) -> Built:
    recipe = load_recipe(write(tmp_path))
    debs = write_packages(
        recipe,
        tmp_path,
        image=IMAGE,
        headers=HEADERS,
        selftests=Selftests([], []),
        copyright_text=b"GPL-2\n",
        timestamp=TIME,
    )
    return Built(RELEASE, recipe.deb_version, tuple(debs), 1, False, {}, {})


def rpm(*arguments: str | Path) -> str:
    command = ["rpm", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout


needs_rpmbuild = pytest.mark.skipif(
    shutil.which("rpmbuild") is None, reason="rpmbuild (package rpm) is not installed"
)


@needs_rpmbuild
def test_equal_to_the_deb_file_by_file(tmp_path: Path, built: Built) -> None:
    recipe = load_recipe(tmp_path / "kernel.toml")
    store = Store(tmp_path / "store")
    paths = rpm_packages(recipe, built, store)
    assert [p.name for p in paths] == [
        f"linux-{kind}-6.12.107-1+tegu2.x86_64.rpm"
        for kind in (f"image-{RELEASE}", f"headers-{RELEASE}", "image-tegu")
    ]
    for deb, path in zip(built.packages, paths, strict=False):
        ours: dict[str, tuple[str, str, str]] = {}
        with open_deb(deb) as package:
            for info, content in package.data():
                if content is not None:
                    digest = hashlib.sha256(content.read()).hexdigest()
                    ours[f"/{info.name}"] = (digest, f"{info.mode:04o}", "X")
                elif info.issym():
                    ours[f"/{info.name}"] = ("", "", info.linkname)
        theirs: dict[str, tuple[str, str, str]] = {}
        for line in rpm("-qp", "--dump", path).splitlines():
            name, _, mtime, digest, mode, owner, group, *_, target = line.split(" ")
            assert (owner, group, int(mtime)) == ("root", "root", TIME)
            if mode.startswith("010"):
                theirs[name] = (digest, mode[-4:], target)
            elif mode.startswith("012"):
                theirs[name] = ("", "", target)
        assert theirs == ours
        assert "digests OK" in rpm("-K", path)
    assert f"kernel-uname-r = {RELEASE}" in rpm("-qp", "--provides", paths[0])
    assert "kernel-install add" in rpm("-qp", "--scripts", paths[0])
    assert f"linux-image-{RELEASE} = 6.12.107-1+tegu2" in rpm("-qp", "--requires", paths[2])
    # Asked again they are there; made again in another store they are the same.
    assert rpm_packages(recipe, built, store) == paths
    again = rpm_packages(recipe, built, Store(tmp_path / "other"))
    assert [p.read_bytes() for p in again] == [p.read_bytes() for p in paths]


def test_without_rpmbuild_nothing_is_built(
    tmp_path: Path,
    built: Built,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    def absent(program: str, *, package: str | None = None) -> str:
        raise UnsupportedError(f"the program {program} is not installed", hint="install rpm")

    monkeypatch.setattr(rpm_write, "require", absent)
    code = front.main(["kernel", "build", "-r", str(tmp_path / "kernel.toml"), "--rpm"])
    assert code == UnsupportedError.exit_code
    assert "rpmbuild is not installed" in capsys.readouterr().err
