"""Where images come from: OCI layouts, archives and registries, all through skopeo(1)."""

from __future__ import annotations

import json
import re
import resource
import shutil
import signal
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from tegu.errors import FetchError, SandboxError, UsageError
from tegu.process import CommandError, require, run

__all__ = ["Source", "fetch", "parse_source"]

_KINDS = ("oci", "oci-archive", "docker-archive", "docker")
_FORMS = "oci:DIR[:TAG], oci-archive:FILE[:TAG], docker-archive:FILE[:REF] or docker://REF"
_HOUR = 3600.0
_FATAL = re.compile(r'level=fatal msg="((?:[^"\\]|\\.)*)"')


@dataclass(frozen=True)
class Source:
    """An image by transport: `path` is a layout's directory or an archive, or a registry's
    reference; `tag` chooses one image of several."""

    kind: str
    path: str
    tag: str = ""

    def __str__(self) -> str:
        """Return it as skopeo and its users write it (containers-transports(5))."""
        if self.kind == "docker":
            return f"docker://{self.path}"
        return f"{self.kind}:{self.path}" + (f":{self.tag}" if self.tag else "")


def parse_source(text: str) -> Source:
    """Read what a user wrote. Raises UsageError that says what is wrong, or what is not there."""
    kind, mark, rest = text.partition(":")
    if not mark or kind not in _KINDS:
        raise UsageError(f"image: {text!r} is no image", hint=f"write {_FORMS}")
    if any(ord(c) < 0x21 or ord(c) == 0x7F for c in rest) and kind == "docker":
        raise UsageError(f"image: {text!r} holds a character that no reference has")
    if kind == "docker":
        reference = rest.removeprefix("//")
        if reference == rest or not reference or reference.startswith(("/", "-")):
            raise UsageError(f"image: {text!r}: write docker://NAME[:TAG] or docker://HOST/NAME")
        return Source(kind, reference)
    place, _, tag = rest.partition(":")
    path = Path(place).absolute()
    if not place or "\0" in place:
        raise UsageError(f"image: {text!r} names no file", hint=f"write {_FORMS}")
    if kind == "oci":
        if not path.is_dir():
            raise UsageError(f"image: {place} is not a directory")
        if not (path / "index.json").is_file():
            raise UsageError(f"image: {place} is no OCI layout: it has no index.json")
    elif not path.is_file():
        raise UsageError(f"image: {place} is not a file")
    return Source(kind, str(path), tag)


def fetch(
    source: Source,
    into: Path,
    blobs: Path,
    *,
    most: int,
    authfile: Path | None = None,
    tls_verify: bool = True,
) -> None:
    """Copy an image into the OCI layout `into`, its blobs into `blobs`, each kept once.

    What is there already is not fetched again. No blob may be larger than `most` bytes.
    Raises UnsupportedError without skopeo, FetchError when a registry does not deliver,
    SandboxError for a local image that cannot be read.
    """
    skopeo = require("skopeo", package="skopeo")
    words: list[str | Path] = [skopeo, "copy", "--quiet", "--dest-shared-blob-dir", blobs]
    if authfile is not None:
        words += ["--authfile", authfile]
    if source.kind == "docker" and not tls_verify:
        words.append("--src-tls-verify=false")
    words += [str(source), f"oci:{into}:image"]
    try:
        run(words, timeout=_HOUR, prepare=lambda: _bound_files(most))
    except CommandError as e:
        shutil.rmtree(into, ignore_errors=True)
        stderr = e.completed.stderr if e.completed else ""
        reason = _reason(stderr) or e.message
        if "file too large" in reason or (
            e.completed and e.completed.returncode == -signal.SIGXFSZ
        ):
            raise SandboxError(
                f"image {source}: too big: a blob of more than {most >> 20} MiB",
                hint="--max-size allows more",
            ) from e
        kind = FetchError if source.kind == "docker" else SandboxError
        raise kind(f"image {source}: {reason}", hint=_hint(reason)) from e


def _bound_files(most: int) -> None:
    resource.setrlimit(resource.RLIMIT_FSIZE, (most, most))
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)  # the write fails instead, and skopeo says so


def _reason(stderr: str) -> str:
    """Return skopeo's last word, without its log's dress."""
    found = _FATAL.findall(stderr)
    if found:
        try:
            return _plain(str(json.loads(f'"{found[-1]}"')))
        except ValueError:
            return _plain(found[-1])
    lines: Sequence[str] = stderr.strip().splitlines()
    return _plain(lines[-1]) if lines else ""


def _plain(text: str) -> str:
    return "".join(c if c.isprintable() else " " for c in text).strip()


def _hint(reason: str) -> str | None:
    if "HTTP response to HTTPS client" in reason or "not look like a TLS handshake" in reason:
        return "--no-tls-verify speaks HTTP to a registry that has no TLS"
    if "policy.json" in reason:
        return (
            "containers-policy.json(5) says which images are trusted: install "
            "golang-github-containers-common, or write one"
        )
    if "unauthorized" in reason or "authentication required" in reason:
        return "log in with `skopeo login`, or name --authfile"
    return None
