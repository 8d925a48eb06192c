"""Package repositories made on the spot: real packages, real indexes, real signatures."""

from __future__ import annotations

import gzip
import hashlib
import http.server
import lzma
import shutil
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from email.utils import formatdate
from pathlib import Path
from typing import Any
from urllib.parse import unquote

import pytest

from tegu.definition import Definition
from tegu.packages.deb_write import DebEntry, write_deb
from tegu.packages.sources import Mirror, Source
from tegu.store import Store

NOW = int(time.time())


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(tmp_path / "store")


class Keys:
    """OpenPGP keys in a GnuPG home of their own; each has its public half in a keyring file."""

    def __init__(self, home: Path) -> None:
        self.home = home
        home.mkdir(mode=0o700)

    def gpg(self, *arguments: str, when: str = "", data: bytes = b"") -> bytes:
        options = ["--batch", "--quiet", "--no-tty", "--homedir", str(self.home)]
        options += ["--pinentry-mode", "loopback", "--passphrase", ""]
        if when:
            options += ["--faked-system-time", f"{when}!"]
        done = subprocess.run(["gpg", *options, *arguments], input=data, capture_output=True)
        assert done.returncode == 0, done.stderr.decode()
        return done.stdout

    def make(self, name: str, *, when: str = "", expires: str = "never") -> Path:
        """Make a key, once; `when` is its time (YYYYMMDDTHHMMSS), `expires` as for gpg."""
        if (keyring := self.home / f"{name}.gpg").exists():
            return keyring
        identity = f"{name} <{name}@tegu.invalid>"
        self.gpg("--quick-generate-key", identity, "ed25519", "sign", expires, when=when)
        keyring.write_bytes(self.gpg("--export", f"<{name}@tegu.invalid>"))
        return keyring

    def sign(self, name: str, text: str, *, when: str = "", expires: str = "") -> bytes:
        options = ["--local-user", f"<{name}@tegu.invalid>", "--digest-algo", "SHA256"]
        if expires:
            options += ["--default-sig-expire", expires]
        return self.gpg(*options, "--clear-sign", when=when, data=text.encode())

    def stop(self) -> None:
        subprocess.run(
            ["gpgconf", "--homedir", str(self.home), "--kill", "all"], capture_output=True
        )


@pytest.fixture(scope="session")
def keys(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Keys]:
    if shutil.which("gpg") is None:
        pytest.skip("gpg is not installed: no keys to sign indexes with")
    made = Keys(tmp_path_factory.mktemp("keys") / "home")
    made.make("archive", when="20200101T000000")
    yield made
    made.stop()


@dataclass
class Repository:
    """A Debian repository in a directory; `publish` writes and signs its indexes."""

    root: Path
    keys: Keys
    suite: str = "stable"
    codename: str = "rock"
    component: str = "main"
    by_hash: bool = False
    forms: tuple[str, ...] = (".xz", ".gz")
    stanzas: list[str] = field(default_factory=list)
    sources: list[str] = field(default_factory=list)
    """Stanzas of the index of source packages."""

    def add(
        self,
        name: str,
        version: str = "1",
        *,
        files: list[DebEntry] | None = None,
        real: bool = False,
        **fields: str,
    ) -> Path:
        """Add a package; `real` makes its .deb too. Fields are given with `_` for `-`."""
        control = {
            "Package": name,
            "Version": version,
            "Architecture": fields.pop("Architecture", "all"),
            "Maintainer": "Nobody <nobody@tegu.invalid>",
            **{key.replace("_", "-"): value for key, value in fields.items()},
            "Description": f"the package {name}",
        }
        plain = version.partition(":")[2] or version
        filename = f"pool/{name}_{plain}_{control['Architecture']}.deb"
        path = self.root / filename
        size, sha256 = 1000, hashlib.sha256(f"{name} {version}".encode()).hexdigest()
        if real:
            path.parent.mkdir(parents=True, exist_ok=True)
            content = files or [DebEntry(f"/usr/share/{name}/data", f"{name} {version}\n".encode())]
            write_deb(path, control, content, timestamp=NOW)
            size, sha256 = path.stat().st_size, hashlib.sha256(path.read_bytes()).hexdigest()
        lines = [f"{key}: {value}" for key, value in control.items()]
        lines += [f"Filename: {filename}", f"Size: {size}", f"SHA256: {sha256}"]
        self.stanzas.append("\n".join(lines) + "\n")
        return path

    def drop(self, name: str, version: str) -> None:
        """Take a package out of the index."""
        head = f"Package: {name}\nVersion: {version}\n"
        self.stanzas = [s for s in self.stanzas if not s.startswith(head)]

    @property
    def dists(self) -> Path:
        return self.root / "dists" / self.codename

    def publish(
        self,
        *,
        key: str = "archive",
        date: int = NOW - 60,
        valid_until: int | None = None,
        when: str = "",
        expires: str = "",
        extra: str = "",
    ) -> None:
        """Write Packages, Release and InRelease; times in seconds since the epoch."""
        plain = "\n".join(self.stanzas).encode()
        forms = {"": plain, ".xz": lzma.compress(plain), ".gz": gzip.compress(plain, mtime=0)}
        folder = self.dists / self.component / "binary-amd64"
        folder.mkdir(parents=True, exist_ok=True)
        sums = []
        for form in ("", *self.forms):
            content = forms[form]
            sha256 = hashlib.sha256(content).hexdigest()
            name = f"{self.component}/binary-amd64/Packages{form}"
            sums.append(f" {sha256} {len(content)} {name}")
            if form:  # like real archives, which announce the plain file but do not have it
                (folder / f"Packages{form}").write_bytes(content)
                if self.by_hash:
                    (folder / "by-hash/SHA256").mkdir(parents=True, exist_ok=True)
                    (folder / "by-hash/SHA256" / sha256).write_bytes(content)
        if self.sources:
            content = lzma.compress("\n".join(self.sources).encode())
            (self.dists / self.component / "source").mkdir(exist_ok=True)
            (self.dists / self.component / "source/Sources.xz").write_bytes(content)
            sha256 = hashlib.sha256(content).hexdigest()
            sums.append(f" {sha256} {len(content)} {self.component}/source/Sources.xz")
        lines = [f"Suite: {self.suite}", f"Codename: {self.codename}"]
        lines += [f"Date: {formatdate(date, usegmt=True)}"]
        if valid_until is not None:
            lines.append(f"Valid-Until: {formatdate(valid_until, usegmt=True)}")
        if self.by_hash:
            lines.append("Acquire-By-Hash: yes")
        lines += ["Architectures: amd64 arm64", f"Components: {self.component}"]
        text = "\n".join([*lines, *([extra] if extra else []), "SHA256:", *sums]) + "\n"
        (self.dists / "InRelease").write_bytes(
            self.keys.sign(key, text, when=when, expires=expires)
        )

    def source(self, **changes: Any) -> Source:
        """Return it as a source to read, by its directory."""
        values: dict[str, Any] = {
            "id": self.codename,
            "uri": f"file://{self.root}",
            "mirror": Mirror(f"file://{self.root}"),
            "suite": self.codename,
            "components": (self.component,),
            "keyrings": (str(self.keys.home / "archive.gpg"),),
            "base": True,
        }
        return Source(**{**values, **changes})

    def definition(self, **packages: Any) -> Definition:
        """Return a definition on top of it."""
        tables = {"tegu": False, **packages}
        return Definition.model_validate(
            {
                "system": {"name": "acme", "version": "1"},
                "base": {
                    "suites": [self.codename],
                    "mirror": f"file://{self.root}",
                    "keyring": self.keys.home / "archive.gpg",
                },
                "kernel": {"package": "none"},
                "packages": tables,
            }
        )


