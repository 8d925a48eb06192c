"""Package files: written the same each time, read only when they are what they must be."""

from __future__ import annotations

import gzip
import io
import lzma
import shutil
import subprocess
import tarfile
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tegu.errors import TeguError, UnsupportedError, UsageError, VerifyError
from tegu.packages.deb import Limits, open_deb, parse_fields
from tegu.packages.deb_write import DebEntry, stored_gzip, write_deb

CONTROL = {
    "Package": "apple",
    "Version": "1:1.2-3",
    "Architecture": "all",
    "Maintainer": "Nobody <nobody@tegu.invalid>",
    "Description": "a fruit\n It is red.\n .\n And round.",
}
FILES = [
    DebEntry("/usr/bin/apple", b"#!/bin/sh\n", mode=0o755),
    DebEntry("/usr/share/apple/red", b"x" * 3000),
    DebEntry("/usr/share/apple/link", target="red"),
    DebEntry("/etc/apple.conf", b"a=1\n"),
    DebEntry("/var/lib/apple", mode=0o700),
]
has_dpkg = pytest.mark.skipif(shutil.which("dpkg-deb") is None, reason="dpkg-deb is not installed")


def write(path: Path, **options) -> Path:
    options = {"timestamp": 1_700_000_000, "conffiles": ["/etc/apple.conf"], **options}
    scripts = {"postinst": "#!/bin/sh\nset -e\n", "triggers": "activate-noawait ldconfig\n"}
    return write_deb(path, CONTROL, FILES, scripts=scripts, **options)


def ar(*members: tuple[str, bytes]) -> bytes:
    out = b"!<arch>\n"
    for name, body in members:
        out += f"{name:<16}{0:<12}{0:<6}{0:<6}{'100644':<8}{len(body):<10}`\n".encode() + body
        out += b"\n" * (len(body) & 1)
    return out


def tar(*infos: tuple[tarfile.TarInfo, bytes], format: int = tarfile.GNU_FORMAT) -> bytes:  # noqa: A002
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=format) as made:
        for info, content in infos:
            info.size = len(content)
            made.addfile(info, io.BytesIO(content))
    return buffer.getvalue()


def member(name: str, content: bytes = b"", kind: bytes = tarfile.REGTYPE, link: str = ""):
    info = tarfile.TarInfo(name)
    info.type = kind
    info.linkname = link
    return info, content


CONTROL_TAR = tar(member("./control", b"Package: apple\nVersion: 1\nArchitecture: all\n"))


def deb(data: bytes, control: bytes = CONTROL_TAR) -> bytes:
    return ar(("debian-binary", b"2.0\n"), ("control.tar", control), ("data.tar", data))


@pytest.fixture
def read(tmp_path: Path) -> Callable[..., list[str]]:
    """Return a function that reads a package to its end and returns the names in it."""

    def read(content: bytes, limits: Limits | None = None) -> list[str]:
        path = tmp_path / "x.deb"
        path.write_bytes(content)
        names = []
        with open_deb(path, limits or Limits()) as opened:
            for info, stream in opened.data():
                names.append(info.name)
                if stream is not None:
                    while stream.read(1 << 16):
                        pass
        return names

    return read


@pytest.mark.parametrize("compression", ["none", "stored", "gz", "xz", "zst"])
def test_what_is_written_is_read(tmp_path: Path, compression: str) -> None:
    path = write(tmp_path / "apple.deb", compression=compression)
    with open_deb(path) as opened:
        assert list(opened.fields) == [*list(CONTROL)[:-1], "Installed-Size", "Description"]
        assert opened.fields["Description"] == CONTROL["Description"]
        assert set(opened.control) == {"conffiles", "md5sums", "postinst", "triggers"}
        assert opened.control["conffiles"] == "/etc/apple.conf\n"
        found = {
            info.name: (info.mode, info.linkname, stream.read() if stream else None)
            for info, stream in opened.data()
        }
    assert found["usr/bin/apple"] == (0o755, "", b"#!/bin/sh\n")
    assert found["usr/share/apple/red"] == (0o644, "", b"x" * 3000)
    assert found["usr/share/apple/link"] == (0o777, "red", None)
    assert found["var/lib/apple"][0] == 0o700
    assert list(found) == sorted(found, key=lambda n: [] if n == "." else n.split("/"))


