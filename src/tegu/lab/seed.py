"""The cloud-init NoCloud seed: a small volume labelled CIDATA that tells a machine who it is.

cloud-init's documentation, "NoCloud": the files `meta-data`, `user-data`, `vendor-data` and
`network-config` in the root of a vfat or iso9660 volume with that label.
"""

from __future__ import annotations

import hashlib
import json
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from tegu.errors import UsageError
from tegu.files import write_atomic
from tegu.lab.fat import fat_volume
from tegu.lab.userdata import check_meta_data, check_network_config, check_user_data, cloud_config

__all__ = ["DEFAULT_USER", "Seed", "read_public_key"]

DEFAULT_USER: Final = "tegu"

_USER = re.compile(r"[a-z_][a-z0-9_-]{0,31}")
_HOSTNAME = re.compile(r"(?!-)[A-Za-z0-9-]{1,63}(?<!-)(\.(?!-)[A-Za-z0-9-]{1,63}(?<!-))*")
_KEY = re.compile(
    r"(ssh-(ed25519|rsa)|ecdsa-sha2-nistp(256|384|521)|sk-(ssh-ed25519|ecdsa-sha2-nistp256)"
    r"@openssh\.com) [A-Za-z0-9+/]+={0,2}( [^\n]*)?"
)


@dataclass(frozen=True, slots=True)
class Seed:
    """What a machine is told at its first boot.

    `user` is the image's default user under the name we want; `keys` are OpenSSH public keys for
    it. `user_data`, `meta_data` (added to, and overriding, ours) and `network_config` are the
    contents of files as cloud-init takes them. `instance` is the instance id: another one makes
    cloud-init run its once-per-instance work again. The machine fills in an empty `instance` or
    `hostname` when it starts.
    """

    user: str = DEFAULT_USER
    hostname: str = ""
    instance: str = ""
    keys: tuple[str, ...] = ()
    user_data: bytes | None = None
    meta_data: bytes | None = None
    network_config: bytes | None = None

    def __post_init__(self) -> None:
        """Refuse, with UsageError, what cloud-init would not take."""
        if not _USER.fullmatch(self.user):
            raise UsageError(f"not a user name: {self.user!r}")
        if self.hostname and (len(self.hostname) > 253 or not _HOSTNAME.fullmatch(self.hostname)):
            raise UsageError(f"not a host name (RFC 1123): {self.hostname!r}")
        for key in self.keys:
            if not _KEY.fullmatch(key):
                raise UsageError(f"not an OpenSSH public key: {key[:40]!r}")
        if self.user_data is not None:
            check_user_data(self.user_data)
        if self.meta_data is not None:
            check_meta_data(self.meta_data)
        if self.network_config is not None:
            check_network_config(self.network_config)

    def login_user(self) -> str:
        """Return whom to log in as: ours, unless user-data renames the default user itself."""
        own = cloud_config(self.user_data or b"").get("user")
        if isinstance(own, dict):
            own = own.get("name")
        return own if isinstance(own, str) and own else self.user

    def files(self) -> dict[str, bytes]:
        """Return the files of the volume."""
        meta: dict[str, Any] = {
            "instance-id": self.instance,
            "local-hostname": self.hostname,
            "public-keys": list(self.keys),
        }
        if self.meta_data is not None:
            meta.update(check_meta_data(self.meta_data))
        # Vendor-data is weaker than user-data, so that a person's own words win.
        vendor: dict[str, Any] = {"user": {"name": self.user}}
        if self.user == "root":
            vendor = {"disable_root": False, "user": {"name": "root"}}
        out = {
            "meta-data": _json(meta),
            "user-data": self.user_data if self.user_data is not None else b"#cloud-config\n{}\n",
            "vendor-data": b"#cloud-config\n" + _json(vendor),
        }
        if self.network_config is not None:
            out["network-config"] = self.network_config
        return out

    def volume(self) -> bytes:
        """Return the CIDATA volume; the same seed always gives the same bytes."""
        files = self.files()
        digest = hashlib.sha256(repr(sorted(files.items())).encode()).digest()
        return fat_volume(files, label="CIDATA", serial=int.from_bytes(digest[:4], "little"))

    def write(self, path: Path) -> None:
        """Write the volume to `path`, for its owner alone: user-data may hold secrets."""
        write_atomic(path, self.volume(), mode=0o600)


def read_public_key(path: Path) -> str:
    """Return the public key in `path`, or in `path`.pub when `path` is a private key."""
    source = path if path.suffix == ".pub" else Path(f"{path}.pub")
    if not source.exists() and path.exists():
        source = path
    try:
        text = source.read_text(errors="replace").strip()
    except OSError as e:
        raise UsageError(f"cannot read the key {path}: {e.strerror}") from e
    if not _KEY.fullmatch(text):
        raise UsageError(
            f"{source} is not an OpenSSH public key", hint="make one with: ssh-keygen -t ed25519"
        )
    return text


def _json(value: object) -> bytes:
    # JSON is YAML, and needs no thought about quoting.
    return json.dumps(value, indent=1, sort_keys=True).encode() + b"\n"
