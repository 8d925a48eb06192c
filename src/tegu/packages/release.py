"""The signed index of a suite: InRelease, verified with gpgv(1), then parsed.

Format: https://wiki.debian.org/DebianRepository/Format. The signature is an OpenPGP clear-text
signature (RFC 9580, section 7); gpgv hands out exactly the text that was signed, and only that is
parsed.
"""

from __future__ import annotations

import base64
import binascii
import re
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from pathlib import Path

from tegu.errors import FetchError, VerifyError
from tegu.process import require, run

__all__ = ["Release", "check_release", "parse_release", "verify_detached", "verify_signature"]

_CLOCK_SKEW = 600  # seconds that a mirror's clock may be ahead of ours
_ARMOURS = [(b"BEGIN", b"SIGNED MESSAGE"), (b"BEGIN", b"SIGNATURE"), (b"END", b"SIGNATURE")]
_KEY_BLOCK = re.compile(
    rb"-----BEGIN PGP PUBLIC KEY BLOCK-----\r?\n(.*?)-----END PGP PUBLIC KEY BLOCK-----", re.DOTALL
)
_WEAK = [part for name in ("MD5", "SHA1", "RIPEMD160") for part in ("--weak-digest", name)]
_BAD_SIGNATURE = {
    "BADSIG": "the signature is bad: the file was changed after it was signed",
    "EXPSIG": "the signature has expired",
    "EXPKEYSIG": "the key that signed it has expired",
    "REVKEYSIG": "the key that signed it was revoked",
}


@dataclass(frozen=True, slots=True)
class Release:
    """A parsed Release file. `date` and `valid_until` are seconds since the epoch.

    `files` maps each index (`main/binary-amd64/Packages.xz`) to its size (bytes) and SHA-256.
    """

    suite: str
    codename: str
    date: int
    valid_until: int | None
    architectures: tuple[str, ...]
    by_hash: bool
    separate_all: bool
    """Packages of architecture `all` are (also) in an index of their own."""
    files: dict[str, tuple[int, str]] = field(hash=False)


def verify_signature(inrelease: bytes, keyrings: Sequence[str], *, where: str) -> str:
    """Return the text that was signed, if a key of `keyrings` signed it.

    One good signature is enough, as for apt; a bad one spoils it. Raises VerifyError otherwise.
    """
    armours = re.findall(rb"^-----(BEGIN|END) PGP ([A-Z ]+)-----", inrelease, re.MULTILINE)
    if armours != _ARMOURS or not inrelease.startswith(b"-----BEGIN"):
        raise VerifyError(
            f"{where}: not a signed index (one OpenPGP clear-text signature)",
            hint="it was cut short, or a proxy answered with a page of its own",
        )
    with tempfile.TemporaryDirectory(prefix="tegu-gpgv-") as name:
        home = Path(name)
        plain = home / "Release"
        (home / "InRelease").write_bytes(inrelease)
        files: list[Path | str] = ["--output", plain, home / "InRelease"]
        _gpgv(files, keyrings, home, where=where)
        try:
            return plain.read_text(errors="replace")
        except FileNotFoundError as e:
            raise VerifyError(f"{where}: gpgv gave nothing that was signed") from e


def verify_detached(data: bytes, signature: bytes, keyrings: Sequence[str], *, where: str) -> None:
    """Raise VerifyError unless a key of `keyrings` made the detached `signature` of `data`."""
    if not signature.startswith(b"-----BEGIN PGP SIGNATURE-----"):
        raise VerifyError(f"{where}: its signature is no armoured OpenPGP signature")
    with tempfile.TemporaryDirectory(prefix="tegu-gpgv-") as name:
        home = Path(name)
        (home / "data").write_bytes(data)
        (home / "data.asc").write_bytes(signature)
        _gpgv([home / "data.asc", home / "data"], keyrings, home, where=where)


def _gpgv(files: Sequence[Path | str], keyrings: Sequence[str], home: Path, *, where: str) -> None:
    gpgv = require("gpgv", package="gpgv")
    options = [*_WEAK]
    for number, keyring in enumerate(keyrings):
        options += ["--keyring", _keyring(Path(keyring), home / f"{number}.gpg")]
    done = run(
        [gpgv, "--homedir", home, "--status-fd", "1", *options, *files], check=False, timeout=60
    )
    words = [line.split()[1:] for line in done.stdout.splitlines() if line.startswith("[GNUPG:]")]
    seen = {word[0]: word[1:] for word in words if word}
    for status, why in _BAD_SIGNATURE.items():
        # An expired or revoked key beside a good one is an old key being phased out.
        if status in seen and (status == "BADSIG" or "VALIDSIG" not in _good(words)):
            raise VerifyError(f"{where}: {why}", hint=f"key {seen[status][0]}")
    if "VALIDSIG" not in _good(words):
        raise VerifyError(*_unsigned(seen, done.stderr, keyrings, where))


