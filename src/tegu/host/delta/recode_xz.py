"""An .xz file taken apart and put together again, as `xz` and its threads write it.

The format: https://tukaani.org/xz/xz-file-format.txt (version 1.2.1). The compression is liblzma's.
"""

from __future__ import annotations

import lzma
import struct
import zlib
from collections.abc import Iterable, Iterator, Mapping

from tegu.errors import VerifyError

__all__ = ["decode", "encode", "settings_of"]

_MAGIC = b"\xfd7zXZ\0"
_FOOTER = b"YZ"
_CHECKS = {0: 0, 1: 4}  # none, CRC32: what kernel modules may have (their loader knows no other)
_PRESETS = (6, 9, 0)
_LARGEST_DICTIONARY = 64 << 20
_LARGEST_BLOCK = 1 << 28


def settings_of(data: bytes) -> dict[str, int] | None:
    """Return settings by which `encode` makes these very bytes, None if there are none."""
    if not data.startswith(_MAGIC):
        return None
    try:
        inside = decode(data, _LARGEST_BLOCK)
        found = _shape(data)
    except (VerifyError, IndexError, struct.error):
        return None
    if found is None:
        return None
    for preset in _PRESETS:
        settings = {**found, "preset": preset}
        if b"".join(encode(settings, [inside], len(inside))) == data:
            return settings
    return None


def _shape(data: bytes) -> dict[str, int] | None:
    """Read the first block's header: check, dictionary, sizes noted or not, bytes per block."""
    check, flags = data[7], data[13]
    if check not in _CHECKS or flags & 0x3F:
        return None
    place = 14
    size = 0
    if flags & 0x40:
        _, place = _number(data, place)
    if flags & 0x80:
        size, place = _number(data, place)
    if flags & 0xC0 not in (0, 0xC0) or data[place : place + 2] != b"\x21\x01":
        return None
    bits = data[place + 2]
    dictionary = (2 | (bits & 1)) << (bits // 2 + 11)
    if bits > 40 or dictionary > _LARGEST_DICTIONARY:
        return None
    return {
        "check": check,
        "dictionary": dictionary,
        "noted": int(bool(flags)),
        "block": size,
        "header": data[12],
    }


def _number(data: bytes, place: int) -> tuple[int, int]:
    value = shift = 0
    while True:
        byte = data[place]
        value |= (byte & 0x7F) << shift
        place, shift = place + 1, shift + 7
        if not byte & 0x80 or shift > 56:
            return value, place


def decode(data: bytes, most: int) -> bytes:
    """Return what is inside `data`, at most `most` bytes; VerifyError when it is damaged."""
    try:
        decoder = lzma.LZMADecompressor(lzma.FORMAT_XZ, memlimit=160 << 20)
        inside = decoder.decompress(data, most)
    except (lzma.LZMAError, EOFError) as e:
        raise VerifyError(f"a compressed file cannot be read: {e}") from e
    if not decoder.eof or decoder.unused_data:
        raise VerifyError("a compressed file is longer than can be")
    return inside


def encode(values: Mapping[str, int], parts: Iterable[bytes], size: int) -> Iterator[bytes]:
    """Yield the .xz whose inside, `size` bytes, comes in `parts`."""
    try:
        check, preset = values["check"], values["preset"]
        dictionary, block = values["dictionary"], values["block"] or size
        noted, header = values["noted"], values["header"]
    except KeyError as e:
        raise VerifyError(f"a recoding of the delta lacks {e}") from e
    bounds = 4096 <= dictionary <= _LARGEST_DICTIONARY and 0 <= block <= max(_LARGEST_BLOCK, size)
    bounds = bounds and 1 <= header <= 255
    if check not in _CHECKS or preset not in range(10) or not bounds:
        raise VerifyError("a recoding of the delta has settings that there cannot be")
    return _xz(check, preset, dictionary, block, header if noted else -header, parts)


def _xz(
    check: int, preset: int, dictionary: int, block: int, room: int, parts: Iterable[bytes]
) -> Iterator[bytes]:
    """Yield an .xz; `room` is a block header's size byte, negative when it notes no sizes."""
    filters = [{"id": lzma.FILTER_LZMA2, "preset": preset, "dict_size": dictionary}]
    flags = bytes((0, check))
    yield _MAGIC + flags + _crc(flags)
    index = []
    for content in _blocks(parts, block):
        packed = lzma.compress(content, lzma.FORMAT_RAW, filters=filters)
        header = _block_header(
            dictionary, abs(room), (len(packed), len(content)) if room > 0 else None
        )
        sum_ = _crc(content) if _CHECKS[check] else b""
        yield header + packed + bytes(-len(packed) % 4) + sum_
        index.append((len(header) + len(packed) + len(sum_), len(content)))
    listed = b"\0" + _coded(len(index)) + b"".join(_coded(a) + _coded(b) for a, b in index)
    listed += bytes(-len(listed) % 4)
    yield listed + _crc(listed)
    tail = struct.pack("<I", (len(listed) + 4) // 4 - 1) + flags
    yield _crc(tail) + tail + _FOOTER


def _blocks(parts: Iterable[bytes], size: int) -> Iterator[bytes]:
    held = bytearray()
    for part in parts:
        held += part
        while size and len(held) >= size:
            yield bytes(held[:size])
            del held[:size]
    if held:
        yield bytes(held)


def _block_header(dictionary: int, room: int, sizes: tuple[int, int] | None) -> bytes:
    """Return a block header; several threads leave room for the longest sizes."""
    bits = next((b for b in range(41) if (2 | (b & 1)) << (b // 2 + 11) >= dictionary), 40)
    body = bytes((0xC0 if sizes else 0,)) + b"".join(_coded(n) for n in sizes or ())
    body += b"\x21\x01" + bytes((bits,))
    if len(body) + 1 > room * 4:
        raise VerifyError("a recoding of the delta has too little room for its sizes")
    header = bytes((room,)) + body.ljust(room * 4 - 1, b"\0")  # CRC32 not counted: / 4 - 1
    return header + _crc(header)


def _coded(value: int) -> bytes:
    out = bytearray()
    while value >= 0x80:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    out.append(value)
    return bytes(out)


def _crc(data: bytes) -> bytes:
    return struct.pack("<I", zlib.crc32(data))
