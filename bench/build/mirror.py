"""A mirror on 127.0.0.1 that fetches each file once and then serves it from disk.

All builders of the bench read from it, so the network's share is the same for all and, once the
files are here, close to nothing. It answers as a mirror (`GET /debian/...`) and as an HTTP proxy
(`GET http://any.host/debian/...`), for programs whose security mirror cannot be configured.
"""

from __future__ import annotations

import email.utils
import http.server
import logging
import os
import shutil
import threading
import time
import urllib.parse
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import httpx
from bench.common import BenchError

from tegu.files import atomic_file
from tegu.process import run

__all__ = ["Mirror", "serve", "upstreams"]

log = logging.getLogger(__name__)

INDEX_LIFE = 24 * 3600
"""Seconds for which indexes stay frozen, so that all runs of a day see the same distribution."""


def upstreams() -> dict[str, str]:
    """Return `{"debian": uri, "debian-security": uri}` from this machine's apt sources.

    `apt-get indextargets` (apt-get(8)) prints what apt knows, whatever the sources' file format.
    Raises BenchError on a machine whose apt does not read Debian.
    """
    form = "$(REPO_URI) $(RELEASE)"
    debian = ("Created-By: Packages", "Origin: Debian")
    listed = run(["apt-get", "indextargets", "--format", form, *debian]).stdout.splitlines()
    found: dict[str, str] = {}
    for line in listed:
        uri, _, release = line.partition(" ")
        if uri.startswith("http"):
            name = "debian-security" if release.endswith("-security") else "debian"
            found.setdefault(name, uri.rstrip("/"))
    if set(found) != {"debian", "debian-security"}:
        raise BenchError("this machine's apt sources name no Debian mirror; run apt-get update")
    return found


class Mirror:
    """The cached files and where they come from."""

    def __init__(self, cache: Path, sources: Mapping[str, str]) -> None:
        self.cache = cache
        self.sources = dict(sources)
        self.missing: set[str] = set()
        self.port = 0
        self._client = httpx.Client(follow_redirects=True, timeout=120)
        self._locks: dict[str, threading.Lock] = {}
        self._guard = threading.Lock()

    def uri(self, name: str = "debian") -> str:
        """Return the URI of the mirror `name` as builders must be told."""
        return f"http://127.0.0.1:{self.port}/{name}"

    def drop_old_indexes(self) -> None:
        """Forget indexes older than a day; packages never change and stay."""
        for name in self.sources:
            dists = self.cache / name / "dists"
            if dists.exists() and time.time() - dists.stat().st_ctime > INDEX_LIFE:
                shutil.rmtree(dists)

    def get(self, path: str) -> Path | None:
        """Return the local copy of `name/rest`, fetching it once; None when there is no such file.

        Raises OSError or httpx.HTTPError when the upstream cannot deliver.
        """
        name, _, rest = path.partition("/")
        if name not in self.sources or ".." in rest.split("/"):
            return None
        local = self.cache / name / rest
        with self._guard:
            lock = self._locks.setdefault(path, threading.Lock())
        with lock:
            if path in self.missing:
                return None
            if not local.is_file():
                url = f"{self.sources[name]}/{urllib.parse.quote(rest)}"
                with self._client.stream("GET", url) as answer:
                    if answer.status_code == 404:
                        self.missing.add(path)
                        return None
                    answer.raise_for_status()
                    with atomic_file(local, sync=False) as file:
                        for block in answer.iter_raw():
                            file.write(block)
                    changed = answer.headers.get("last-modified")
                if changed:
                    stamp = email.utils.parsedate_to_datetime(changed).timestamp()
                    os.utime(local, (stamp, stamp))
        return local


class _Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: _Server

    def do_GET(self) -> None:
        path = urllib.parse.unquote(urllib.parse.urlsplit(self.path).path).strip("/")
        try:
            local = self.server.mirror.get(path)
        except (OSError, httpx.HTTPError) as e:
            log.warning("mirror: %s: %s", path, e)
            return self._empty(502)
        if local is None:
            return self._empty(404)
        status = local.stat()
        changed = email.utils.formatdate(status.st_mtime, usegmt=True)
        if self.headers.get("If-Modified-Since") == changed:
            return self._empty(304)
        self.send_response(200)
        self.send_header("Content-Length", str(status.st_size))
        self.send_header("Last-Modified", changed)
        self.end_headers()
        with local.open("rb") as file:
            shutil.copyfileobj(file, self.wfile, 1 << 20)
        return None

    def _empty(self, status: int) -> None:
        self.send_response(status)
        self.send_header("Content-Length", "0")
        self.end_headers()

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002 - the base's name
        log.debug("mirror: " + format, *args)


class _Server(http.server.ThreadingHTTPServer):
    daemon_threads = True
    mirror: Mirror


@contextmanager
def serve(cache: Path) -> Iterator[Mirror]:
    """Serve the mirror on a free port of 127.0.0.1 while the block runs."""
    mirror = Mirror(cache, upstreams())
    mirror.drop_old_indexes()
    server = _Server(("127.0.0.1", 0), _Handler)
    server.mirror = mirror
    mirror.port = server.server_address[1]
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield mirror
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
