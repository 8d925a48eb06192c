"""Signatures of UEFI programs, for firmware with Secure Boot: by sbsign(1), always the same bytes.

An Authenticode signature says when it was made, so sbsign runs with the lock's date for a clock
(faketime(1)). With an RSA key the same program then has the same signature.
"""

from __future__ import annotations

import tempfile
from datetime import UTC, datetime
from pathlib import Path

from tegu.errors import BuildError
from tegu.image.programs import Tools, tool_environment
from tegu.process import CommandError

__all__ = ["sign_program"]


def sign_program(
    program: bytes, keys: tuple[Path, Path], tools: Tools, scratch: Path, timestamp: int
) -> bytes:
    """Return the UEFI program with a signature by `keys`: private key and certificate (PEM).

    `timestamp` (seconds) is the date of the signature. Raises BuildError when they do not fit, or
    the key has a passphrase.
    """
    key, certificate = keys
    moment = datetime.fromtimestamp(timestamp, UTC).strftime("%Y-%m-%d %H:%M:%S")
    with tempfile.TemporaryDirectory(prefix="sign-", dir=scratch) as name:
        place = Path(name)
        # Copies: what the tools see of this machine is this directory.
        for source, target in ((key, "key"), (certificate, "certificate")):
            try:
                (place / target).touch(mode=0o600)
                (place / target).write_bytes(source.read_bytes())
            except OSError as e:
                raise BuildError(f"cannot read {source}: {e.strerror}") from e
        (place / "program").write_bytes(program)
        argv: list[str | Path] = ["faketime", "-f", moment, "sbsign", "--key", place / "key"]
        argv += ["--cert", place / "certificate", "--output", place / "signed", place / "program"]
        try:
            tools.run(argv, binds=[place], env=tool_environment(timestamp), stdin="")
            return (place / "signed").read_bytes()
        except CommandError as e:
            raise BuildError(
                f"cannot sign with {key}: {e.message}",
                hint="image.secure_boot_key is a private key (PEM) without a passphrase,"
                " image.secure_boot_certificate the certificate that belongs to it",
            ) from e
        except FileNotFoundError:
            raise BuildError(f"sbsign left nothing signed with {key}") from None