@has_dpkg
@pytest.mark.parametrize("compression", ["none", "stored", "gz", "xz", "zst"])
def test_dpkg_reads_it_the_same(tmp_path: Path, compression: str) -> None:
    path = write(tmp_path / "apple.deb", compression=compression)
    subprocess.run(["dpkg-deb", "-x", path, tmp_path / "tree"], check=True)
    subprocess.run(["dpkg-deb", "-e", path, tmp_path / "control"], check=True)
    assert (tmp_path / "tree/usr/share/apple/red").read_bytes() == b"x" * 3000
    assert (tmp_path / "tree/usr/share/apple/link").readlink() == Path("red")
    sums = subprocess.run(
        ["md5sum", "-c", tmp_path / "control/md5sums"], cwd=tmp_path / "tree", capture_output=True
    )
    assert sums.returncode == 0, sums.stderr
    assert (tmp_path / "control/postinst").stat().st_mode & 0o777 == 0o755
    listing = subprocess.run(["dpkg-deb", "-c", path], capture_output=True, text=True, check=True)
    assert all(" root/root " in line for line in listing.stdout.splitlines())
    version = subprocess.run(["dpkg-deb", "-f", path, "Version"], capture_output=True, text=True)
    assert version.stdout == "1:1.2-3\n"


@has_dpkg
@pytest.mark.parametrize("compression", ["none", "gzip", "xz", "zstd"])
def test_what_dpkg_writes_is_read(tmp_path: Path, read, compression: str) -> None:
    tree = tmp_path / "tree"
    (tree / "DEBIAN").mkdir(parents=True)
    (tree / "DEBIAN/control").write_text("".join(f"{k}: {v}\n" for k, v in CONTROL.items()))
    (tree / "usr/share").mkdir(parents=True)
    long = "n" * 180
    (tree / "usr/share" / long).write_bytes(b"y" * 100_000)
    (tree / "usr/share/again").hardlink_to(tree / "usr/share" / long)
    done = subprocess.run(
        ["dpkg-deb", f"-Z{compression}", "-b", tree, tmp_path / "made.deb"], capture_output=True
    )
    if done.returncode != 0:
        pytest.skip(f"this dpkg-deb cannot write {compression}")
    names = read((tmp_path / "made.deb").read_bytes())
    assert f"usr/share/{long}" in names
    assert "usr/share/again" in names


def test_the_same_content_gives_the_same_bytes(tmp_path: Path) -> None:
    one = write(tmp_path / "one.deb").read_bytes()
    shuffled = {"timestamp": 1_700_000_000, "conffiles": ["/etc/apple.conf"]}
    scripts = {"postinst": "#!/bin/sh\nset -e\n", "triggers": "activate-noawait ldconfig\n"}
    write_deb(tmp_path / "two.deb", CONTROL, FILES[::-1], scripts=scripts, **shuffled)
    assert (tmp_path / "two.deb").read_bytes() == one
    assert write(tmp_path / "three.deb", timestamp=1).read_bytes() != one


@given(st.binary(max_size=200_000))
def test_stored_gzip_is_gzip(data: bytes) -> None:
    assert gzip.decompress(stored_gzip(data)) == data


@pytest.mark.parametrize(
    "entries",
    [
        [DebEntry("relative", b"")],
        [DebEntry("/a/../b", b"")],
        [DebEntry("/a//b", b"")],
        [DebEntry("/a", b""), DebEntry("/a", b"")],
        [DebEntry("/a", b""), DebEntry("/a/b", b"")],
    ],
)
def test_odd_paths_are_not_written(tmp_path: Path, entries: list[DebEntry]) -> None:
    with pytest.raises(UsageError):
        write_deb(tmp_path / "x.deb", CONTROL, entries, timestamp=1)
    assert not (tmp_path / "x.deb").exists()


