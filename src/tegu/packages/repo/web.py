"""A web server for a try: what is published, on this machine only unless told otherwise."""

from __future__ import annotations

import functools
import http.server
import logging
from collections.abc import Callable

from tegu.errors import RepositoryError
from tegu.packages.repo.repository import Repository

__all__ = ["serve"]

log = logging.getLogger(__name__)


class _Handler(http.server.SimpleHTTPRequestHandler):
    server_version = "tegu-repo"
    protocol_version = "HTTP/1.1"

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002 - its name in the base
        log.info(format, *args)

    def list_directory(self, path: object) -> None:
        """A repository is read by names that its indexes give: directories are not listed."""
        self.send_error(404)


class _Server(http.server.ThreadingHTTPServer):
    daemon_threads = True


def serve(
    repo: Repository, *, host: str = "127.0.0.1", port: int = 8750, ready: Callable[[str], None]
) -> None:
    """Serve `public` until interrupted; `ready` gets the URL. Port 0 takes any that is free.

    Raises RepositoryError when the port is taken.
    """
    handler = functools.partial(_Handler, directory=str(repo.public))
    try:
        server = _Server((host, port), handler)
    except OSError as e:
        raise RepositoryError(
            f"cannot listen on {host}:{port}: {e.strerror}", hint="name another one with --port"
        ) from e
    with server:
        ready(f"http://{host}:{server.server_address[1]}")
        try:
            server.serve_forever()
        except KeyboardInterrupt:
            return
