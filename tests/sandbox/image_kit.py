"""Images of a test's own: layers by tarfile, put together as an OCI layout, and a registry."""

from __future__ import annotations

import gzip
import hashlib
import io
import json
import platform
import tarfile
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

from tegu.sandbox.images.layout import _MACHINES

Entry = tarfile.TarInfo | tuple[tarfile.TarInfo, bytes]


def entry(name: str, content: bytes | None = None, **about: Any) -> tuple[tarfile.TarInfo, bytes]:
    """A file with `content`, a directory without, or what `about` (of TarInfo) says."""
    info = tarfile.TarInfo(name)
    info.mode = 0o755 if content is None else 0o644
    info.type = tarfile.DIRTYPE if content is None else tarfile.REGTYPE
    info.size = len(content or b"")
    for key, value in about.items():
        setattr(info, key, value)
    return info, content or b""


def link(name: str, to: str, *, hard: bool = False) -> tuple[tarfile.TarInfo, bytes]:
    """A symbolic or hard link."""
    return entry(name, type=tarfile.LNKTYPE if hard else tarfile.SYMTYPE, linkname=to)


def tar(*entries: tuple[tarfile.TarInfo, bytes]) -> bytes:
    """A layer's tar."""
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w", format=tarfile.PAX_FORMAT) as archive:
        for info, content in entries:
            archive.addfile(info, io.BytesIO(content) if info.isreg() else None)
    return out.getvalue()


def sha256(data: bytes) -> str:
    """A digest as images write it."""
    return f"sha256:{hashlib.sha256(data).hexdigest()}"


@dataclass
class Made:
    """A layout: its directory, and the digests of layers as packed."""

    path: Path
    layers: list[str] = field(default_factory=list)

    def blob(self, digest: str) -> Path:
        """Where a blob lies."""
        return self.path / "blobs/sha256" / digest.removeprefix("sha256:")


def make_layout(
    path: Path,
    layers: Sequence[bytes],
    *,
    packed: Sequence[bytes] | None = None,
    diff_ids: Sequence[str] | None = None,
    config: dict[str, Any] | None = None,
    architecture: str = "",
) -> Made:
    """Write an OCI layout of tars; `packed` replaces what gzip makes of them."""
    made = Made(path)
    (path / "blobs/sha256").mkdir(parents=True)

    def put(data: bytes, kind: str) -> dict[str, Any]:
        digest = sha256(data)
        made.blob(digest).write_bytes(data)
        return {"mediaType": kind, "digest": digest, "size": len(data)}

    blobs = packed or [gzip.compress(layer, 1, mtime=0) for layer in layers]
    base = "application/vnd.oci.image"
    descriptors = [put(blob, f"{base}.layer.v1.tar+gzip") for blob in blobs]
    made.layers = [d["digest"] for d in descriptors]
    about = {
        "architecture": architecture or _MACHINES.get(platform.machine(), platform.machine()),
        "os": "linux",
        "config": config or {},
        "rootfs": {"type": "layers", "diff_ids": list(diff_ids or map(sha256, layers))},
    }
    manifest = {
        "schemaVersion": 2,
        "mediaType": f"{base}.manifest.v1+json",
        "config": put(json.dumps(about).encode(), f"{base}.config.v1+json"),
        "layers": descriptors,
    }
    top = put(json.dumps(manifest).encode(), f"{base}.manifest.v1+json")
    top["annotations"] = {"org.opencontainers.image.ref.name": "v1"}
    (path / "index.json").write_text(json.dumps({"schemaVersion": 2, "manifests": [top]}))
    (path / "oci-layout").write_text('{"imageLayoutVersion": "1.0.0"}')
    return made


@contextmanager
def registry(made: Made) -> Iterator[tuple[str, list[str]]]:
    """Serve a layout as HOST/app:v1 by the distribution protocol, without TLS, on loopback.

    Yields the reference, and the paths that were asked for.
    """
    asked: list[str] = []
    index = json.loads((made.path / "index.json").read_text())
    top = index["manifests"][0]

    class Handler(BaseHTTPRequestHandler):
        def do_HEAD(self) -> None:
            self.do_GET()

        def do_GET(self) -> None:
            asked.append(self.path)
            last = self.path.rpartition("/")[2]
            digest = top["digest"] if last == "v1" else last
            kind = top["mediaType"] if "/manifests/" in self.path else "application/octet-stream"
            if self.path == "/v2/":
                self._answer(200, "application/json", b"{}")
            elif digest.startswith("sha256:") and made.blob(digest).is_file():
                self._answer(200, kind, made.blob(digest).read_bytes(), digest)
            else:
                said = {"errors": [{"code": "MANIFEST_UNKNOWN", "message": "no such thing"}]}
                self._answer(404, "application/json", json.dumps(said).encode())

        def _answer(self, code: int, kind: str, data: bytes, digest: str = "") -> None:
            self.send_response(code)
            self.send_header("Content-Type", kind)
            self.send_header("Content-Length", str(len(data)))
            if digest:
                self.send_header("Docker-Content-Digest", digest)
            self.end_headers()
            if self.command == "GET":
                self.wfile.write(data)

        def log_message(self, *_: object) -> None:
            return

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield f"127.0.0.1:{server.server_address[1]}/app:v1", asked
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
