"""The lock: every package of a system, exactly.

A lock has two package sets. `system` is what the image holds; `tools` is what the image is made
with (mkfs, dpkg, qemu-img, boot loaders ...), so that the bits do not depend on the build machine.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, field
from pathlib import Path

__all__ = ["LOCAL", "Lock", "LockedPackage", "LockedRepository"]

LOCAL = "local"
"""The `repository` of packages that come from no mirror: our own files, and `tegu` itself."""


@dataclass(frozen=True, slots=True)
class LockedRepository:
    """One suite of one mirror, as it was when the lock was made.

    `uri` is the mirror (`machine:mirror` or `machine:security` for the build machine's own, see
    `tegu.packages.sources`), `suite` the distribution directory, `inrelease_sha256` the digest of
    the signed index that was verified, `date` its Date field (seconds since the epoch).
    """

    id: str
    uri: str
    suite: str
    components: tuple[str, ...]
    inrelease_sha256: str
    date: int


@dataclass(frozen=True, slots=True)
class LockedPackage:
    """One binary package: where it is, how large (bytes) and its SHA-256.

    `filename` is relative to the repository's `uri`, or the plain file name when `repository` is
    "local". `source` and `source_version` name the source package (for advisories and SBOMs).
    `installed_size` is in KiB, as in the package's control file.
    """

    name: str
    version: str
    architecture: str
    size: int
    sha256: str
    filename: str
    repository: str
    source: str
    source_version: str
    section: str = ""
    priority: str = "optional"
    essential: bool = False
    installed_size: int = 0


@dataclass(frozen=True, slots=True)
class Lock:
    """All of it; `timestamp` is the SOURCE_DATE_EPOCH of every build from this lock.

    `definition` is the digest of the definition's part that decides about packages; `requested`
    are the packages asked for by name, all others are there because something needs them.
    """

    definition: str
    architecture: str
    timestamp: int
    repositories: tuple[LockedRepository, ...]
    system: tuple[LockedPackage, ...]
    tools: tuple[LockedPackage, ...]
    requested: tuple[str, ...] = field(default=())

    def digest(self) -> str:
        """Return the SHA-256 (hex) of everything that can change the image."""
        digest = hashlib.sha256(f"tegu lock\n{self.architecture}\n{self.timestamp}\n".encode())
        for title, packages in (("system", self.system), ("tools", self.tools)):
            digest.update(f"{title}\n".encode())
            for package in sorted(packages, key=lambda p: (p.name, p.architecture)):
                line = f"{package.name} {package.version} {package.architecture} {package.sha256}\n"
                digest.update(line.encode())
        digest.update(f"requested {' '.join(sorted(self.requested))}\n".encode())
        return digest.hexdigest()

    def write(self, path: Path) -> None:
        """Write the lock to `path` (TOML, sorted, one package per block), atomically."""
        from tegu.files import write_atomic
        from tegu.packages.lockfile import dump

        write_atomic(path, dump(self))

    @classmethod
    def read(cls, path: Path) -> Lock:
        """Read a lock; raises LockError with file and reason."""
        from tegu.packages.lockfile import load

        return load(path)