def test_conffiles_and_fields_must_fit(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="conffile /etc/pear"):
        write_deb(tmp_path / "x.deb", CONTROL, FILES, timestamp=1, conffiles=["/etc/pear"])
    odd = {**CONTROL, "Depends": "a\nEssential: yes"}
    with pytest.raises(UsageError, match="no continuation"):
        write_deb(tmp_path / "x.deb", odd, FILES, timestamp=1)


@pytest.mark.parametrize(
    ("infos", "why"),
    [
        ([member("/etc/passwd")], "absolute name"),
        ([member("./../evil")], "leads elsewhere"),
        ([member("./a/../../evil")], "leads elsewhere"),
        ([member("./a", kind=tarfile.SYMTYPE, link="/etc"), member("./a/passwd")], "no directory"),
        ([member("./a"), member("./a/b")], "no directory"),
        (
            [member("./a", kind=tarfile.SYMTYPE, link="/etc"), member("./a", kind=tarfile.DIRTYPE)],
            "there twice",
        ),
        ([member("./a", kind=tarfile.DIRTYPE), member("./a")], "there twice"),
        ([member("./a"), member("./a")], "there twice"),
        ([member("./a", kind=tarfile.LNKTYPE, link="./../../etc/shadow")], "leads elsewhere"),
        ([member("./a", kind=tarfile.LNKTYPE, link="/etc/shadow")], "absolute"),
        ([member("./a", kind=tarfile.LNKTYPE, link="./b")], "no file before it"),
        (
            [
                member("./l", kind=tarfile.SYMTYPE, link="/etc/shadow"),
                member("./a", kind=tarfile.LNKTYPE, link="./l"),
            ],
            "no file before it",
        ),
        ([member("./a", kind=tarfile.SYMTYPE, link="")], "link to nothing"),
        ([member("./dev", kind=tarfile.CHRTYPE)], "no file, directory or link"),
        ([member("./dev", kind=tarfile.BLKTYPE)], "no file, directory or link"),
        ([member("./pipe", kind=tarfile.FIFOTYPE)], "no file, directory or link"),
        ([member("./", kind=tarfile.SYMTYPE, link="/etc")], "root directory"),
    ],
)
def test_members_that_reach_outside_are_refused(read, infos, why: str) -> None:
    with pytest.raises(VerifyError, match=why):
        read(deb(tar(*infos)))


def test_links_inside_are_fine(read) -> None:
    infos = [
        member("./", kind=tarfile.DIRTYPE),
        member("./etc/", kind=tarfile.DIRTYPE),
        member("./etc/a", b"x"),
        member("./etc/b", kind=tarfile.LNKTYPE, link="./etc/a"),
        member("./etc/c", kind=tarfile.SYMTYPE, link="/run/elsewhere"),
    ]
    assert read(deb(tar(*infos))) == [".", "etc", "etc/a", "etc/b", "etc/c"]


@pytest.mark.parametrize(
    ("suffix", "compress"), [(".xz", lzma.compress), (".gz", gzip.compress), ("", bytes)]
)
def test_bombs_are_stopped_at_the_limit(read, suffix: str, compress) -> None:
    data = compress(tar(member("./zeros", b"\0" * 5_000_000)))
    bomb = ar(
        ("debian-binary", b"2.0\n"), ("control.tar", CONTROL_TAR), (f"data.tar{suffix}", data)
    )
    with pytest.raises(VerifyError, match="more than the 1000000 bytes"):
        read(bomb, Limits(data_bytes=1_000_000))
    with pytest.raises(VerifyError, match="more than the 100 bytes"):
        read(bomb, Limits(control_bytes=100))
    assert read(bomb) == ["zeros"]


def test_too_many_members_are_refused(read) -> None:
    many = deb(tar(*(member(f"./f{n}") for n in range(50))))
    with pytest.raises(VerifyError, match="more than 10 members"):
        read(many, Limits(members=10))


