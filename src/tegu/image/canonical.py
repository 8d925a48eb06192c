"""Make a configured tree a function of what went in: no dates, no order, no identity, no litter."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterable
from pathlib import Path

from tegu.image.alternatives import links_in
from tegu.image.dpkgdb import ADMIN, paragraphs, write_paragraphs
from tegu.image.ids import renumber

__all__ = ["canonicalise", "clamp_times", "remove_litter"]

# Files that record when and by whom something was done, back-ups, locks and caches of a moment.
_LITTER = (
    "etc/passwd-",
    "etc/group-",
    "etc/shadow-",
    "etc/gshadow-",
    "etc/subuid-",
    "etc/subgid-",
    "etc/.pwd.lock",
    "etc/apt/trusted.gpg~",
    "var/cache/ldconfig/aux-cache",
    "var/cache/debconf/config.dat-old",
    "var/cache/debconf/templates.dat-old",
    "var/cache/debconf/passwords.dat-old",
    "var/cache/apt/pkgcache.bin",
    "var/cache/apt/srcpkgcache.bin",
    "var/lib/dpkg/status-old",
    "var/lib/dpkg/diversions-old",
    "var/lib/dpkg/statoverride-old",
    "var/lib/dpkg/available-old",
    "var/lib/systemd/random-seed",
    "var/lib/systemd/credential.secret",
    "var/lib/dbus/machine-id",
    "var/lib/ucf/hashfile.0",
    "var/lib/ucf/registry.0",
    "boot/efi/loader/random-seed",
    "efi/loader/random-seed",
)
_STAMPS = ("etc/.updated", "var/.updated")
_LITTER_GLOBS = (
    "etc/ssh/ssh_host_*_key",
    "etc/ssh/ssh_host_*_key.pub",
    "var/log/*.log",
    "var/log/apt/*",
    "var/lib/ucf/*.[0-9]",
    "root/.*_history",
)
# Tables whose order is the order of arrival; they mean the same when sorted.
_SORTED_LINES = (
    "etc/subuid",
    "etc/subgid",
    "var/lib/dpkg/statoverride",
    "var/lib/dpkg/triggers/File",
    "var/lib/ucf/hashfile",
    "var/lib/ucf/registry",
    "var/lib/shells.state",
)


def remove_litter(root: Path) -> None:
    """Remove what a build leaves behind and no machine should inherit."""
    paths = [root / name for name in _LITTER]
    for pattern in _LITTER_GLOBS:
        paths += sorted(root.glob(pattern))
    for path in paths:
        if path.is_symlink() or path.is_file():
            path.unlink()
    for directory in ("tmp", "run", "var/tmp"):
        for path in sorted((root / directory).glob("*")):
            if path.is_dir() and not path.is_symlink():
                shutil.rmtree(path)
            else:
                path.unlink()
    # An empty machine-id: made at first boot, without the costs of systemd's first-boot mode.
    machine_id = root / "etc/machine-id"
    if not machine_id.is_file() or machine_id.read_bytes():
        machine_id.unlink(missing_ok=True)
        machine_id.write_bytes(b"")
        machine_id.chmod(0o444)
    # All that ConditionNeedsUpdate= guards (linker cache, catalogue, hwdb, users) was done by the
    # build; without these stamps (systemd-update-done.service(8)) each first boot does it again.
    for name in _STAMPS:
        stamp = root / name
        if stamp.parent.is_dir():
            stamp.unlink(missing_ok=True)
            stamp.write_bytes(b"")
            stamp.chmod(0o644)


def _sort_tables(root: Path) -> None:
    for name in _SORTED_LINES:
        path = root / name
        if path.is_file() and not path.is_symlink():
            lines = path.read_text().splitlines()
            if lines != sorted(lines):
                path.write_text("".join(f"{line}\n" for line in sorted(lines)))
    triggers = root / ADMIN / "triggers"
    if triggers.is_dir():
        for path in sorted(triggers.iterdir()):
            lines = path.read_text().splitlines()
            if path.name not in ("File", "Unincorp", "Lock") and lines != sorted(lines):
                path.write_text("".join(f"{line}\n" for line in sorted(lines)))
    diversions = root / ADMIN / "diversions"
    if diversions.is_file():
        lines = diversions.read_text().splitlines()
        triples = sorted(zip(lines[0::3], lines[1::3], lines[2::3], strict=True))
        text = "".join(f"{line}\n" for triple in triples for line in triple)
        if text != diversions.read_text():
            diversions.write_text(text)
    shells = root / "etc/shells"
    if shells.is_file():
        head, *rest = shells.read_text().splitlines() or [""]
        new = "\n".join([head, *sorted(rest)]) + "\n"
        if new != shells.read_text():
            shells.write_text(new)
    status = root / ADMIN / "status"
    if status.is_file():
        write_paragraphs(status, paragraphs(status))


def clamp_times(directories: Iterable[Path], timestamp: int) -> None:
    """Set directories' mtimes to `timestamp`, and later mtimes of all else back to it.

    Links of alternatives get it too: theirs tell the order in which packages were configured.
    """
    for directory in directories:
        os.utime(directory, (timestamp, timestamp))
        stack = [os.fspath(directory)]
        while stack:
            with os.scandir(stack.pop()) as entries:
                for entry in entries:
                    is_directory = entry.is_dir(follow_symlinks=False)
                    if is_directory:
                        stack.append(entry.path)
                    elif entry.stat(follow_symlinks=False).st_mtime <= timestamp:
                        continue
                    os.utime(entry.path, (timestamp, timestamp), follow_symlinks=False)
        for link in links_in(directory):
            os.utime(link, (timestamp, timestamp), follow_symlinks=False)


def canonicalise(root: Path, changed: Iterable[Path]) -> dict[str, int]:
    """Do all of the above to the tree at `root` (mounted, writable); returns ids by name.

    `changed` are the layers that were written to since the packages were merged. Times are left
    to `clamp_times`, which must come last and must see the layers unmounted.
    """
    remove_litter(root)
    _sort_tables(root)
    return renumber(root, changed)
