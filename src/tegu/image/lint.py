"""Refuse a tree that would make machines twins, or that is not what its definition says."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

from tegu.definition import Definition
from tegu.image.dpkgdb import ADMIN, installed, paragraphs
from tegu.image.manifest import Item

__all__ = ["lint"]

_IDENTITY = (
    "etc/ssh/ssh_host_",
    "var/lib/systemd/random-seed",
    "var/lib/systemd/credential.secret",
    "var/lib/dbus/machine-id",
    "var/lib/cloud/instance",
    "var/lib/cloud/data",
    "var/lib/dhcp/",
    "root/.ssh/id_",
    "efi/loader/random-seed",
    "boot/efi/loader/random-seed",
)
_LEFT_BEHIND = (".dpkg-new", ".dpkg-old", ".dpkg-dist", ".dpkg-tmp", ".ucf-dist", ".ucf-new")


def lint(root: Path, items: Iterable[Item], definition: Definition) -> list[str]:
    """Return what is wrong with a tree, a sentence each; an empty list is a tree to ship."""
    everything = list(items)
    checks: tuple[Callable[[], Iterator[str]], ...] = (
        lambda: _identity(everything, definition),
        lambda: _litter(everything),
        lambda: _owners(root, everything),
        lambda: _modes(everything, definition),
        lambda: _accounts(root),
        lambda: _packages(root),
    )
    return [finding for check in checks for finding in check()]


def _identity(items: Iterable[Item], definition: Definition) -> Iterator[str]:
    # A key that the definition itself lays over the tree is the user's own decision.
    laid = {file.path.lstrip("/") for file in definition.file}
    for item in items:
        if item.kind != "f" or item.path in laid:
            continue
        if item.path.startswith(_IDENTITY):
            yield f"/{item.path} would be the same on every machine"
        elif item.path == "etc/machine-id" and item.size:
            yield "/etc/machine-id is not empty: every machine would be the same"


def _litter(items: Iterable[Item]) -> Iterator[str]:
    for item in items:
        if item.path.endswith(_LEFT_BEHIND):
            yield f"/{item.path} was left behind by the package manager"
        elif item.kind == "f" and item.size and item.path.startswith(("var/log/", "var/tmp/")):
            yield f"/{item.path} is a trace of the build"


def _owners(root: Path, items: Iterable[Item]) -> Iterator[str]:
    users = _numbers(root / "etc/passwd")
    groups = _numbers(root / "etc/group")
    if not users:
        return
    for item in items:
        if item.uid not in users:
            yield f"/{item.path} belongs to user {item.uid}, who does not exist"
        if item.gid not in groups:
            yield f"/{item.path} belongs to group {item.gid}, which does not exist"


def _numbers(table: Path) -> set[int]:
    if not table.is_file():
        return set()
    return {int(line.split(":")[2]) for line in table.read_text().splitlines() if line}


def _modes(items: Iterable[Item], definition: Definition) -> Iterator[str]:
    allowed = definition.hardening.setuid
    for item in items:
        mode = int(item.mode, 8)
        if item.kind == "f" and mode & 0o002:
            yield f"/{item.path} can be written by everybody"
        if item.kind == "d" and mode & 0o002 and not mode & 0o1000:
            yield f"/{item.path}/ can be written by everybody and is not sticky"
        if (
            item.kind == "f"
            and mode & 0o6000
            and allowed is not None
            and f"/{item.path}" not in allowed
        ):
            yield f"/{item.path} is setuid or setgid and not in hardening.setuid"


def _accounts(root: Path) -> Iterator[str]:
    shadow = root / "etc/shadow"
    for line in shadow.read_text().splitlines() if shadow.is_file() else []:
        fields = line.split(":")
        if len(fields) > 1 and fields[1] == "":
            yield f"the account {fields[0]} has an empty password"


def _packages(root: Path) -> Iterator[str]:
    for status, name in installed(paragraphs(root / ADMIN / "status").values()):
        if status != "install ok installed":
            yield f"the package {name} is not installed properly: {status}"
