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
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar
from urllib.parse import unquote, urlsplit

from tegu import __version__
from tegu.errors import FetchError
from tegu.packages.aptconfig import AptSettings, read_settings
from tegu.packages.sources import without_credentials

if TYPE_CHECKING:
    import httpx

__all__ = [
    "StoppedError",
    "TransientError",
    "client",
    "local_path",
    "refused",
    "retrying",
]

T = TypeVar("T")

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


def retrying(url: str, attempt: Callable[[], T], *, stop: threading.Event | None = None) -> T:
    """Return what `attempt` returns, which gets `url`; try again, after a growing pause, when it
    fails in a way that time may mend.

    Such a way is TransientError or an error of httpx; all others pass through. Raises FetchError
    when no attempt is left, StoppedError once `stop` is set, also out of a pause.
    """
    import httpx

    stop = stop or threading.Event()
    shown, why = without_credentials(url), ""
    for number in range(1, ATTEMPTS + 1):
        if number > 1:
            log.info("%s: %s; attempt %d of %d", shown, why, number, ATTEMPTS)
            # Jitter, so that eight connections do not come back in one instant.
            stop.wait(_PAUSE * 2 ** (number - 2) * (0.75 + random.random() / 2))
        if stop.is_set():
            raise StoppedError
        try:
            return attempt()
        except httpx.InvalidURL as e:
            raise FetchError(f"{shown}: {e}") from e
        except httpx.HTTPError as e:
            why = _in_words(e)
        except TransientError as e:
            why = str(e)
    raise FetchError(
        f"{shown}: {why} ({ATTEMPTS} attempts)",
        hint="check the network and the mirror (base.mirror); what has arrived is kept, "
        "so running it again resumes",
    )


def _in_words(error: httpx.HTTPError) -> str:
    import httpx

    if isinstance(error, httpx.TimeoutException):
        return "the server did not answer in time"
    if isinstance(error, httpx.ConnectError):
        return f"cannot connect: {error}"
    return str(error) or type(error).__name__


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
