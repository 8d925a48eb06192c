"""Compiles the probes' BPF programs, when Tegu is packaged: `python -m tegu.packages.probes`.

Clang makes one object from each `bpf/NAME.bpf.c`, for all kernels and all processors (BPF byte code
has no other difference than byte order). `probe/bpf/objects.json` says from which sources, so that
objects are made again only when those change. What runs on a machine never compiles: it finds the
objects in the package.
"""

from __future__ import annotations

import hashlib
import json
import re
import sys
import tempfile
from functools import cache
from pathlib import Path

import tegu
from tegu.errors import TeguError, UnsupportedError
from tegu.files import write_atomic
from tegu.process import require, run

__all__ = ["OBJECTS", "compile_objects", "compile_one", "main", "sources_digest", "up_to_date"]

OBJECTS = Path(tegu.__file__).parent / "probe" / "bpf"
_NOTE = "objects.json"
# The instructions of Linux 5.1 and later; without dates or directories in the result.
_FLAGS = ("-target", "bpf", "-mcpu=v3", "-O2", "-g", "-Wall", "-Werror", "-mlittle-endian")
_TRIES = ("clang", "clang-19", "clang-18", "clang-17", "clang-16", "clang-15", "clang-14")


def sources_digest(directory: Path = OBJECTS) -> str:
    """Return the SHA-256 of all sources, with their names."""
    digest = hashlib.sha256(repr(_FLAGS).encode())
    for path in sorted(directory.glob("*.[ch]")):
        digest.update(f"\0{path.name}\0".encode() + path.read_bytes())
    return digest.hexdigest()


def up_to_date(directory: Path = OBJECTS) -> bool:
    """Whether there is an object of each source, made from the sources as they are."""
    try:
        note = json.loads((directory / _NOTE).read_text())
    except (OSError, ValueError):
        return False
    return (
        isinstance(note, dict)
        and note.get("sources") == sources_digest(directory)
        and all(_object(s).is_file() for s in directory.glob("*.bpf.c"))
    )


def compile_objects(directory: Path = OBJECTS) -> list[Path]:
    """Compile what is not up to date and return all objects; raises TeguError."""
    sources = sorted(directory.glob("*.bpf.c"))
    if not up_to_date(directory):
        _, version = _compiler()
        digest = sources_digest(directory)
        with tempfile.TemporaryDirectory(prefix="tegu-bpf-") as scratch:
            made = {s: Path(scratch) / _object(s).name for s in sources}
            for source, target in made.items():
                compile_one(source, target, directory)
            for source, target in made.items():
                write_atomic(_object(source), target.read_bytes())
        write_atomic(directory / _NOTE, json.dumps({"sources": digest, "compiler": version}) + "\n")
    return [_object(s) for s in sources]


def compile_one(source: Path, target: Path, headers: Path) -> None:
    """Compile `source`, which may include what is in `headers`; raises TeguError."""
    compiler, _ = _compiler()
    argv = (compiler, *_FLAGS, f"-ffile-prefix-map={source.parent}=.", f"-I{headers}", "-c")
    run((*argv, source.name, "-o", target), cwd=source.parent)


@cache
def _compiler() -> tuple[str, str]:
    for name in _TRIES:
        try:
            path = require(name)
        except UnsupportedError:
            continue
        found = re.search(r"version (\d+\.\S+)", run((path, "--version")).stdout)
        if found is not None:
            return path, found[1]
    raise UnsupportedError(
        "probes are compiled with clang, which is not installed",
        hint="install the packages clang and libbpf-dev",
    )


def _object(source: Path) -> Path:
    return source.with_name(source.name.removesuffix(".c") + ".o")


def main() -> int:
    """Compile; print the objects."""
    try:
        for path in compile_objects():
            print(f"{path.name}\t{path.stat().st_size}")
    except TeguError as e:
        print(f"tegu: {e.message}", file=sys.stderr)
        if e.hint:
            print(f"      {e.hint}", file=sys.stderr)
        return e.exit_code
    return 0


if __name__ == "__main__":
    sys.exit(main())
