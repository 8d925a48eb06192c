"""Package repositories: index, verify, solve, lock, fetch; and package files, read and written.

`make_lock` turns a definition into a `Lock` (exact packages), `fetch_all` brings the packages of a
lock into the store, `find_source` and `fetch_source` do so for a source package, `find_versions`
says which versions of a package there are, `open_deb` and `write_deb` read and write one package
file. Package formats other than deb have their place beside the deb modules.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from tegu.lazy import lazily
from tegu.packages.lock import LOCAL, Lock, LockedPackage, LockedRepository

if TYPE_CHECKING:
    from tegu.packages.compare import diff
    from tegu.packages.deb import open_deb
    from tegu.packages.fetch import fetch_all
    from tegu.packages.lockfile import default_lock_path
    from tegu.packages.make import make_lock, provide_local, stale
    from tegu.packages.source_package import SourcePackage, fetch_source, find_source
    from tegu.packages.versions import Version, fetch_version, find_versions

__all__ = [
    "LOCAL",
    "Lock",
    "LockedPackage",
    "LockedRepository",
    "SourcePackage",
    "Version",
    "default_lock_path",
    "diff",
    "fetch_all",
    "fetch_source",
    "fetch_version",
    "find_source",
    "find_versions",
    "make_lock",
    "open_deb",
    "provide_local",
    "stale",
]

__getattr__ = lazily(
    __name__,
    {
        "SourcePackage": "source_package",
        "Version": "versions",
        "default_lock_path": "lockfile",
        "diff": "compare",
        "fetch_all": "fetch",
        "fetch_source": "source_package",
        "fetch_version": "versions",
        "find_source": "source_package",
        "find_versions": "versions",
        "make_lock": "make",
        "open_deb": "deb",
        "provide_local": "make",
        "stale": "make",
    },
)
