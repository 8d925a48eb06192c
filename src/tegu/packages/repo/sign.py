"""OpenPGP signatures of the indexes: by key files (Sequoia), or by keys in gpg-agent.

Every signer signs on its own; the packets of all signatures are then put into one armour, which is
what a clear-signed message with several signers is (RFC 9580, sections 7 and 10.3). So a key in a
file and one in an agent can sign together while one takes over from the other.
"""

from __future__ import annotations

import base64
import binascii
import os
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tegu.errors import RepositoryError, UnsupportedError
from tegu.process import CommandError, require, run

if TYPE_CHECKING:
    from types import ModuleType

__all__ = ["Signer", "Signers", "load_signers", "make_key", "signed_text"]

_PASSPHRASE = "TEGU_REPO_PASSPHRASE"
_BEGIN = "-----BEGIN PGP SIGNATURE-----"


def _sequoia() -> ModuleType:
    try:
        import pysequoia
    except ImportError as e:
        raise UnsupportedError(
            "signing with a key file needs the Python module pysequoia",
            hint="pip install 'tegu[repo]', or name a key of gpg-agent: agent:FINGERPRINT",
        ) from e
    module: ModuleType = pysequoia
    return module


@dataclass(frozen=True)
class _FileSigner:
    path: Path
    fingerprint: str
    expires: datetime | None
    public: bytes
    signer: Any

    def clear(self, text: str) -> bytes:
        # The line end before the armour is not part of what is signed (RFC 9580, section 7.1).
        data = text.removesuffix("\n").encode()
        return _packets(self._sign(data, "CLEAR").decode(), str(self.path))

    def detached(self, data: bytes) -> bytes:
        return _packets(self._sign(data, "DETACHED").decode(), str(self.path))

    def _sign(self, data: bytes, mode: str) -> bytes:
        sequoia = _sequoia()
        try:
            signed: bytes = sequoia.sign(
                self.signer, data, mode=getattr(sequoia.SignatureMode, mode)
            )
        except Exception as e:  # pysequoia has no error classes of its own
            raise RepositoryError(f"{self.path}: the key cannot sign: {_first_line(e)}") from e
        return signed


@dataclass(frozen=True)
class _AgentSigner:
    fingerprint: str
    expires: datetime | None
    public: bytes

    def clear(self, text: str) -> bytes:
        return _packets(self._gpg("--clear-sign", text.encode()), self.fingerprint)

    def detached(self, data: bytes) -> bytes:
        return _packets(self._gpg("--armor", data, "--detach-sign"), self.fingerprint)

    def _gpg(self, how: str, data: bytes, *more: str) -> str:
        options = ["--batch", "--no-tty", "--digest-algo", "SHA512", "-u", self.fingerprint]
        gpg = require("gpg", package="gpg")
        try:
            return run([gpg, *options, how, *more], stdin=data, timeout=120).stdout
        except CommandError as e:
            raise RepositoryError(
                f"gpg-agent does not sign with {self.fingerprint}: {e.message}",
                hint="is the card or token in, and its PIN known to the agent? "
                "what is published stays as it is",
            ) from e


Signer = _FileSigner | _AgentSigner
"""A key that signs: `public` is its certificate (binary), `expires` None for never."""


@dataclass(frozen=True)
class Signers:
    """All that sign an index."""

    each: tuple[Signer, ...]

    @property
    def public(self) -> bytes:
        """The certificates of all: a keyring for clients."""
        return b"".join(s.public for s in self.each)

    @property
    def armoured(self) -> str:
        """The same, as text."""
        return _armour(self.public, "PUBLIC KEY BLOCK")

    @property
    def identity(self) -> str:
        """What changes when a signer does."""
        return " ".join(s.fingerprint for s in self.each)

    def clear_sign(self, text: str) -> str:
        """Return `text` with a clear-text signature by all; lines must not end in blanks."""
        armour = _armour(b"".join(s.clear(text) for s in self.each))
        body = "".join(
            f"- {line}" if line.startswith("-") else line for line in text.splitlines(keepends=True)
        )
        return f"-----BEGIN PGP SIGNED MESSAGE-----\nHash: SHA512\n\n{body}{armour}"

    def detach_sign(self, data: bytes) -> str:
        """Return an armoured detached signature of `data` by all."""
        return _armour(b"".join(s.detached(data) for s in self.each))


def load_signers(specs: Sequence[str], root: Path, *, now: datetime | None = None) -> Signers:
    """Open every signer of the settings; relative key files are below `root`.

    Raises RepositoryError when a key is lost, locked or expired (at `now`), UnsupportedError for a
    way of signing that is not here.
    """
    moment = now or datetime.now(UTC)
    return Signers(tuple(_load(spec, root, moment) for spec in specs))


def _load(spec: str, root: Path, now: datetime) -> Signer:
    if spec.startswith("pkcs11:"):
        raise UnsupportedError(
            "signing through PKCS#11 directly",
            hint="make the token known to gpg (gnupg-pkcs11-scd) and name its key "
            "agent:FINGERPRINT",
        )
    if spec.startswith("agent:"):
        return _load_agent(spec.removeprefix("agent:"), now)
    return _load_file(root / spec, now)


