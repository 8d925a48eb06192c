"""The packages to examine: of a lock, an SBOM, dpkg's status file, and what runs here."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import unquote

from tegu.errors import UsageError
from tegu.release.cve.match import Package

if TYPE_CHECKING:
    from tegu.packages import Lock

__all__ = ["packages_of_lock", "packages_of_sbom", "packages_of_status", "running_packages"]


def packages_of_lock(lock: Lock) -> list[Package]:
    """Return what an image of `lock` has installed."""
    return [Package(p.name, p.version, p.source, p.source_version) for p in lock.system]


def packages_of_sbom(path: Path) -> list[Package]:
    """Return the Debian packages of a CycloneDX or SPDX document (JSON), by their package URLs.

    The source is in the qualifier `upstream` (purl-spec, type deb), as name or name@version.
    """
    try:
        raw = json.loads(path.read_text())
        urls = [
            *(c.get("purl") for c in raw.get("components", ())),
            *(
                r.get("referenceLocator")
                for p in raw.get("packages", ())
                for r in p.get("externalRefs", ())
                if r.get("referenceType") == "purl"
            ),
        ]
    except OSError as e:
        raise UsageError(f"{path}: {e.strerror}") from e
    except (ValueError, AttributeError, TypeError) as e:
        raise UsageError(f"{path}: neither a CycloneDX nor an SPDX document: {e}") from e
    found = [_of_purl(url) for url in urls if isinstance(url, str) and url.startswith("pkg:deb/")]
    if not found:
        raise UsageError(f"{path}: it names no Debian packages (pkg:deb/...)")
    return found


def _of_purl(url: str) -> Package:
    head, _, query = url.partition("?")
    name, _, version = head.rpartition("/")[2].partition("@")
    name, version = unquote(name), unquote(version)
    words = dict(w.split("=", 1) for w in query.split("&") if "=" in w)
    source, _, other = unquote(words.get("upstream", "")).partition("@")
    return Package(name, version, source or name, other or version)


def packages_of_status(path: Path) -> list[Package]:
    """Return what dpkg's status file (deb822(5), /var/lib/dpkg/status) has as installed."""
    try:
        text = path.read_text(encoding="utf-8", errors="replace")
    except OSError as e:
        raise UsageError(f"{path}: {e.strerror}") from e
    found = []
    for stanza in text.split("\n\n"):
        fields = {
            k: v.strip()
            for k, colon, v in (line.partition(":") for line in stanza.splitlines())
            if colon and not k.startswith((" ", "\t"))
        }
        if not fields:
            continue
        name, version = fields.get("Package"), fields.get("Version")
        if not fields.get("Status", "").endswith(" installed"):
            continue
        if not name or not version:
            raise UsageError(f"{path}: an entry has no Package or no Version: no status file")
        source, _, other = fields.get("Source", name).partition(" ")
        found.append(Package(name, version, source, other.strip("() ") or version))
    if not found:
        raise UsageError(f"{path}: no package is installed: no status file of dpkg")
    return found


def running_packages(root: Path = Path("/")) -> dict[str, bool]:
    """Say of each package of this machine whether a process has a file of it mapped.

    By /proc/PID/maps (proc_pid_maps(5)) and dpkg's lists of files. A program that is started for a
    moment does not show; what is False may still be used.
    """
    open_files: set[str] = set()
    for maps in (root / "proc").glob("[0-9]*/maps"):
        try:
            lines = maps.read_text(errors="replace").splitlines()
        except OSError:
            continue  # ended meanwhile, or a kernel thread
        for line in lines:
            match = re.search(r" (/\S.*)$", line)
            if match is not None:
                open_files.add(match[1].removesuffix(" (deleted)"))
    used: dict[str, bool] = {}
    for listing in sorted((root / "var/lib/dpkg/info").glob("*.list")):
        name = listing.stem.partition(":")[0]
        files = listing.read_text(errors="replace").splitlines()
        # /lib is a link to /usr/lib; dpkg's lists may still say the old name.
        here = any(f in open_files or f"/usr{f}" in open_files for f in files if len(f) > 1)
        used[name] = used.get(name, False) or here
    return used
