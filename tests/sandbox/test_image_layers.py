"""Layers: what they make of a tree, and what they must not."""

from __future__ import annotations

import gzip
import io
import os
import stat
import tarfile
from collections import Counter
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.sandbox.image_kit import entry, link, sha256, tar

from tegu.errors import SandboxError, TeguError, VerifyError
from tegu.sandbox.images.accounts import find_account
from tegu.sandbox.images.layers import apply_layer
from tegu.sandbox.images.layout import Layer
from tegu.sandbox.images.packed import Budget, Packed

ROOT = os.geteuid() == 0


def apply(
    tree: Path, layer: bytes, packed: bytes | None = None, size: int = 2**30, **wrong: str | int
) -> Counter[str]:
    """Apply a tar to a tree, as a layer with right digests but for what `wrong` says."""
    blob = tree.with_name("blob")
    data = gzip.compress(layer, 1, mtime=0) if packed is None else packed
    blob.write_bytes(data)
    about = {"digest": sha256(data), "size": len(data), "diff_id": sha256(layer), **wrong}
    fd = os.open(tree, os.O_RDONLY | os.O_DIRECTORY)
    budget = Budget(size, 1000)
    try:
        return apply_layer(fd, Packed(blob, Layer(**about), budget), budget)  # type: ignore[arg-type]
    finally:
        os.close(fd)


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    path = tmp_path / "tree"
    path.mkdir()
    return path


def names(tree: Path) -> list[str]:
    return sorted(str(path.relative_to(tree)) for path in tree.rglob("*"))


def own(name: str, content: bytes | None = None, **about: object) -> tuple[tarfile.TarInfo, bytes]:
    """An entry that whoever runs the tests may own."""
    return entry(name, content, **{"uid": os.geteuid(), "gid": os.getegid(), **about})


def test_files_and_kinds(tree: Path) -> None:
    left_out = apply(
        tree,
        tar(
            own("./"),
            own("./a/", mode=0o1777, mtime=7),
            own("a/f", b"text", mode=0o4711, mtime=12345),
            own("implied/by/file", b"x"),
            (link("a/l", "/nowhere")[0], b""),
            link("a/h", "a/f", hard=True),
            own("p", type=tarfile.FIFOTYPE),
            own("null", type=tarfile.CHRTYPE, devmajor=1, devminor=3),
            own("/absolute", b"in the tree"),
        ),
    )
    assert left_out == {"devices": 1}
    assert stat.S_IMODE((tree / "a").stat().st_mode) == 0o1777
    assert (tree / "a").stat().st_mtime == 7
    about = (tree / "a/f").stat()
    assert (stat.S_IMODE(about.st_mode), about.st_mtime, about.st_nlink) == (0o4711, 12345, 2)
    assert (tree / "a/l").readlink() == Path("/nowhere")
    assert stat.S_ISFIFO((tree / "p").stat().st_mode)
    assert (tree / "absolute").read_bytes() == b"in the tree"
    assert (tree / "implied/by/file").read_bytes() == b"x"


@pytest.mark.skipif(not ROOT, reason="only root may give files away")
def test_owners_and_attributes(tree: Path) -> None:
    info, content = own("f", b"x", uid=1000, gid=44)
    info.pax_headers = {
        "SCHILY.xattr.user.note": "kept",
        "SCHILY.xattr.user.overlay.opaque": "y",
        "SCHILY.xattr.trusted.overlay.opaque": "y",
    }
    left_out = apply(tree, tar((info, content)))
    about = (tree / "f").stat()
    assert (about.st_uid, about.st_gid) == (1000, 44)
    assert left_out["attributes"] in (2, 3)  # some file systems keep no user's attributes
    assert "user.overlay.opaque" not in os.listxattr(tree / "f")


def test_whiteouts_hide_lower_layers_only(tree: Path) -> None:
    apply(
        tree, tar(own("d/old", b"1"), own("d/sub/old", b"1"), own("e/gone", b"1"), own("f", b"1"))
    )
    apply(
        tree,
        tar(
            own("d/new", b"2"),
            own("d/.wh..wh..opq", b""),  # after what is new: it is spared all the same
            own("d/sub/new", b"2"),
            own("e/.wh.gone", b""),
            own(".wh.f", b""),
            own("f", b"2"),
            own(".wh.never-there", b""),
            own("no/such/.wh.thing", b""),
            own(".wh..wh.plnk", b""),
        ),
    )
    assert names(tree) == ["d", "d/new", "d/sub", "d/sub/new", "e", "f"]
    assert (tree / "f").read_bytes() == b"2"


