"""Decompressing .xz with the liblzma of the lock's tools, in a process that can reach nothing.

Nearly half of unpacking is LZMA, and liblzma has become almost twice as fast since 5.6: the lock's
own one is worth having where this machine's is older. It is a program of the lock like mke2fs, so
it runs apart: its process sees an empty file system, and only memory is shared with it.

Formats and calls: the xz file format 1.2 (sections 2.1.2 and 4), lzma/container.h.
"""

from __future__ import annotations

import ctypes
import mmap
import os
import signal
import struct
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

from tegu.linux import bind, libc, mount, pivot
from tegu.packages.lock import LockedPackage
from tegu.store import Store

__all__ = ["LIBRARY", "XzDecoder", "library_of", "unpacked_size"]

LIBRARY = "liblzma5"
"""The package that holds the library."""

_INPUT = 64 << 20
_OUTPUT = 96 << 20
_MEMORY = 256 << 20  # what a decoder may take; `xz -9` needs 65 MiB
_FOOTER = 12
_REQUEST = struct.Struct("=qq")
_ANSWER = struct.Struct("=q")


def library_of(store: Store, kind: str, tools: Sequence[LockedPackage]) -> Path | None:
    """Return the library among the unpacked `tools` (trees of `kind`), if it is there."""
    for package in tools:
        if package.name == LIBRARY and (tree := store.tree(kind, package.sha256)) is not None:
            return next(iter(sorted(tree.glob("root/usr/lib/*/liblzma.so.5"))), None)
    return None


def unpacked_size(data: bytes) -> int | None:
    """Return the size (bytes) that an .xz of one stream says its content has; None if it has none.

    It is what the file claims: the decoder never writes more, and must come to the same.
    """
    if len(data) < 2 * _FOOTER or data[-2:] != b"YZ":
        return None
    stored = (int.from_bytes(data[-8:-4], "little") + 1) * 4
    index = data[-_FOOTER - stored : -_FOOTER]
    if len(index) != stored or index[0] != 0:
        return None
    try:
        numbers = _integers(index[1:-4])
        total = 0
        for _ in range(next(numbers)):
            next(numbers)
            total += next(numbers)
    except StopIteration:
        return None
    return total


def _integers(data: bytes) -> Iterator[int]:
    """Yield multibyte integers (section 1.2): seven bits a byte, the lowest first."""
    value = shift = 0
    for byte in data:
        value |= (byte & 0x7F) << shift
        shift += 7
        if not byte & 0x80:
            yield value
            value = shift = 0


class XzDecoder:
    """A process that decompresses; use it as a context manager, from one process only."""

    def __init__(self, library: Path) -> None:
        self._memory = mmap.mmap(-1, _INPUT + _OUTPUT)
        asked_r, asked_w = os.pipe()
        told_r, told_w = os.pipe()
        pid = os.fork()
        if pid == 0:
            try:
                os.dup2(asked_r, 0)
                os.dup2(told_w, 1)
                os.closerange(3, os.sysconf("SC_OPEN_MAX"))
                _serve(library, self._memory)
            finally:
                os._exit(1)
        os.close(asked_r)
        os.close(told_w)
        self._pid, self._ask, self._told = pid, asked_w, told_r
        self._working = True

    @classmethod
    @contextmanager
    def started(cls, library: Path | None) -> Iterator[XzDecoder | None]:
        """Start one, or none where there is no library; it ends with the block."""
        if library is None:
            yield None
            return
        decoder = cls(library)
        try:
            yield decoder
        finally:
            decoder.close()

    def close(self) -> None:
        """End the process."""
        os.close(self._ask)
        os.close(self._told)
        with suppress(ChildProcessError):
            os.waitpid(self._pid, 0)

    def decode(self, data: bytes) -> memoryview | None:
        """Return what `data` holds, valid until the next call.

        None when this is not the way to read it: it is too large, damaged, or the library cannot
        run here. The ordinary way then tells which.
        """
        size = unpacked_size(data)
        if not self._working or size is None or size > _OUTPUT or len(data) > _INPUT:
            return None
        self._memory[: len(data)] = data
        try:
            os.write(self._ask, _REQUEST.pack(len(data), size))
            answer = os.read(self._told, _ANSWER.size)
        except OSError:  # it has ended
            answer = b""
        if len(answer) != _ANSWER.size:
            self._working = False
            return None
        if _ANSWER.unpack(answer)[0] != size:
            return None
        return memoryview(self._memory)[_INPUT : _INPUT + size]


def _serve(library: Path, memory: mmap.mmap) -> None:
    """Answer requests until there are no more; runs in the forked process."""
    libc.parent_death_signal(signal.SIGKILL)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    libc.unshare(libc.CLONE_NEWNS)
    empty = Path("/tmp")  # nothing of it is used: the new root is mounted there
    source = os.open(library, os.O_PATH)
    mount("tmpfs", empty, flags=libc.MS_NOSUID | libc.MS_NODEV, data="size=64k,mode=0755")
    inside = empty / "library"
    inside.touch()
    bind(Path(f"/proc/self/fd/{source}"), inside)
    os.close(source)
    pivot(empty)
    code = ctypes.CDLL("/library")
    decode = code.lzma_stream_buffer_decode
    decode.restype = ctypes.c_int
    whole = ctypes.addressof(ctypes.c_char.from_buffer(memory))
    while len(request := os.read(0, _REQUEST.size)) == _REQUEST.size:
        length, size = _REQUEST.unpack(request)
        limit, used, made = ctypes.c_uint64(_MEMORY), ctypes.c_size_t(0), ctypes.c_size_t(0)
        code_of = decode(
            ctypes.byref(limit),
            ctypes.c_uint32(0),
            None,
            ctypes.c_void_p(whole),
            ctypes.byref(used),
            ctypes.c_size_t(length),
            ctypes.c_void_p(whole + _INPUT),
            ctypes.byref(made),
            ctypes.c_size_t(size),
        )
        fine = code_of == 0 and used.value == length
        os.write(1, _ANSWER.pack(made.value if fine else -1))
