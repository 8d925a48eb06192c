"""An image in an OCI layout: manifest and configuration, read and checked.

Image Layout, Manifest and Configuration of the OCI image specification 1.1. Every document is
taken only when its SHA-256 is the one that names it.
"""

from __future__ import annotations

import hashlib
import json
import platform
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tegu.errors import SandboxError, UnsupportedError, VerifyError

__all__ = ["Image", "Layer", "read_image"]

_MAX_DOCUMENT = 4 * 2**20
_MAX_LAYERS = 500
_DIGEST = re.compile(r"sha256:[0-9a-f]{64}")
_MACHINES = {
    "x86_64": "amd64",
    "aarch64": "arm64",
    "riscv64": "riscv64",
    "ppc64le": "ppc64le",
    "s390x": "s390x",
    "loongarch64": "loong64",
}
"""Names of processors in images, by uname(2)'s."""


@dataclass(frozen=True)
class Layer:
    """A layer's blob: digest of the file as it is, bytes, and digest of what is packed in it."""

    digest: str
    size: int
    diff_id: str


@dataclass(frozen=True)
class Image:
    """An image: its layers from the lowest up, and what its configuration says of programs."""

    digest: str
    layers: tuple[Layer, ...]
    env: tuple[str, ...]
    entrypoint: tuple[str, ...]
    cmd: tuple[str, ...]
    cwd: str
    user: str
    blobs: tuple[str, ...]
    """Digests of all blobs that it is made of."""

    @property
    def chain(self) -> str:
        """The content of all layers in their order, as hex: the specification's ChainID."""
        chain = self.layers[0].diff_id if self.layers else f"sha256:{'0' * 64}"
        for layer in self.layers[1:]:
            told = f"{chain} {layer.diff_id}".encode()
            chain = f"sha256:{hashlib.sha256(told).hexdigest()}"
        return chain.removeprefix("sha256:")


def read_image(layout: Path, blobs: Path, what: str) -> Image:
    """Return the one image of a layout whose blobs are in `blobs`; errors begin with `what`.

    Raises VerifyError for what is damaged, SandboxError for what is no image, and UnsupportedError
    for one of another system or processor.
    """
    index = _json(_bytes(layout / "index.json", what), f"{what}: index.json")
    manifests = index.get("manifests")
    if not isinstance(manifests, list) or len(manifests) != 1:
        raise SandboxError(f"{what}: its index does not list one image")
    digest = _digest(manifests[0], f"{what}: index.json")
    manifest = _json(_blob(blobs, digest, what), f"{what}: manifest")
    about = f"{what}: manifest"
    config_digest = _digest(manifest.get("config"), f"{about}: config")
    config = _json(_blob(blobs, config_digest, what), f"{what}: configuration")
    _for_this_machine(config, what)
    rootfs = config.get("rootfs")
    diff_ids = rootfs.get("diff_ids") if isinstance(rootfs, dict) else None
    layers = manifest.get("layers")
    if not isinstance(layers, list) or not isinstance(diff_ids, list):
        raise SandboxError(f"{what}: it lists no layers: no image of a container")
    if len(layers) != len(diff_ids) or len(layers) > _MAX_LAYERS:
        raise SandboxError(f"{what}: {len(layers)} layers, and {len(diff_ids)} digests of content")
    found = []
    for layer, diff_id in zip(layers, diff_ids, strict=True):
        if not isinstance(diff_id, str) or not _DIGEST.fullmatch(diff_id):
            raise SandboxError(f"{what}: configuration: rootfs.diff_ids: {diff_id!r} is no SHA-256")
        size = layer.get("size") if isinstance(layer, dict) else None
        if not isinstance(size, int) or isinstance(size, bool) or not 0 <= size < 2**62:
            raise SandboxError(f"{about}: layers: {size!r} is no size")
        found.append(Layer(_digest(layer, f"{about}: layers"), size, diff_id))
    said = config.get("config") or {}
    if not isinstance(said, dict):
        raise SandboxError(f"{what}: configuration: config is no table")
    return Image(
        digest=digest,
        layers=tuple(found),
        env=_words(said, "Env", what),
        entrypoint=_words(said, "Entrypoint", what),
        cmd=_words(said, "Cmd", what),
        cwd=_word(said, "WorkingDir", what) or "/",
        user=_word(said, "User", what),
        blobs=(digest, config_digest, *(layer.digest for layer in found)),
    )


def _for_this_machine(config: Mapping[str, Any], what: str) -> None:
    system, processor = config.get("os"), config.get("architecture")
    if system != "linux":
        raise UnsupportedError(f"{what} is for {system!r}, and this is Linux")
    here = _MACHINES.get(platform.machine(), platform.machine())
    if processor != here:
        raise UnsupportedError(f"{what} is for {processor!r}, and this machine is {here}")


def _words(said: Mapping[str, Any], name: str, what: str) -> tuple[str, ...]:
    value = said.get(name) or []
    if not isinstance(value, list) or not all(isinstance(v, str) and "\0" not in v for v in value):
        raise SandboxError(f"{what}: configuration: {name} is no list of words")
    return tuple(value)


def _word(said: Mapping[str, Any], name: str, what: str) -> str:
    value = said.get(name) or ""
    if not isinstance(value, str) or "\0" in value:
        raise SandboxError(f"{what}: configuration: {name} is no word")
    return value


def _digest(descriptor: object, what: str) -> str:
    value = descriptor.get("digest") if isinstance(descriptor, dict) else None
    if not isinstance(value, str) or not _DIGEST.fullmatch(value):
        raise SandboxError(f"{what}: {value!r} is no SHA-256 digest")
    return value


def _bytes(path: Path, what: str) -> bytes:
    try:
        with path.open("rb") as f:
            data = f.read(_MAX_DOCUMENT + 1)
    except OSError as e:
        raise SandboxError(f"{what}: {path.name}: {e.strerror}") from e
    if len(data) > _MAX_DOCUMENT:
        raise SandboxError(f"{what}: {path.name}: more than {_MAX_DOCUMENT >> 20} MiB of JSON")
    return data


def _blob(blobs: Path, digest: str, what: str) -> bytes:
    path = blobs / "sha256" / digest.removeprefix("sha256:")
    data = _bytes(path, what)
    if hashlib.sha256(data).hexdigest() != path.name:
        path.unlink(missing_ok=True)
        raise VerifyError(f"{what}: damaged: {digest} has another content")
    return data


def _json(data: bytes, what: str) -> dict[str, Any]:
    try:
        value = json.loads(data)
    except (ValueError, RecursionError) as e:
        raise SandboxError(f"{what}: not JSON") from e
    if not isinstance(value, dict):
        raise SandboxError(f"{what}: a table is wanted")
    return value
