"""The bundle of trusted certificates, as update-ca-certificates(8) makes it in an image.

That script starts four programs for each of 150 certificates. What it does for a directory that
is empty, without certificates of the machine's own and without hooks, is little: that is done here,
for scripts that are known line by line, and all else is left to the script itself.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from pathlib import Path

from tegu.image.sandbox import Sandbox

__all__ = ["SCRIPT", "make_bundle", "script_digest"]

SCRIPT = "usr/sbin/update-ca-certificates"

_KNOWN = frozenset(
    {
        # ca-certificates 20250419 (Debian 13)
        "0fc40bd20e49b311ae53b526f63c2f3b41aceb15876b2c59e72db3bd0feac6f4",
    }
)
_LINKS = "etc/ssl/certs"
_SHIPPED = "usr/share/ca-certificates"
_CHOSEN = "etc/ca-certificates.conf"
_BUNDLE = "ca-certificates.crt"
_NAME = str.maketrans({" ": "_", "(": "=", ")": "=", ",": "_"})


def script_digest(text: str) -> str:
    """Return the SHA-256 (hex) of a script's lines, comments and blank lines left out."""
    lines = (line.strip() for line in text.splitlines())
    return hashlib.sha256(
        "\n".join(line for line in lines if line and not line.startswith("#")).encode()
    ).hexdigest()


def make_bundle(box: Sandbox) -> bool:
    """Do what `update-ca-certificates --fresh` does; False (and nothing done) if that is unsure."""
    root = box.root
    links = root / _LINKS
    local, hooks = root / "usr/local/share/ca-certificates", root / "etc/ca-certificates/update.d"
    if (
        script_digest((root / SCRIPT).read_text()) not in _KNOWN
        or any(folder.is_dir() and any(folder.iterdir()) for folder in (local, hooks))
        or not links.is_dir()
        or any(links.iterdir())
        or not (root / "usr/bin/openssl").is_file()
    ):
        return False
    chosen = list(_certificates(root))
    for name in chosen:
        link = links / (name.rpartition("/")[2].removesuffix(".crt").translate(_NAME) + ".pem")
        link.unlink(missing_ok=True)
        link.symlink_to(f"/{_SHIPPED}/{name}")
    if chosen:
        box.run(["/usr/bin/openssl", "rehash", f"/{_LINKS}"], check=False)
        texts = [(root / _SHIPPED / name).read_bytes() for name in chosen]
        bundle = links / _BUNDLE
        bundle.write_bytes(b"".join(t if t.endswith(b"\n") or not t else t + b"\n" for t in texts))
        bundle.chmod(0o644)
    return True


def _certificates(root: Path) -> Iterator[str]:
    """Yield the certificates chosen in ca-certificates.conf that are there."""
    conf = root / _CHOSEN
    for line in conf.read_text().splitlines() if conf.is_file() else ():
        name = line.strip(" \t")
        if name and not line.startswith(("#", "!")) and (root / _SHIPPED / name).is_file():
            yield name
