"""An x86 kernel image (bzImage) with a zstd payload, taken apart and put together again.

Where the payload is: Documentation/arch/x86/boot.rst of Linux, `payload_offset`. The kernel's
Makefile makes it with `zstd -22 --ultra` from a pipe and adds its size, which takes about 900 MiB
of memory and gives the same bytes only in the same version of zstd. Both are looked at beforehand
(`require`).
"""

from __future__ import annotations

import re
import struct
import tempfile
from collections.abc import Iterable, Iterator, Mapping
from importlib import import_module
from pathlib import Path
from typing import Any

from tegu.errors import TeguError, UnsupportedError, VerifyError
from tegu.process import require as require_program
from tegu.process import run

__all__ = ["decode", "encode", "require", "settings_of"]

_MAGIC = b"\x28\xb5\x2f\xfd"
_LEVEL = 22
_MEMORY = 1000 << 20
_LARGEST = 1 << 28


def settings_of(data: bytes) -> dict[str, int] | None:
    """Return settings by which `encode` makes these very bytes, None if there are none."""
    place = _payload(data)
    if place is None:
        return None
    try:
        version = _versions()[-1]
        inside = decode(data, _LARGEST)
    except (TeguError, IndexError):
        return None
    start, end = place
    settings = {"head": start, "tail": len(data) - end, "version": version}
    if b"".join(encode(settings, [inside], len(inside))) == data:
        return settings
    return None


def _payload(data: bytes) -> tuple[int, int] | None:
    """Return where the payload and its size begin and end."""
    if data[0x202:0x206] != b"HdrS" or len(data) < 0x1000:
        return None
    (version,) = struct.unpack_from("<H", data, 0x206)
    offset, length = struct.unpack_from("<II", data, 0x248)
    start = ((data[0x1F1] or 4) + 1) * 512 + offset
    end = start + length
    if version < 0x208 or end > len(data) or length < 8 or data[start : start + 4] != _MAGIC:
        return None
    return start, end


def decode(data: bytes, most: int) -> bytes:
    """Return the image with its payload decompressed; VerifyError when it is damaged."""
    place = _payload(data)
    if place is None:
        raise VerifyError("a kernel image has no zstd payload")
    start, end = place
    (size,) = struct.unpack_from("<I", data, end - 4)
    if size > most:
        raise VerifyError("a kernel image is longer than can be")
    module = _module()
    if module is not None:
        decoder = module.ZstdDecompressor(max_window_size=1 << 27)
        try:
            kernel = decoder.decompress(data[start : end - 4], max_output_size=size)
        except module.ZstdError as e:
            raise VerifyError(f"a kernel image cannot be read: {e}") from e
    else:
        kernel = _through(["-dc", "--memory=128MiB"], data[start : end - 4], size)
    if len(kernel) != size:
        raise VerifyError("a kernel image has another size than it says")
    return bytes(data[:start] + kernel + data[end:])


def encode(values: Mapping[str, int], parts: Iterable[bytes], size: int) -> Iterator[bytes]:
    """Yield the kernel image whose inside, `size` bytes, comes in `parts`."""
    try:
        head, tail, version = values["head"], values["tail"], values["version"]
    except KeyError as e:
        raise VerifyError(f"a recoding of the delta lacks {e}") from e
    if min(head, tail) < 0 or head + tail > size or size > _LARGEST:
        raise VerifyError("a recoding of the delta has settings that there cannot be")
    data = b"".join(parts)
    kernel = data[head : len(data) - tail]
    yield data[:head]
    yield _compressed(kernel, version)
    yield struct.pack("<I", len(kernel)) + data[len(data) - tail :]


def _compressed(data: bytes, version: int) -> bytes:
    module = _module()
    if module is not None and version == _number(module.ZSTD_VERSION):
        # As the program does by default: one worker, size unknown, with a checksum.
        packer = module.ZstdCompressor(
            level=_LEVEL, write_checksum=True, write_content_size=False, threads=1
        )
        stream = packer.compressobj()
        step = 1 << 17
        out = [stream.compress(data[i : i + step]) for i in range(0, len(data), step)]
        return b"".join([*out, stream.flush()])
    return _through([f"-{_LEVEL}", "--ultra", "-T1", "-c"], data, _LARGEST)


def _through(options: list[str], data: bytes, most: int) -> bytes:
    program = require_program("zstd", package="zstd")
    with tempfile.TemporaryFile() as out:
        run([program, "-q", *options], stdin=data, stdout=out, timeout=3600)
        out.seek(0)
        return out.read(most + 1)


def require(values: Mapping[str, int]) -> None:
    """Raise UnsupportedError when kernel images cannot be compressed here as they must be."""
    wanted = values.get("version", 0)
    if wanted not in (have := _versions()):
        shown = ", ".join(map(_shown, have)) or "none"
        raise UnsupportedError(
            f"the delta needs zstd {_shown(wanted)}, this machine has {shown}",
            hint="take the whole image",
        )
    free = _available()
    if free < _MEMORY:
        raise UnsupportedError(
            f"the delta needs {_MEMORY >> 20} MiB of memory for a while, {free >> 20} MiB are free",
            hint="take the whole image",
        )


def _available() -> int:
    found = re.search(r"^MemAvailable: +(\d+) kB", Path("/proc/meminfo").read_text(), re.MULTILINE)
    return int(found[1]) * 1024 if found else 0


def _versions() -> list[int]:
    """Return the versions of zstd there are, the program's first, as 10507 for 1.5.7."""
    found = []
    try:
        text = run([require_program("zstd"), "--version"]).stdout
        if match := re.search(r"v(\d+)\.(\d+)\.(\d+)", text):
            found.append(_number((int(match[1]), int(match[2]), int(match[3]))))
    except TeguError:
        pass
    if (module := _module()) is not None:
        found.append(_number(module.ZSTD_VERSION))
    return found


def _number(version: tuple[int, int, int]) -> int:
    return version[0] * 10000 + version[1] * 100 + version[2]


def _shown(version: int) -> str:
    return f"{version // 10000}.{version // 100 % 100}.{version % 100}"


def _module() -> Any:
    """Return the Python package zstandard where it is, as on build machines."""
    try:
        return import_module("zstandard")
    except ImportError:
        return None
