"""The decoder process: same bytes as Python's own, and None for whatever is not for it."""

from __future__ import annotations

import lzma
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tegu.image.xz import XzDecoder, unpacked_size
from tegu.linux import run_isolated


def _library() -> Path:
    found = sorted(Path("/usr/lib").glob("*/liblzma.so.5")) or sorted(
        Path("/lib").glob("*/liblzma.so.5")
    )
    if not found:
        pytest.skip("this machine has no liblzma.so.5")
    return found[0]


def _decode(data: bytes, *more: bytes, library: Path | None = None) -> list[bytes | None]:
    path = library or _library()

    def work(_: Callable[[object], None]) -> list[bytes | None]:
        with XzDecoder.started(path) as decoder:
            assert decoder is not None
            views = (decoder.decode(d) for d in (data, *more))
            return [None if view is None else bytes(view) for view in views]

    return run_isolated(work)


@given(st.lists(st.binary(max_size=300), max_size=4))
def test_the_index_tells_the_size(parts: list[bytes]) -> None:
    content = b"".join(parts)
    assert unpacked_size(lzma.compress(content)) == len(content)


@given(st.binary(max_size=80), st.integers(0, 200), st.integers(0, 255))
def test_no_input_breaks_the_reading_of_the_index(junk: bytes, at: int, value: int) -> None:
    whole = bytearray(lzma.compress(b"content" * 50))
    whole[at % len(whole)] = value
    for data in (junk, junk + b"YZ", bytes(whole)):
        size = unpacked_size(data)
        assert size is None or size >= 0


def test_what_it_decodes_is_what_was_compressed() -> None:
    texts = [b"", b"x", bytes(range(256)) * 9000]
    assert _decode(*(lzma.compress(t) for t in texts)) == texts


def test_damage_is_left_to_the_usual_way() -> None:
    good = lzma.compress(b"fine" * 1000)
    broken = bytearray(good)
    broken[20] ^= 0xFF
    answers = _decode(bytes(broken), good[:-1], b"", b"not xz at all" * 5, good)
    assert answers == [None, None, None, None, b"fine" * 1000]


def test_more_than_the_index_claims_is_refused() -> None:
    # The footer and index of a small file behind the blocks of a large one.
    large, small = lzma.compress(bytes(100_000)), lzma.compress(b"x" * 10)
    assert _decode(large[:-28] + small[-28:]) == [None]


def test_a_library_that_is_none_makes_no_harm(tmp_path: Path) -> None:
    fake = tmp_path / "liblzma.so.5"
    fake.write_bytes(b"\x7fELF" + bytes(100))
    assert _decode(lzma.compress(b"x"), lzma.compress(b"y"), library=fake) == [None, None]


def test_the_process_sees_no_files(tmp_path: Path) -> None:
    """A library that would open a file finds none: the file system is empty but for itself."""
    from tegu.process import run

    source = tmp_path / "probe.c"
    source.write_text(
        "#include <unistd.h>\n#include <stddef.h>\n#include <stdint.h>\n"
        "int lzma_stream_buffer_decode(uint64_t *m, uint32_t f, void *a, const uint8_t *in,\n"
        " size_t *in_pos, size_t in_size, uint8_t *out, size_t *out_pos, size_t out_size) {\n"
        " *in_pos = in_size; *out_pos = out_size;\n"
        ' out[0] = access("/etc/passwd", F_OK) == 0 ? 1 : 2;\n return 0; }\n'
    )
    library = tmp_path / "liblzma.so.5"
    import shutil

    if shutil.which("cc") is None:
        pytest.skip("this machine has no C compiler")
    run(["cc", "-shared", "-fPIC", "-o", library, source])
    assert _decode(lzma.compress(b"x"), library=library) == [b"\x02"]