def _good(words: Sequence[Sequence[str]]) -> set[str]:
    """Return the statuses of the signatures that are good; each begins with NEWSIG."""
    groups: list[set[str]] = [set()]
    for word in words:
        if not word:
            continue
        if word[0] == "NEWSIG":
            groups.append(set())
        groups[-1].add(word[0])
    good = [group for group in groups if {"GOODSIG", "VALIDSIG"} <= group]
    return set().union(*good)


def _unsigned(
    seen: dict[str, list[str]], stderr: str, keyrings: Sequence[str], where: str
) -> tuple[str]:
    names = ", ".join(keyrings)
    if "NO_PUBKEY" in seen or "ERRSIG" in seen:
        key = (seen.get("NO_PUBKEY") or seen["ERRSIG"])[0]
        return (f"{where}: signed with the key {key}, which is not in {names}",)
    last = (stderr.strip().splitlines() or ["no message"])[-1]
    return (f"{where}: no valid signature by a key of {names}: {last}",)


def _keyring(path: Path, binary: Path) -> str:
    """Return a keyring that gpgv can read; an armoured one (.asc) is written to `binary`."""
    try:
        content = path.read_bytes()
    except OSError as e:
        raise VerifyError(
            f"the keyring {path} cannot be read: {e.strerror}",
            hint="install debian-archive-keyring, or set base.keyring to the keyring's file",
        ) from e
    if not content.startswith(b"-----BEGIN PGP PUBLIC KEY BLOCK-----"):
        return str(path.absolute())
    keys = b""
    for block in _KEY_BLOCK.findall(content):
        # Armour (RFC 9580, section 6.2): headers with a colon, an empty line, base64, a checksum.
        lines = [x for x in block.split() if not x.startswith(b"=") and b":" not in x]
        try:
            keys += base64.b64decode(b"".join(lines), validate=True)
        except binascii.Error as e:
            raise VerifyError(f"the keyring {path} is damaged: {e}") from e
    binary.write_bytes(keys)
    return str(binary)


def parse_release(text: str, *, where: str) -> Release:
    """Parse the text of a Release file; raises VerifyError when it is not one."""
    fields: dict[str, str] = {}
    key = ""
    for line in text.splitlines():
        if line[:1] in (" ", "\t"):
            if key:
                fields[key] += "\n" + line
        elif ":" in line:
            key, value = line.split(":", 1)
            key = key.lower()
            fields[key] = value.strip()
    if "date" not in fields or "sha256" not in fields:
        raise VerifyError(f"{where}: not a Release file with a Date and SHA256 sums")
    architectures = tuple(fields.get("architectures", "").split())
    return Release(
        suite=fields.get("suite", ""),
        codename=fields.get("codename", ""),
        date=_seconds(fields["date"], "Date", where),
        valid_until=(
            _seconds(fields["valid-until"], "Valid-Until", where)
            if "valid-until" in fields
            else None
        ),
        architectures=architectures,
        by_hash=fields.get("acquire-by-hash", "no").lower() == "yes",
        separate_all="all" in architectures
        and "Packages" not in fields.get("no-support-for-architecture-all", "").split(),
        files=_sums(fields["sha256"], where),
    )


def _sums(block: str, where: str) -> dict[str, tuple[int, str]]:
    sums = {}
    for line in block.splitlines():
        words = line.split()
        if not words:
            continue
        if len(words) != 3 or not words[1].isdigit() or not re.fullmatch("[0-9a-f]{64}", words[0]):
            raise VerifyError(f"{where}: malformed SHA256 line {line.strip()!r}")
        sums[words[2]] = (int(words[1]), words[0])
    return sums


def _seconds(value: str, key: str, where: str) -> int:
    try:
        moment = parsedate_to_datetime(value)
    except ValueError as e:
        raise VerifyError(f"{where}: {key} is no date: {value!r}") from e
    if moment.tzinfo is None:
        moment = moment.replace(tzinfo=UTC)
    return int(moment.timestamp())


def check_release(release: Release, suite: str, *, now: int, where: str) -> None:
    """Raise VerifyError when the index is for another suite, from the future or past its time."""
    wanted = suite.strip("/")
    names = {release.suite, release.codename} - {""}
    # Debian's security archive says stable-security and trixie-security; older ones "trixie".
    if not suite.endswith("/") and names and wanted not in names:
        raise VerifyError(
            f"{where}: asked for the suite {wanted}, got an index of {' / '.join(sorted(names))}"
        )
    if release.date > now + _CLOCK_SKEW:
        raise VerifyError(
            f"{where}: dated in the future ({_shown(release.date)})",
            hint="check this machine's clock",
        )
    if release.valid_until is not None and release.valid_until < now:
        raise VerifyError(
            f"{where}: expired, it was valid until {_shown(release.valid_until)}",
            hint="the mirror is out of date: use another one, or check this machine's clock",
        )


def _shown(moment: int) -> str:
    return datetime.fromtimestamp(moment, UTC).strftime("%Y-%m-%d %H:%M UTC")


def absent_index(where: str, component: str, architecture: str) -> FetchError:
    """Return the error for a component or architecture that a suite does not have."""
    return FetchError(
        f"{where}: the suite has no component {component} for {architecture}",
        hint="check base.components and system.architecture",
    )