def _refuse_expired(cert: Any, spec: str, now: datetime) -> None:
    if cert.expiration is not None and cert.expiration <= now:
        raise RepositoryError(
            f"the signing key {spec} expired on {cert.expiration:%Y-%m-%d}: "
            "clients would refuse what it signs",
            hint="extend it (gpg --quick-set-expire) and give clients the new keyring, or put "
            "another key into `signers`",
        )


def _first_line(e: Exception) -> str:
    """Return what Sequoia says, without its stack."""
    return str(e).partition("\n")[0]


def _load_agent(fingerprint: str, now: datetime) -> Signer:
    gpg = require("gpg", package="gpg")
    sequoia = _sequoia()
    # As text armour, because the output of programs is read as text.
    exported = run([gpg, "--batch", "--no-tty", "--armor", "--export", fingerprint], check=False)
    if exported.returncode != 0 or not exported.stdout.strip():
        raise RepositoryError(f"gpg has no key {fingerprint}", hint="see: gpg --list-secret-keys")
    cert = sequoia.Cert.from_bytes(exported.stdout.encode())
    _refuse_expired(cert, f"agent:{fingerprint}", now)
    return _AgentSigner(cert.fingerprint, cert.expiration, bytes(_dearmour(str(cert), "key")))


def _load_file(path: Path, now: datetime) -> Signer:
    sequoia = _sequoia()
    try:
        content = path.read_bytes()
    except OSError as e:
        raise RepositoryError(
            f"the signing key {path} cannot be read: {e.strerror}",
            hint="put it back, or name another in `signers` of repo.toml; what is published "
            "stays as it is",
        ) from e
    try:
        tsk = sequoia.Tsk.from_bytes(content)
        cert = tsk.extract_certificate()
    except Exception as e:
        raise RepositoryError(f"{path}: no OpenPGP private key") from e
    _refuse_expired(cert, str(path), now)
    try:
        signer = tsk.signer(os.environ.get(_PASSPHRASE))
    except Exception as e:
        raise RepositoryError(
            f"{path}: the key cannot be used: {_first_line(e)}",
            hint=f"a key with a passphrase needs it in the environment as {_PASSPHRASE}",
        ) from e
    public = _dearmour(str(cert), str(path))
    return _FileSigner(path, cert.fingerprint, cert.expiration, public, signer)


def make_key(path: Path, user_id: str, *, days: float) -> str:
    """Make a signing key (Curve25519) valid for `days` at `path`; returns its fingerprint."""
    sequoia = _sequoia()
    if path.exists():
        raise RepositoryError(f"{path} is there already: a key is never overwritten")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        tsk = sequoia.Tsk.generate(user_id, validity_seconds=int(days * 86400))
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    from tegu.files import write_atomic

    write_atomic(path, str(tsk), mode=0o600)
    fingerprint: str = tsk.extract_certificate().fingerprint
    return fingerprint


def signed_text(message: str) -> str:
    """Return the text of a clear-signed message that we made, unverified."""
    body = message.partition("\n\n")[2].partition(f"\n{_BEGIN}")[0]
    return "".join(f"{line.removeprefix('- ')}\n" for line in body.split("\n"))


def _packets(message: str, where: str) -> bytes:
    """Return the signature packets of a signed message or an armoured signature."""
    start = message.rfind(_BEGIN)
    if start < 0:
        raise RepositoryError(f"{where}: it gave no signature")
    return _dearmour(message[start:], where)


def _dearmour(text: str, where: str) -> bytes:
    """Return what an ASCII armour holds (RFC 9580, section 6.2)."""
    lines = text.replace("\r", "").strip().split("\n")[1:-1]
    while lines and (":" in lines[0] or not lines[0].strip()):
        lines.pop(0)
    try:
        return base64.b64decode("".join(x for x in lines if not x.startswith("=")), validate=True)
    except binascii.Error as e:
        raise RepositoryError(f"{where}: damaged OpenPGP armour: {e}") from e


def _armour(packets: bytes, what: str = "SIGNATURE") -> str:
    encoded = base64.b64encode(packets).decode()
    lines = [encoded[i : i + 64] for i in range(0, len(encoded), 64)]
    checksum = base64.b64encode(_crc24(packets).to_bytes(3, "big")).decode()
    begin, end = f"-----BEGIN PGP {what}-----", f"-----END PGP {what}-----"
    return "\n".join([begin, "", *lines, f"={checksum}", end, ""])


def _crc24(data: bytes) -> int:
    """Return the checksum of an armour (RFC 9580, section 6.1.1); GnuPG still expects it."""
    crc = 0xB704CE
    for byte in data:
        crc ^= byte << 16
        for _ in range(8):
            crc <<= 1
            if crc & 0x1000000:
                crc ^= 0x1864CFB
    return crc
