"""Where a slot image comes from: a directory, or a URL (https, http, file) of one.

What says that it is ours is a signature of slot.json by a key of the keyring; what says that it is
whole are the digests in slot.json.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from http.client import HTTPException
from pathlib import Path
from typing import IO
from urllib.error import HTTPError, URLError
from urllib.parse import unquote, urlsplit
from urllib.request import Request, urlopen

import tegu
from tegu.boot.slots import SlotImage
from tegu.errors import FetchError, UnsupportedError, UpgradeError, VerifyError
from tegu.process import CommandError, require, run

__all__ = ["DESCRIPTION", "SIGNATURE", "Source"]

DESCRIPTION = "slot.json"
SIGNATURE = "slot.json.asc"
_MOST = 8 << 20  # bytes of a description
_SECONDS = 60


class Source:
    """A slot image at `where`, trusted when `keyring` (OpenPGP certificates) says so.

    Without a keyring only what lies on this machine, or comes by https, is taken.
    """

    def __init__(self, where: str, keyring: Path | None = None) -> None:
        parts = urlsplit(where)
        self.where = where.rstrip("/")
        self.keyring = keyring
        self._local: Path | None = None
        if parts.scheme == "file":
            self._local = Path(unquote(parts.path))
        elif not parts.scheme:
            self._local = Path(where)
        elif parts.scheme not in ("http", "https"):
            raise UpgradeError(f"{where} is no directory, and no URL of https, http or file")
        elif parts.scheme == "http" and keyring is None:
            raise UpgradeError(
                f"{where}: what comes by http can be anybody's",
                hint='name a keyring in /etc/tegu/upgrade.toml: keyring = "/usr/..."',
            )

    def describe(self) -> SlotImage:
        """Return what is there, its signature checked where there is a keyring.

        Raises FetchError when it cannot be had, VerifyError when it is not what was signed or says
        nothing that makes sense.
        """
        text = self._read(DESCRIPTION)
        if self.keyring is not None:
            self._check(text, self._read(SIGNATURE))
        return SlotImage.parse(text, f"{self.where}/{DESCRIPTION}")

    def _read(self, name: str) -> bytes:
        with self.opened(name) as f:
            data = f.read(_MOST + 1)
        if len(data) > _MOST:
            raise VerifyError(f"{self.where}/{name} is larger than any description")
        return data

    @contextmanager
    def opened(self, name: str) -> Iterator[IO[bytes]]:
        """Open one file of the image for reading; FetchError when that fails, also in between."""
        shown = f"{self.where}/{name}"
        try:
            if self._local is not None:
                with (self._local / name).open("rb") as f:
                    yield f
                return
            agent = {"User-Agent": f"tegu/{tegu.__version__}"}
            with urlopen(Request(shown, headers=agent), timeout=_SECONDS) as answer:
                yield answer
        except HTTPError as e:
            raise FetchError(f"{shown}: {e.code} {e.reason}") from e
        except URLError as e:
            raise FetchError(f"{shown}: {e.reason}") from e
        except HTTPException as e:
            raise FetchError(f"{shown}: the connection ended too early: {e!r}") from e
        except (OSError, ValueError) as e:
            reason = e.strerror if isinstance(e, OSError) and e.strerror else str(e)
            raise FetchError(f"{shown}: {reason}") from e

    def _check(self, text: bytes, signature: bytes) -> None:
        assert self.keyring is not None
        if not self.keyring.is_file():
            raise UpgradeError(f"the keyring {self.keyring} is not there")
        with tempfile.TemporaryDirectory(prefix="tegu-slot-") as place:
            signed, by = Path(place) / DESCRIPTION, Path(place) / SIGNATURE
            signed.write_bytes(text)
            by.write_bytes(signature)
            try:
                run(_verifier(self.keyring, by, signed), timeout=60)
            except CommandError as e:
                raise VerifyError(
                    f"{self.where}/{DESCRIPTION} is not signed by a key of {self.keyring.name}:"
                    f" {e.message}"
                ) from e


def _verifier(keyring: Path, signature: Path, signed: Path) -> list[str | Path]:
    """Return the command that checks: sqv(1), or gpgv(1); apt brings one of them."""
    try:
        return [require("sqv"), "--keyring", keyring, "--signature-file", signature, signed]
    except UnsupportedError:
        return [require("gpgv", package="gpgv"), "--keyring", keyring, signature, signed]
