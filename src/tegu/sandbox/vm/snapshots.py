"""Saved machines: a directory with `manifest.json`, `memory`, `state` and `disk`.

The manifest names its format, what wrote it, and each file's size and SHA-256, and ends with a
checksum of itself. Nothing is restored from a snapshot that is damaged, or of another version.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import time
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from tegu.errors import SandboxError, TeguError, UsageError
from tegu.files import write_atomic
from tegu.sandbox.vm.driver import Machine

__all__ = [
    "FORMAT",
    "check_name",
    "copy_sparse",
    "digest",
    "read_manifest",
    "verify",
    "verify_once",
    "write",
]

FORMAT = 1
FILES = ("memory", "state", "disk")
_NAME = re.compile(r"[a-z0-9][a-z0-9._-]{0,63}")
_NOTE = "verified"
_BLOCK = 1 << 20
_MOST = 1 << 20


def check_name(name: object) -> str:
    """Return a snapshot's name. Raises UsageError when it is none."""
    if not isinstance(name, str) or _NAME.fullmatch(name) is None:
        raise UsageError(
            f"snapshot: {name!r} is no name", hint="small letters, digits, '.', '_' and '-'"
        )
    return name


def digest(path: Path) -> str:
    """Return the SHA-256 of where a file holds data, and of the data: holes cost nothing."""
    total = hashlib.sha256()
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        size = os.fstat(fd).st_size
        total.update(b"%d" % size)
        buffer = bytearray(_BLOCK)
        zeros = bytes(_BLOCK)
        at = 0
        while at < size:
            # Blocks of zeros count as holes: a copy may turn one into the other.
            try:
                at = os.lseek(fd, at, os.SEEK_DATA) // _BLOCK * _BLOCK
            except OSError:
                break
            with memoryview(buffer) as view:
                n = os.preadv(fd, [view[: min(_BLOCK, size - at)]], at)
                if n <= 0:
                    break
                if view[:n] != zeros[:n]:
                    total.update(b"|%d|" % at)
                    total.update(view[:n])
            at += n
    finally:
        os.close(fd)
    return total.hexdigest()


def copy_sparse(source: int, target: int) -> None:
    """Copy what holds data from one open file to another, with the holes between."""
    size = os.fstat(source).st_size
    os.ftruncate(target, size)
    at = 0
    while at < size:
        try:
            at = os.lseek(source, at, os.SEEK_DATA)
            end = os.lseek(source, at, os.SEEK_HOLE)
        except OSError:
            return
        while at < end:
            data = os.pread(source, min(_BLOCK, end - at), at)
            if not data:
                return
            os.pwrite(target, data, at)
            at += len(data)


def write(directory: Path, machine: Machine, about: Mapping[str, Any]) -> dict[str, Any]:
    """Write the manifest of a directory that holds the files; returns it."""
    files = {}
    for name in FILES:
        path = directory / name
        if name != "memory":  # whose mode the driver knows
            path.chmod(0o600)
        files[name] = {"size": path.stat().st_size, "sha256": digest(path)}
    body: dict[str, Any] = {
        "format": FORMAT,
        "created": round(time.time(), 3),
        "machine": machine.to_json(),
        "files": files,
        **about,
    }
    body["check"] = _check(body)
    write_atomic(directory / "manifest.json", json.dumps(body, indent=1), mode=0o600)
    _note(directory, body)
    return body


def _check(body: Mapping[str, Any]) -> str:
    rest = {k: v for k, v in body.items() if k != "check"}
    return hashlib.sha256(json.dumps(rest, sort_keys=True).encode()).hexdigest()


def read_manifest(directory: Path, name: str) -> dict[str, Any]:
    """Return a snapshot's manifest. Raises SandboxError when it is missing, damaged or foreign."""
    path = directory / "manifest.json"
    try:
        with path.open("rb") as f:
            data = f.read(_MOST)
    except FileNotFoundError as e:
        raise SandboxError(
            f"there is no snapshot {name}", hint="see `tegu sandbox snapshots`"
        ) from e
    except OSError as e:
        raise SandboxError(f"snapshot {name}: {e.strerror}") from e
    try:
        body = json.loads(data)
        if not isinstance(body, dict):
            raise ValueError("no table")
    except (ValueError, RecursionError) as e:
        raise SandboxError(f"snapshot {name}: its manifest is damaged") from e
    if body.get("format") != FORMAT:
        raise SandboxError(
            f"snapshot {name} is of format {body.get('format')!r}; this version reads {FORMAT}",
            hint="make it anew with this version",
        )
    try:
        right = body["check"] == _check(body) and set(body["files"]) == set(FILES)
        Machine(**body["machine"])
    except (KeyError, TypeError, ValueError):
        right = False
    if not right:
        raise SandboxError(f"snapshot {name}: its manifest is damaged")
    return body


def verify(directory: Path, name: str, body: Mapping[str, Any]) -> None:
    """Check every file against the manifest. Raises SandboxError that names the damaged file."""
    for file, wanted in body["files"].items():
        path = directory / file
        try:
            about = path.stat()
            right = about.st_size == wanted["size"] and digest(path) == wanted["sha256"]
        except FileNotFoundError:
            raise SandboxError(f"snapshot {name} is damaged: {file} is missing") from None
        except OSError as e:
            raise SandboxError(f"snapshot {name}: {file}: {e.strerror}") from e
        if not right:
            raise SandboxError(
                f"snapshot {name} is damaged: {file} does not match its checksum",
                hint="remove it and make it anew",
            )


def verify_once(directory: Path, name: str, body: Mapping[str, Any]) -> None:
    """Check a snapshot's files, unless that was done since they or this host's boot changed.

    Who writes to a file changes its ctime. Raises SandboxError.
    """
    with suppress(OSError, ValueError):
        if json.loads((directory / _NOTE).read_bytes()) == _marks(directory, body):
            return
    verify(directory, name, body)
    _note(directory, body)


def _note(directory: Path, body: Mapping[str, Any]) -> None:
    with suppress(OSError, TeguError):
        write_atomic(directory / _NOTE, json.dumps(_marks(directory, body)), mode=0o600)


def _marks(directory: Path, body: Mapping[str, Any]) -> list[object]:
    boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    found: list[object] = [boot, body["check"]]
    for name in FILES:
        a = (directory / name).stat()
        found.append([a.st_dev, a.st_ino, a.st_size, a.st_mtime_ns, a.st_ctime_ns])
    return found
