"""Where a published repository is read from: a directory, or a web server."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Self
from urllib.parse import unquote

from tegu.errors import FetchError
from tegu.packages.sources import join, without_credentials
from tegu.packages.transfer import client, local_path, refused, retrying

if TYPE_CHECKING:
    import httpx

__all__ = ["Place"]

_CHUNK = 1 << 20


class Place:
    """The root above `dists/`, `rpm/` and `pool/`; use it as a context manager."""

    def __init__(self, url: str) -> None:
        self.url = url.rstrip("/")
        self._root = local_path(url)
        self._stack = ExitStack()
        self._web: httpx.Client | None = None

    def __enter__(self) -> Self:
        if self._root is None:
            self._web = self._stack.enter_context(client())
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    def shown(self, path: str) -> str:
        """Return where `path` is, for messages."""
        if self._root is not None:
            return str(self._root / path)
        return without_credentials(join(self.url, path))

    def folders(self, path: str) -> list[str] | None:
        """Return the names of the directories in `path`; None where they cannot be listed."""
        if self._root is None:
            return None
        folder = self._root / path
        return sorted(p.name for p in folder.iterdir() if p.is_dir()) if folder.is_dir() else []

    def has(self, path: str) -> bool:
        """Say whether there is a file at `path`."""
        if self._root is not None:
            return (self._root / path).is_file()
        try:
            self.read(path, 1 << 24)
        except FetchError:
            return False
        return True

    def read(self, path: str, limit: int) -> bytes:
        """Return the file at `path`; raises FetchError when it is not there or above `limit`."""
        parts: list[bytes] = []
        self._each(path, limit, parts)
        return b"".join(parts)

    def digest(self, path: str, limit: int) -> tuple[int, str]:
        """Return size and SHA-256 of the file at `path`; stops, with an error, above `limit`."""
        return self._each(path, limit, None)

    def _each(self, path: str, limit: int, parts: list[bytes] | None) -> tuple[int, str]:
        if self._root is not None:
            target = Path(unquote(path))
            if target.is_absolute() or ".." in target.parts:
                raise FetchError(f"{self.shown(path)}: leads out of the repository")
            try:
                with (self._root / path).open("rb") as f:
                    return self._take(iter(lambda: f.read(_CHUNK), b""), path, limit, parts)
            except OSError as e:
                raise FetchError(f"{self.shown(path)}: {e.strerror}") from e
        return self._get(path, limit, parts)

    def _get(self, path: str, limit: int, parts: list[bytes] | None) -> tuple[int, str]:
        web, url = self._web, join(self.url, path)
        assert web is not None

        def attempt() -> tuple[int, str]:
            if parts is not None:
                parts.clear()
            with web.stream("GET", url) as response:
                refused(response, url)
                return self._take(response.iter_raw(_CHUNK), path, limit, parts)

        return retrying(url, attempt)

    def _take(
        self, chunks: Iterable[bytes], path: str, limit: int, parts: list[bytes] | None
    ) -> tuple[int, str]:
        digest = hashlib.sha256()
        size = 0
        for chunk in chunks:
            size += len(chunk)
            if size > limit:
                raise FetchError(f"{self.shown(path)}: larger than the {limit} bytes it may have")
            digest.update(chunk)
            if parts is not None:
                parts.append(chunk)
        return size, digest.hexdigest()
