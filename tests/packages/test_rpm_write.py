"""Packages of RPM: the files as given, the same bytes each time, read back by rpm itself."""

from __future__ import annotations

import hashlib
import os
import shutil
import stat
import subprocess
from pathlib import Path

import pytest

from tegu.errors import UnsupportedError, UsageError
from tegu.packages import rpm_write
from tegu.packages.deb_write import DebEntry
from tegu.packages.rpm_write import RpmHeader, write_rpm

TIME = 1_788_000_000
HEADER = RpmHeader(
    name="tegu-things",
    version="6.12.107",
    release="1+tegu1",
    architecture="x86_64",
    summary="Things, 100 % of them",
    description="Several lines\nof %{text}.",
    license="Apache-2.0",
    requires=("kmod", "libelf.so.1()(64bit)"),
    provides=("things = 1",),
    scripts={"posttrans": "echo 100%\n", "preun": 'if [ "$1" = 0 ]; then :; fi\n'},
)
FILES = [
    DebEntry("/boot/vmlinuz-6.12.107-tegu", b"kernel"),
    DebEntry("/boot/System.map", b"map", mode=0o600),
    DebEntry("/usr/bin/thing", b"\x7fELF not really", mode=0o4755),
    DebEntry("/usr/lib/modules/6.12.107-tegu/build", target="/usr/src/linux-headers"),
    DebEntry("/usr/lib/modules/6.12.107-tegu/modules.dep", b""),
    DebEntry("/usr/share/things/odd [1] * 5%{x} ü.txt", b"odd"),
    DebEntry("/usr/share/things/x*", b"no pattern"),
    DebEntry("/usr/share/things/xy", b"private", mode=0o600),
    DebEntry("/var/lib/things", mode=0o700),
]

pytestmark = pytest.mark.skipif(
    shutil.which("rpmbuild") is None, reason="rpmbuild (package rpm) is not installed"
)


def rpm(*arguments: str | Path) -> str:
    done = subprocess.run(["rpm", *map(str, arguments)], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_what_rpm_reads_back(tmp_path: Path) -> None:
    path = write_rpm(tmp_path, HEADER, FILES, timestamp=TIME)
    assert path.name == "tegu-things-6.12.107-1+tegu1.x86_64.rpm"
    assert "digests OK" in rpm("-K", path)
    dump = {}
    for line in rpm("-qp", "--dump", path).splitlines():
        # path size mtime digest mode owner group isconfig isdoc rdev symlink; the path may have
        # blanks, the rest not.
        words = line.rsplit(" ", 10)
        dump[words[0]] = words[1:]
    assert {(w[4], w[5]) for w in dump.values()} == {("root", "root")}
    for entry in FILES:
        size, mtime, digest, mode, *_, target = dump.pop(entry.path)
        assert int(mtime) == TIME
        if entry.content is not None:
            assert (int(size), stat.S_IMODE(int(mode, 8))) == (
                len(entry.content),
                entry.permissions,
            )
            assert digest == hashlib.sha256(entry.content).hexdigest()
        elif entry.target is not None:
            assert target == entry.target
        else:
            assert stat.S_IMODE(int(mode, 8)) == entry.permissions
    # Its own directories, and none of those that the system has already.
    assert set(dump) == {"/usr/lib/modules/6.12.107-tegu", "/usr/share/things"}
    requires = rpm("-qp", "--requires", path).splitlines()
    assert {"kmod", "libelf.so.1()(64bit)", "/bin/sh"} <= set(requires)
    assert all(r.startswith(("rpmlib(", "/bin/sh", "kmod", "libelf")) for r in requires)
    assert "things = 1" in rpm("-qp", "--provides", path)
    assert "Things, 100 % of them" in rpm("-qp", "--qf", "%{summary}", path)
    assert "of %{text}." in rpm("-qp", "--qf", "%{description}", path)
    assert "echo 100%" in rpm("-qp", "--scripts", path)
    assert rpm("-qp", "--qf", "%{buildhost} %{buildtime}", path) == f"tegu {TIME}"


def test_the_same_bytes_each_time(tmp_path: Path) -> None:
    first = write_rpm(tmp_path / "a", HEADER, FILES, timestamp=TIME)
    second = write_rpm(tmp_path / "b", HEADER, reversed(FILES), timestamp=TIME)
    assert first.read_bytes() == second.read_bytes()


def test_installed_into_an_empty_root(tmp_path: Path) -> None:
    if os.geteuid() != 0:
        pytest.skip("rpm --root needs root: it changes its root directory")
    path = write_rpm(tmp_path, HEADER, FILES, timestamp=TIME, compression="gz")
    root = tmp_path / "root"
    rpm("--root", root, "--initdb")
    rpm("--root", root, "-i", "--nodeps", "--noscripts", path)
    for entry in FILES:
        place = root / entry.path[1:]
        if entry.content is not None:
            assert place.read_bytes() == entry.content
            assert stat.S_IMODE(place.stat().st_mode) == entry.permissions
        elif entry.target is not None:
            assert str(place.readlink()) == entry.target
    assert rpm("--root", root, "-V", "--nodeps", "tegu-things") == ""


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"name": "a b"}, "no name of an RPM"),
        ({"version": "1-2"}, "no version of an RPM"),
        ({"release": "1\n%post"}, "no version of an RPM"),
        ({"scripts": {"postinst": ""}}, "no script of an RPM"),
        ({"summary": "a\nLicense: b"}, "one line"),
        ({"description": "a\n%files\n/"}, "begins a section"),
    ],
)
def test_what_does_not_fit(tmp_path: Path, change: dict[str, object], message: str) -> None:
    from dataclasses import replace

    with pytest.raises(UsageError, match=message):
        write_rpm(tmp_path, replace(HEADER, **change), FILES, timestamp=TIME)  # type: ignore[arg-type]
    assert list(tmp_path.iterdir()) == []


def test_a_name_that_rpm_cannot_have(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="cannot be in an RPM package"):
        write_rpm(tmp_path, HEADER, [DebEntry("/a\nb", b"")], timestamp=TIME)


def test_without_rpmbuild(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def absent(program: str, *, package: str | None = None) -> str:
        raise UnsupportedError(
            f"the program {program} is not installed", hint=f"install the package {package}"
        )

    monkeypatch.setattr(rpm_write, "require", absent)
    with pytest.raises(UnsupportedError, match="rpmbuild is not installed") as caught:
        write_rpm(tmp_path, HEADER, FILES, timestamp=TIME)
    assert caught.value.hint == "install the package rpm"