@pytest.fixture
def repository(tmp_path: Path, keys: Keys) -> Repository:
    return Repository(tmp_path / "mirror", keys)


@pytest.fixture
def other_repository(tmp_path: Path, keys: Keys) -> Repository:
    return Repository(tmp_path / "other", keys, suite="other", codename="other")


@dataclass
class Request:
    path: str
    headers: dict[str, str]


class Server(http.server.ThreadingHTTPServer):
    """Serves a directory on 127.0.0.1, with ETags, ranges and faults.

    `faults` maps a path to functions that are each called once, first come first served, instead
    of an answer; they get the handler.
    """

    daemon_threads = True

    def __init__(self, root: Path) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.root = root
        self.requests: list[Request] = []
        self.faults: dict[str, list[Callable[[_Handler], None]]] = {}
        self.ranges = True

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}"

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Clients that go away are what some tests are about."""


class _Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: Server

    def log_message(self, *args: Any) -> None:
        """Tests read `server.requests` instead."""

    def do_GET(self) -> None:
        self.server.requests.append(Request(self.path, dict(self.headers)))
        faults = self.server.faults.get(self.path)
        if faults:
            faults.pop(0)(self)
            return
        path = self.server.root / unquote(self.path.lstrip("/"))
        if not path.is_file():
            self.send_error(404)
            return
        body = path.read_bytes()
        etag = f'"{hashlib.sha256(body).hexdigest()[:16]}"'
        if self.headers.get("If-None-Match") == etag:
            self.send_response(304)
            self.send_header("Content-Length", "0")
            self.end_headers()
            return
        start = 0
        if self.server.ranges and (wanted := self.headers.get("Range")):
            start = int(wanted.removeprefix("bytes=").rstrip("-"))
            self.send_response(206)
            self.send_header("Content-Range", f"bytes {start}-{len(body) - 1}/{len(body)}")
        else:
            self.send_response(200)
        self.send_header("ETag", etag)
        self.send_header("Content-Length", str(len(body) - start))
        self.end_headers()
        self.wfile.write(body[start:])


@pytest.fixture
def serve() -> Iterator[Callable[[Path], Server]]:
    """Return a function that serves a directory over HTTP until the test ends."""
    running: list[Server] = []

    def start(root: Path) -> Server:
        server = Server(root)
        threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True).start()
        running.append(server)
        return server

    yield start
    for server in running:
        server.shutdown()
        server.server_close()


@pytest.fixture(autouse=True)
def _no_waiting(monkeypatch: pytest.MonkeyPatch) -> None:
    """Retries pause for an instant only; the machine's own proxies are not for 127.0.0.1."""
    monkeypatch.setattr("tegu.packages.transfer._PAUSE", 0.01)
    monkeypatch.setenv("no_proxy", "127.0.0.1")