def test_kinds_take_the_place_of_others(tree: Path) -> None:
    apply(
        tree, tar(own("a/b/c", b"1"), own("file", b"1"), link("link", "/etc"), own("same/x", b""))
    )
    apply(
        tree,
        tar(own("a", b"now a file"), own("file"), own("link"), own("link/x", b"2"), own("same")),
    )
    assert (tree / "a").read_bytes() == b"now a file"
    assert (tree / "file").is_dir()
    assert not (tree / "link").is_symlink()
    assert (tree / "same/x").exists()


def test_no_name_leads_out(tree: Path, tmp_path: Path) -> None:
    victim = tmp_path / "victim"
    victim.write_text("whole")
    outside = tmp_path / "outside"
    outside.mkdir()
    for bad in (
        own("../victim", b"gone"),
        own("a/../../victim", b"gone"),
        own("..", None),
        link("stolen", "../victim", hard=True),
        link("stolen", str(victim), hard=True),
        own("x/.wh...", b""),
    ):
        with pytest.raises(SandboxError) as e:
            apply(tree, tar(bad))
        assert "\n" not in e.value.message
    # Links of the tree itself: followed within it, wherever they point.
    apply(tree, tar(link("out", str(outside)), link("up", "../../../../../outside")))
    with pytest.raises(SandboxError, match="out is a link to nothing"):
        apply(tree, tar(own("out/f", b"inside")))
    apply(tree, tar(own(str(outside)), own("outside")))
    for name in ("out", "up"):
        apply(
            tree,
            tar(own(f"{name}/f", b"inside")),
        )
    apply(tree, tar(own("out/.wh.f", b""), own("up/.wh..wh..opq", b"")))
    assert list(outside.iterdir()) == []
    assert victim.read_text() == "whole"


def test_links_that_loop_or_hang(tree: Path) -> None:
    apply(tree, tar(link("a", "b"), link("b", "a"), own("f", b"")))
    for bad in (own("a/x", b""), own("f/x", b""), link("h", "nothing", hard=True)):
        with pytest.raises(SandboxError) as e:
            apply(tree, tar(bad))
        assert e.value.message


