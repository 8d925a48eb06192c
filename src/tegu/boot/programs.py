"""Programs of a tree with the libraries they need, for an initrd: of any architecture.

What a program needs is in its dynamic section (elf(5): PT_INTERP, DT_NEEDED). The libraries go
where the dynamic loader looks without a cache (ld.so(8)).
"""

from __future__ import annotations

import struct
from pathlib import Path

from tegu.boot.cpio import Archive
from tegu.errors import BuildError

__all__ = ["add_program", "needs"]

_LOAD, _DYNAMIC, _INTERP = 1, 2, 3
_NEEDED, _STRTAB = 1, 5


def needs(data: bytes, what: str) -> tuple[str, list[str]]:
    """Return the interpreter ("" when it has none) and the libraries that an ELF file names.

    Raises BuildError for a file that is no 64-bit little-endian ELF, or damaged.
    """
    if data[:6] != b"\x7fELF\x02\x01":
        raise BuildError(f"{what} is no program for a 64-bit machine")
    try:
        (table,) = struct.unpack_from("<Q", data, 32)
        size, count = struct.unpack_from("<HH", data, 54)
        loads, interpreter, dynamic = [], "", b""
        for i in range(count):
            kind, _, offset, address, _, length = struct.unpack_from(
                "<IIQQQQ", data, table + i * size
            )
            if kind == _LOAD:
                loads.append((address, offset, length))
            elif kind == _INTERP:
                interpreter = data[offset : offset + length].rstrip(b"\0").decode()
            elif kind == _DYNAMIC:
                dynamic = data[offset : offset + length]
        entries = [struct.unpack_from("<QQ", dynamic, i) for i in range(0, len(dynamic) - 15, 16)]
        names = [value for tag, value in entries if tag == _NEEDED]
        if not names:
            return interpreter, []
        strings = next(value for tag, value in entries if tag == _STRTAB)
        start = next(o + strings - a for a, o, n in loads if a <= strings < a + n)
        found = []
        for name in names:
            end = data.index(b"\0", start + name)
            found.append(data[start + name : end].decode())
    except (struct.error, ValueError, StopIteration, OverflowError) as e:
        raise BuildError(f"{what} is damaged: {e or 'its dynamic section'}") from e
    return interpreter, found


def add_program(archive: Archive, root: Path, name: str, *, package: str) -> None:
    """Put the program `name` of the tree `root` at /bin, and all that it is linked to.

    Raises BuildError naming the Debian `package` when it is not there.
    """
    places = [p for d in ("usr/sbin", "usr/bin", "sbin", "bin") if (p := root / d / name).is_file()]
    if not places:
        raise BuildError(f"{name} is missing, which the initrd needs", hint=f"install {package}")
    data = places[0].read_bytes()
    archive.file(f"bin/{name}", data, 0o755)
    interpreter, wanted = needs(data, name)
    if interpreter:
        path = _loader(root, interpreter)
        archive.file(interpreter.lstrip("/"), path.read_bytes(), 0o755)
    seen: set[str] = {Path(interpreter).name}
    while wanted:
        library = wanted.pop()
        if library in seen:
            continue
        seen.add(library)
        content = _library(root, library).read_bytes()
        # /lib is where the loader of every architecture looks at last.
        archive.file(f"lib/{library}", content, 0o755)
        wanted += needs(content, library)[1]


def _loader(root: Path, path: str) -> Path:
    name = Path(path).name
    choices = [root / path.lstrip("/"), root / "usr" / path.lstrip("/")]
    choices += sorted((root / "usr/lib").glob(f"*/{name}"))
    for choice in choices:
        if choice.is_file():
            return choice
    raise BuildError(f"the dynamic loader {path} is missing", hint="install libc6")


def _library(root: Path, name: str) -> Path:
    for pattern in (f"usr/lib/*-linux-gnu/{name}", f"usr/lib/{name}", f"lib/*-linux-gnu/{name}"):
        for path in sorted(root.glob(pattern)):
            if path.is_file():
                return path
    raise BuildError(f"the library {name} is missing, which the initrd needs")
