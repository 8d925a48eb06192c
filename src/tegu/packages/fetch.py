"""Bringing the packages of a lock into the store: parallel, resumed, verified before they exist."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import FIRST_EXCEPTION, ThreadPoolExecutor, wait
from contextlib import ExitStack
from dataclasses import dataclass
from typing import TYPE_CHECKING

from tegu.errors import FetchError, VerifyError
from tegu.packages.lock import LOCAL, Lock, LockedPackage
from tegu.packages.sources import join, resolve, without_credentials
from tegu.packages.transfer import (
    StoppedError,
    TransientError,
    client,
    local_path,
    refused,
    retrying,
)

if TYPE_CHECKING:
    import httpx

    from tegu.store import Incoming, Store

__all__ = ["fetch_all"]

log = logging.getLogger(__name__)

Progress = Callable[[LockedPackage, int], None]
_CONNECTIONS = 8
_CHUNK = 1 << 18
_WRONG_CONTENT_ATTEMPTS = 2


def fetch_all(
    packages: Sequence[LockedPackage],
    lock: Lock,
    store: Store,
    progress: Progress | None = None,
) -> int:
    """Bring every package of `packages` that the store lacks; returns the bytes downloaded.

    `progress(package, bytes)` is called, from several threads, for each piece that arrives and
    once with 0 bytes when a package is complete. What has arrived of an interrupted download is
    kept and resumed by the next call. Raises FetchError (unreachable, gone), VerifyError (wrong
    content, nothing of it is kept) or StoreError (disk full).
    """
    missing = {p.sha256: p for p in packages if store.blob(p.sha256) is None}
    if not missing:
        return 0
    for package in missing.values():
        if package.repository == LOCAL:
            raise FetchError(
                f"the local package {package.filename} of the lock is not in the store",
                hint="run `tegu lock` where the file is; it brings it in",
            )
    used = {p.repository for p in missing.values()}
    bases = {r.id: resolve(r.uri).url for r in lock.repositories if r.id in used}
    stop = threading.Event()
    fetched = 0
    with ExitStack() as stack:
        web = None
        if any(local_path(url) is None for url in bases.values()):
            web = stack.enter_context(client(connections=_CONNECTIONS))
        # The largest first, so that the last one to arrive is a small one.
        ordered = sorted(missing.values(), key=lambda p: -p.size)
        pool = ThreadPoolExecutor(max_workers=_CONNECTIONS, thread_name_prefix="fetch")
        try:
            downloads = [
                _Download(
                    package=package,
                    url=join(bases[package.repository], package.filename),
                    store=store,
                    web=web,
                    stop=stop,
                    progress=progress or _silent,
                )
                for package in ordered
            ]
            futures = [pool.submit(download.run) for download in downloads]
            done, _ = wait(futures, return_when=FIRST_EXCEPTION)
            fetched = sum(future.result() for future in done)
        finally:
            # Also on Ctrl-C: running downloads see it at their next piece, and keep what they have.
            stop.set()
            pool.shutdown(wait=True, cancel_futures=True)
    return fetched


def _silent(package: LockedPackage, size: int) -> None:
    """Report nothing."""


@dataclass
class _Download:
    """One package on its way; `run` returns the bytes that came over the wire."""

    package: LockedPackage
    url: str
    store: Store
    web: httpx.Client | None
    stop: threading.Event
    progress: Progress
    received: int = 0

    def run(self) -> int:
        package = self.package
        for left in reversed(range(_WRONG_CONTENT_ATTEMPTS)):
            if self.stop.is_set():
                return self.received
            try:
                with self.store.incoming(package.sha256, package.size) as blob:
                    # While we waited for the blob's lock another process may have brought it.
                    if self.store.blob(package.sha256) is None:
                        self._receive(blob)
                    else:
                        raise StoppedError
                self.progress(package, 0)
                return self.received
            except StoppedError:
                return self.received
            except VerifyError as e:
                where = without_credentials(self.url)
                if left == 0:
                    raise VerifyError(
                        f"{where}: {e.message}",
                        hint="the mirror's file is not the one that was locked; use another "
                        "mirror, or make the lock again with `tegu lock --update "
                        f"{package.name}`",
                    ) from e
                log.warning("%s: wrong content, fetching it once more", where)
        raise AssertionError("the last attempt returns or raises")

    def _receive(self, blob: Incoming) -> None:
        path = local_path(self.url)
        if path is not None:
            blob.restart()
            try:
                with path.open("rb") as f:
                    while chunk := f.read(_CHUNK):
                        self._take(blob, chunk)
            except FileNotFoundError as e:
                raise self._gone() from e
            except OSError as e:
                raise FetchError(f"{self.url}: {e.strerror}") from e
            return
        web = self.web
        if web is None:
            raise FetchError(f"{without_credentials(self.url)} is no http, https or file URL")
        retrying(self.url, lambda: self._stream(blob, web), stop=self.stop)

    def _stream(self, blob: Incoming, web: httpx.Client) -> None:
        if blob.offset >= self.package.size:
            return  # all of it came before the interruption; the check follows
        headers = {"Range": f"bytes={blob.offset}-"} if blob.offset else {}
        with web.stream("GET", self.url, headers=headers) as response:
            if response.status_code == 404:
                raise self._gone()
            if response.status_code == 416:
                blob.restart()
                raise TransientError("the server refuses to resume")
            refused(response, self.url)
            if blob.offset and not _continues(response, blob.offset):
                blob.restart()
            for chunk in response.iter_raw(_CHUNK):
                self._take(blob, chunk)
        if blob.offset < self.package.size:
            raise TransientError(
                f"the connection ended after {blob.offset} of {self.package.size} bytes"
            )

    def _take(self, blob: Incoming, chunk: bytes) -> None:
        if self.stop.is_set():
            raise StoppedError
        if blob.offset + len(chunk) > self.package.size:
            blob.write(chunk)  # so that the check fails: it is not the file that was locked
            raise VerifyError(f"larger than the {self.package.size} bytes of the lock")
        blob.write(chunk)
        self.received += len(chunk)
        self.progress(self.package, len(chunk))

    def _gone(self) -> FetchError:
        package = self.package
        return FetchError(
            f"{without_credentials(self.url)} is not on the mirror any more",
            hint=f"{package.name} {package.version} was replaced by a newer version: "
            f"`tegu lock --update {package.name}`, or set base.mirror to an archive that keeps it",
        )


def _continues(response: httpx.Response, offset: int) -> bool:
    """Say whether the answer is the rest of the file from `offset` (RFC 9110, section 14.4)."""
    return response.status_code == 206 and response.headers.get("content-range", "").startswith(
        f"bytes {offset}-"
    )
