"""Files that are compressed themselves: taken apart for the comparison, put together again.

A small change in a kernel module changes all bytes of its .xz. So the difference is made between
what is inside, and the machine compresses it again with the settings that the file shows. Whoever
makes a delta tries that first: only a file that comes out the same, bit for bit, is recoded.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from types import ModuleType

from tegu.errors import VerifyError
from tegu.host.delta import recode_linux, recode_xz

__all__ = ["Recoding", "decode", "encode", "require_all", "settings_of"]

Recoding = tuple[str, Mapping[str, int]]
"""The kind of file ("xz", "linux") and the settings of its compression."""

_KINDS = {"xz": recode_xz, "linux": recode_linux}


def settings_of(data: bytes) -> Recoding | None:
    """Return how `encode` makes these very bytes, None if it cannot. This compresses them."""
    for name, kind in _KINDS.items():
        if (found := kind.settings_of(data)) is not None:
            return name, found
    return None


def decode(name: str, data: bytes, most: int) -> bytes:
    """Return what is inside `data`, at most `most` bytes; VerifyError when it is damaged."""
    inside: bytes = _known(name).decode(data, most)
    return inside


def encode(how: Recoding, parts: Iterable[bytes], size: int) -> Iterator[bytes]:
    """Yield the compressed file whose inside, `size` bytes, comes in `parts`.

    Raises VerifyError for settings that there cannot be.
    """
    made: Iterator[bytes] = _known(how[0]).encode(how[1], parts, size)
    return made


def require_all(recodings: Iterable[Recoding | None]) -> None:
    """Raise UnsupportedError when this machine lacks what one of the recodings needs."""
    for how in recodings:
        if how is not None and how[0] == "linux":
            recode_linux.require(how[1])
        elif how is not None:
            _known(how[0])


def _known(name: str) -> ModuleType:
    if name not in _KINDS:
        raise VerifyError(f"the delta wants files recoded as {name!r}, which is not known here")
    return _KINDS[name]
