"""A tree as an archive: tar, and an OCI image layout around it."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from tegu.image.programs import Tools, tool_environment

__all__ = ["copy_tree", "file_sha256", "write_oci", "write_tar"]

_LAYER = "application/vnd.oci.image.layer.v1.tar+zstd"
_CONFIG = "application/vnd.oci.image.config.v1+json"
_MANIFEST = "application/vnd.oci.image.manifest.v1+json"
_INDEX = "application/vnd.oci.image.index.v1+json"
_PATH = "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"


def write_tar(
    root: Path, out: Path, *, timestamp: int, tools: Tools, bind: Path | None = None
) -> None:
    """Write `root` to `out` in POSIX (pax) format: sorted, owners as numbers, extended attributes.

    Later modification times are clamped to `timestamp`; access and change times are left out.
    `bind` is the directory that the tool may see, by default that of `out`.
    """
    argv: list[str | Path] = ["tar", "--create", "--file", out, "--directory", root]
    argv += ["--format=posix", "--sort=name", "--numeric-owner", "--one-file-system"]
    argv += [f"--mtime=@{timestamp}", "--clamp-mtime", "--xattrs", "--xattrs-include=*"]
    argv += ["--pax-option=exthdr.name=%d/PaxHeaders/%f,delete=atime,delete=ctime", "."]
    tools.run(argv, binds=[root, bind or out.parent], env=tool_environment(timestamp))


def copy_tree(root: Path, out: Path, *, timestamp: int, tools: Tools) -> None:
    """Copy `root` into the empty directory `out`, with owners, links and extended attributes."""
    tar = out.parent / ".tree.tar"
    write_tar(root, tar, timestamp=timestamp, tools=tools)
    argv: list[str | Path] = ["tar", "--extract", "--file", tar, "--directory", out]
    argv += ["--same-owner", "--same-permissions", "--numeric-owner"]
    argv += ["--xattrs", "--xattrs-include=*", "--delay-directory-restore"]
    tools.run(argv, binds=[out.parent], env=tool_environment(timestamp))
    tar.unlink()


def file_sha256(path: Path) -> str:
    """Return the SHA-256 (hex) of a file."""
    with path.open("rb") as f:
        return hashlib.file_digest(f, "sha256").hexdigest()


def write_oci(
    root: Path,
    out: Path,
    *,
    architecture: str,
    tag: str,
    labels: Mapping[str, str],
    timestamp: int,
    tools: Tools,
    command: Sequence[str] = ("/bin/sh",),
) -> str:
    """Make the directory `out` an OCI image layout with one image of one layer; returns its digest.

    Follows the OCI Image Format Specification 1.1. `architecture` is a GOARCH, `tag` the reference
    name under which the image is found.
    """
    blobs = out / "blobs/sha256"
    blobs.mkdir(parents=True)
    tar, packed = out / ".layer.tar", out / ".layer.zst"
    write_tar(root, tar, timestamp=timestamp, tools=tools, bind=out.parent)
    argv: list[str | Path] = ["zstd", "-q", "-3", "--single-thread", "-o", packed, tar]
    tools.run(argv, binds=[out.parent], env=tool_environment(timestamp))
    diff_id = file_sha256(tar)
    tar.unlink()
    layer = {"mediaType": _LAYER, "digest": "", "size": packed.stat().st_size}
    digest = file_sha256(packed)
    layer["digest"] = f"sha256:{digest}"
    packed.rename(blobs / digest)

    created = datetime.fromtimestamp(timestamp, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
    config = {
        "created": created,
        "architecture": architecture,
        "os": "linux",
        "config": {"Env": [_PATH], "Cmd": list(command), "Labels": dict(labels)},
        "rootfs": {"type": "layers", "diff_ids": [f"sha256:{diff_id}"]},
        "history": [{"created": created, "created_by": "tegu build"}],
    }
    manifest = {
        "schemaVersion": 2,
        "mediaType": _MANIFEST,
        "config": _blob(blobs, config, _CONFIG),
        "layers": [layer],
        "annotations": dict(labels),
    }
    entry = _blob(blobs, manifest, _MANIFEST)
    entry["platform"] = {"architecture": architecture, "os": "linux"}
    entry["annotations"] = {"org.opencontainers.image.ref.name": tag}
    index = {"schemaVersion": 2, "mediaType": _INDEX, "manifests": [entry]}
    (out / "oci-layout").write_bytes(_json({"imageLayoutVersion": "1.0.0"}))
    (out / "index.json").write_bytes(_json(index))
    return str(entry["digest"])


def _json(value: Any) -> bytes:
    return json.dumps(value, sort_keys=True, separators=(",", ":")).encode()


def _blob(blobs: Path, value: Any, media_type: str) -> dict[str, Any]:
    data = _json(value)
    digest = hashlib.sha256(data).hexdigest()
    (blobs / digest).write_bytes(data)
    return {"mediaType": media_type, "digest": f"sha256:{digest}", "size": len(data)}
