"""What a client of the releases does: the whole TUF client workflow, by python-tuf's own updater.

What it has seen is kept in a directory of its own, so that going backwards is noticed.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from tegu.errors import FetchError, ReleaseError, VerifyError
from tegu.files import writable_directory
from tegu.release.signing import tuf

__all__ = ["Client"]

_MAX = 16 << 30


class Client:
    """Reads releases below `url` (the public directory), trusting `root` to begin with.

    `directory` keeps what was seen; `root` (the bytes of a root.json brought by a trusted way) is
    needed the first time only.
    """

    def __init__(self, url: str, directory: Path, root: bytes | None = None) -> None:
        writable_directory(directory)
        known = directory / "root.json"
        if root is None and not known.exists():
            raise ReleaseError(
                "the first time the root metadata must be given",
                hint="--root root.json, brought by a way that you trust",
            )
        client = tuf("tuf.ngclient")
        base = url.rstrip("/")
        with self._told():
            self._updater = client.Updater(
                str(directory),
                f"{base}/metadata/",
                str(directory),
                f"{base}/targets/",
                fetcher=_fetcher(),
                bootstrap=root,
            )
            self._updater.refresh()

    @staticmethod
    def _told() -> Any:
        from contextlib import contextmanager

        @contextmanager
        def told() -> Iterator[None]:
            errors = tuf("tuf.api.exceptions")
            try:
                yield
            except errors.ExpiredMetadataError as e:
                raise VerifyError(
                    f"refused: {e}: the server (or someone before it) holds back what is new",
                    hint="is the clock right? else ask the publisher to refresh",
                ) from e
            except (errors.BadVersionNumberError, errors.EqualVersionNumberError) as e:
                raise VerifyError(f"refused: older than what was seen before: {e}") from e
            except errors.DownloadLengthMismatchError as e:
                raise VerifyError(f"refused: not what was signed: {e}") from e
            except errors.DownloadError as e:
                raise FetchError(f"the releases cannot be fetched: {e}") from e
            except errors.RepositoryError as e:
                raise VerifyError(f"refused: {e}") from e

        return told()

    def names(self) -> list[str]:
        """Return the names of all files of all releases, verified."""
        with self._told():
            trusted: Any = self._updater._trusted_set
            return sorted(trusted.targets.targets)

    def fetch(self, name: str, target: Path) -> Path:
        """Fetch the file `name` ("26.11/manifest.json") to `target`, verified."""
        with self._told():
            info = self._updater.get_targetinfo(name)
            if info is None:
                raise ReleaseError(f"no release has {name}")
            target.parent.mkdir(parents=True, exist_ok=True)
            self._updater.download_target(info, str(target))
        return target


def _fetcher() -> Any:
    """Return a fetcher for http, https and file that speaks as the rest of tegu does."""
    from tegu.packages.repo.place import Place

    interface: Any = tuf("tuf.ngclient.fetcher").FetcherInterface
    errors = tuf("tuf.api.exceptions")

    class Fetcher(interface):  # type: ignore[misc]
        def _fetch(self, url: str) -> Iterator[bytes]:
            head, _, name = url.rpartition("/")
            try:
                with Place(head) as place:
                    data = place.read(name, _MAX)
            except FetchError as e:
                gone = "404" in e.message or "No such file" in e.message or "not on" in e.message
                if gone:
                    raise errors.DownloadHTTPError(e.message, 404) from e
                raise errors.DownloadError(e.message) from e
            step = 1 << 20
            return iter([data[i : i + step] for i in range(0, len(data), step)])

    return Fetcher()