def test_a_header_that_claims_gigabytes_is_refused(read) -> None:
    info, _ = member("././@PaxHeader", kind=tarfile.XHDTYPE)
    info.size = 1 << 34
    header = info.tobuf(tarfile.GNU_FORMAT)
    with pytest.raises(VerifyError):
        read(deb(header + b"\0" * 4096), Limits(data_bytes=1 << 20))


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"!<arch>\n",
        b"not a package at all",
        ar(("control.tar", CONTROL_TAR)),
        ar(("debian-binary", b"1.0\n"), ("control.tar", CONTROL_TAR), ("data.tar", tar())),
        ar(("debian-binary", b"2.0\n"), ("data.tar", tar())),
        ar(("debian-binary", b"2.0\n"), ("control.tar", CONTROL_TAR)),
        ar(("debian-binary", b"2.0\n"), ("control.tar", tar()), ("data.tar", tar())),
        deb(tar(), tar(member("./control", b"Package: apple\n"))),
        deb(tar(), tar(member("./control", b"Package: a\n\0\nVersion: 1\nArchitecture: all"))),
        deb(tar(), tar(member("./../control", b"Package: a\nVersion: 1\nArchitecture: all\n"))),
        deb(b"this is no tar" * 100),
        ar(("debian-binary", b"2.0\n"), ("control.tar.xz", b"no xz"), ("data.tar", tar())),
        ar(("debian-binary", b"2.0\n"), ("control.tar.gz", b"no gz"), ("data.tar", tar())),
        ar(("debian-binary", b"2.0\n"), ("control.tar.zst", b"no zst"), ("data.tar", tar())),
        ar(("debian-binary", b"2.0\n"), ("control.tar", CONTROL_TAR), ("data.tar.lz9", b"")),
        ar(("debian-binary", b"2.0\n"), *[("control.tar", CONTROL_TAR)] * 2),
        deb(tar())[:-700],
        deb(tar()).replace(b"`\n", b"``", 1),
    ],
)
def test_what_is_no_package_is_refused(read, content: bytes) -> None:
    with pytest.raises(TeguError) as caught:
        read(content)
    assert "x.deb" in caught.value.message or "control file" in caught.value.message


@pytest.mark.parametrize("compression", ["none", "gz", "xz", "zst"])
def test_damage_anywhere_is_an_error_or_harmless(tmp_path: Path, read, compression: str) -> None:
    good = write(tmp_path / "good.deb", compression=compression).read_bytes()
    for position in range(0, len(good), 37):
        damaged = bytearray(good)
        damaged[position] ^= 0xFF
        try:
            names = read(bytes(damaged))
        except (VerifyError, UnsupportedError):  # the name of a member says its compression
            continue
        assert all(not n.startswith("/") and ".." not in n.split("/") for n in names)
    for length in range(0, len(good) - 1, 61):
        with pytest.raises(VerifyError):
            read(good[:length])


@settings(deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.data())
def test_any_tar_is_read_or_refused(read, data: st.DataObject) -> None:
    names = st.text("ab./\0é", max_size=6)
    kinds = st.sampled_from(
        [b"0", b"1", b"2", b"3", b"5", b"6", b"7", b"L", b"K", b"x", b"g", b"S"]
    )
    infos = []
    for _ in range(data.draw(st.integers(0, 5))):
        content = data.draw(st.binary(max_size=40))
        infos.append(member(data.draw(names), content, data.draw(kinds), data.draw(names)))
    raw = bytearray(tar(*infos))
    for _ in range(data.draw(st.integers(0, 3))):
        raw[data.draw(st.integers(0, min(len(raw), 3000) - 1))] = data.draw(st.integers(0, 255))
    try:
        found = read(deb(bytes(raw)), Limits(data_bytes=1 << 20))
    except VerifyError:
        return
    assert all(not n.startswith("/") and ".." not in n.split("/") for n in found)


@given(st.text())
def test_any_control_file_is_read_or_refused(text: str) -> None:
    try:
        fields = parse_fields(text)
    except VerifyError:
        return
    assert all(key and " " not in key for key in fields)