def test_damage_is_told(tree: Path) -> None:
    layer = tar(own("f", os.urandom(50_000)))
    packed = gzip.compress(layer, 1, mtime=0)
    flipped = bytearray(packed)
    flipped[len(packed) // 2] ^= 1
    with pytest.raises(VerifyError, match="damaged"):
        apply(tree, layer, bytes(flipped), digest=sha256(packed))
    with pytest.raises(VerifyError, match="damaged: it ends too early"):
        apply(tree, layer, packed[:-9])
    with pytest.raises(VerifyError, match="damaged: 0 bytes"):
        apply(tree, layer, b"", digest=sha256(packed))
    with pytest.raises(VerifyError, match="not the one that the configuration names"):
        apply(tree, layer, diff_id=sha256(b"another"))
    with pytest.raises(VerifyError, match=r"damaged: .* announced"):
        apply(tree, layer, digest=sha256(b"another"))
    with pytest.raises(VerifyError, match="damaged"):
        apply(tree, b"not a tar" * 1000)


def test_more_than_one_member_and_plain_tar(tree: Path) -> None:
    layer = tar(own("a", b"1" * 3_000_000), own("b", b"2"))
    halves = gzip.compress(layer[:100_000], 1) + gzip.compress(layer[100_000:], 9)
    apply(tree, layer, halves)
    apply(tree, layer, layer)
    assert (tree / "a").stat().st_size == 3_000_000


def test_zstd(tree: Path) -> None:
    zstandard = pytest.importorskip("zstandard", reason="Python's zstandard is not installed")
    layer = tar(own("a", b"1" * 3_000_000))
    apply(tree, layer, zstandard.ZstdCompressor(1).compress(layer))
    assert (tree / "a").stat().st_size == 3_000_000
    with pytest.raises(VerifyError, match="damaged"):
        apply(tree, layer, b"\x28\xb5\x2f\xfd" + b"\xff" * 100)


def test_too_big(tree: Path) -> None:
    bomb = tar(own("f", b"\0" * 20_000_000))
    with pytest.raises(SandboxError, match="too big: more than 4 MiB"):
        apply(tree, bomb, size=4 * 2**20)
    with pytest.raises(SandboxError, match="too big: more than 1000 files"):
        apply(tree, tar(*(own(f"f{n}", b"") for n in range(1001))))


def test_a_sparse_file_counts_whole(tree: Path) -> None:
    info, _ = own("hole", b"")
    info.size = 0
    info.pax_headers = {
        "GNU.sparse.major": "0",
        "GNU.sparse.minor": "1",
        "GNU.sparse.map": "0,0",
        "GNU.sparse.numblocks": "1",
        "GNU.sparse.size": str(2**40),
    }
    with pytest.raises(SandboxError, match="too big"):
        apply(tree, tar((info, b"")), size=2**20)


GOOD = tar(
    own("etc/", None),
    own("etc/passwd", b"root:x:0:0::/:/bin/sh\n"),
    link("l", "/etc"),
    own("l/f", b"y" * 700),
    own("etc/.wh.old", b""),
    link("h", "etc/passwd", hard=True),
)


@settings(max_examples=150, deadline=None)
@given(
    st.lists(
        st.tuples(st.integers(0, len(GOOD) - 1), st.integers(0, 255)), min_size=1, max_size=12
    ),
    st.integers(0, len(GOOD)),
)
def test_nonsense_is_an_error_and_stays_inside(
    tmp_path_factory: pytest.TempPathFactory, changes: list[tuple[int, int]], cut: int
) -> None:
    place = tmp_path_factory.mktemp("n")
    (place / "tree").mkdir()
    broken = bytearray(GOOD)
    for at, value in changes:
        broken[at] = value
    try:
        apply(place / "tree", bytes(broken[: cut or None]), size=2**24)
    except TeguError as e:
        assert e.message
        assert "\n" not in e.message
    assert sorted(p.name for p in place.iterdir()) == ["blob", "tree"]


@pytest.mark.parametrize(
    ("user", "words", "home"),
    [
        ("", "0:0", "/root"),
        ("app", "1000:1000,44", "/home/app"),
        ("1000", "1000:1000,44", "/home/app"),
        ("app:extra", "1000:44", "/home/app"),
        ("app:7", "1000:7", "/home/app"),
        ("4321", "4321:0", ""),
        ("4321:4", "4321:4", ""),
    ],
)
def test_accounts(tree: Path, user: str, words: str, home: str) -> None:
    (tree / "etc").mkdir()
    (tree / "etc/passwd").write_text(
        "root:x:0:0::/root:/bin/sh\nbroken\napp:x:1000:1000::/home/app:\n"
    )
    (tree / "etc/group").write_text("root:x:0:\napp:x:1000:\nextra:x:44:other,app\n")
    fd = os.open(tree, os.O_RDONLY)
    try:
        account = find_account(fd, user)
    finally:
        os.close(fd)
    assert (account.words, account.home) == (words, home)


@pytest.mark.parametrize("user", ["nobody-here", "app:nogroup", "70000", "0:99999", "-1", "٣"])
def test_accounts_that_are_not_there(tree: Path, user: str) -> None:
    (tree / "etc").mkdir()
    (tree / "etc/passwd").symlink_to("/etc/passwd-of-the-tree")  # leads nowhere, not to the host
    fd = os.open(tree, os.O_RDONLY)
    try:
        with pytest.raises(SandboxError, match="User: "):
            find_account(fd, user)
    finally:
        os.close(fd)


def test_streams_in_small_parts(tree: Path) -> None:
    layer = tar(own("f", b"z" * 5000))
    blob = tree.with_name("blob")
    blob.write_bytes(gzip.compress(layer))
    about = Layer(sha256(blob.read_bytes()), blob.stat().st_size, sha256(layer))
    packed = Packed(blob, about, Budget(2**20, 10))
    out = io.BytesIO()
    while part := packed.read(7):
        out.write(part)
    packed.finish()
    assert out.getvalue() == layer
