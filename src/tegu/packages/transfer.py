"""Getting files from mirrors: http, https and file, with proxies, retries and errors that tell.

Proxies: apt's own (`Acquire::http::Proxy`, apt.conf(5)) go first, then the environment's
(`http_proxy`, `https_proxy`, `no_proxy`), which httpx reads itself. Passwords: in the URL, or by
host in $NETRC or ~/.netrc; a lock never holds them.
"""

from __future__ import annotations

import logging
import os
import random
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import unquote, urlsplit

from tegu import __version__
from tegu.errors import FetchError
from tegu.packages.aptconfig import AptSettings, read_settings
from tegu.packages.sources import without_credentials

if TYPE_CHECKING:
    import httpx

__all__ = [
    "Attempts",
    "StoppedError",
    "TransientError",
    "client",
    "local_path",
    "refused",
    "transient",
]

log = logging.getLogger(__name__)

ATTEMPTS = 4
_PAUSE = 0.5  # seconds before the second attempt; doubled for each further one
_RETRIED_STATUS = frozenset({408, 425, 429, 500, 502, 503, 504})


class StoppedError(Exception):
    """Another transfer failed, or the user interrupted: this one is given up, silently."""


class TransientError(Exception):
    """An attempt failed in a way that another attempt may mend."""


def local_path(url: str) -> Path | None:
    """Return the path of a `file:` URL, None for any other."""
    parts = urlsplit(url)
    return Path(unquote(parts.path)) if parts.scheme == "file" else None


class Attempts:
    """Iterates over the attempts to get `url`, with a growing pause between them.

    `failed` notes why an attempt failed; when none is left the iteration raises FetchError. Once
    `stop` is set it raises StoppedError, also out of a pause.
    """

    def __init__(
        self, url: str, *, attempts: int = ATTEMPTS, stop: threading.Event | None = None
    ) -> None:
        self.url = without_credentials(url)
        self._stop = stop or threading.Event()
        self._left = attempts
        self._all = attempts
        self._why = ""

    def __iter__(self) -> Iterator[int]:
        for number in range(1, self._all + 1):
            if number > 1:
                log.info("%s: %s; attempt %d of %d", self.url, self._why, number, self._all)
                # Jitter, so that eight connections do not come back in one instant.
                self._stop.wait(_PAUSE * 2 ** (number - 2) * (0.75 + random.random() / 2))
            if self._stop.is_set():
                raise StoppedError
            yield number
        raise FetchError(
            f"{self.url}: {self._why} ({self._all} attempts)",
            hint="check the network and the mirror (base.mirror); what has arrived is kept, "
            "so running it again resumes",
        )

    def failed(self, error: Exception) -> None:
        """Note why this attempt failed."""
        self._why = str(error) or type(error).__name__


@contextmanager
def client(*, connections: int = 8) -> Iterator[httpx.Client]:
    """Yield an httpx client with apt's proxies, keep-alive and bounded waits (seconds)."""
    import httpx

    settings = read_settings()
    with httpx.Client(
        timeout=httpx.Timeout(20, connect=10, pool=None),
        limits=httpx.Limits(max_connections=connections, max_keepalive_connections=connections),
        follow_redirects=True,
        mounts=_mounts(settings),
        auth=_auth(),
        headers={"User-Agent": f"tegu/{__version__}", "Accept-Encoding": "identity"},
    ) as it:
        yield it


def _auth() -> httpx.Auth | None:
    import netrc

    import httpx

    path = Path(os.environ.get("NETRC") or "~/.netrc").expanduser()
    if not path.is_file():
        return None
    try:
        return httpx.NetRCAuth(str(path))
    except (OSError, netrc.NetrcParseError) as e:
        raise FetchError(f"{path}: {e}") from e


def _mounts(settings: AptSettings) -> dict[str, httpx.HTTPTransport | None]:
    import httpx

    mounts: dict[str, httpx.HTTPTransport | None] = {}
    for key, proxy in settings.proxies.items():
        scheme, _, host = key.partition("::")
        pattern = f"{scheme}://{host}"
        mounts[pattern] = None if proxy == "DIRECT" else httpx.HTTPTransport(proxy=proxy)
    return mounts


def transient(error: httpx.HTTPError) -> TransientError:
    """Return `error` as one to retry, in words that name the cause."""
    import httpx

    if isinstance(error, httpx.TimeoutException):
        return TransientError("the server did not answer in time")
    if isinstance(error, httpx.ConnectError):
        return TransientError(f"cannot connect: {error}")
    return TransientError(str(error) or type(error).__name__)


def refused(response: httpx.Response, url: str) -> None:
    """Raise for a status that is no content: TransientError to retry, else FetchError."""
    status = response.status_code
    if status in _RETRIED_STATUS:
        raise TransientError(f"the server answered {status} {response.reason_phrase}")
    shown = without_credentials(url)
    if status in (401, 403):
        raise FetchError(f"{shown}: the server refuses access ({status})")
    if status >= 300:
        raise FetchError(f"{shown}: the server answered {status} {response.reason_phrase}")
