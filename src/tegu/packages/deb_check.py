"""Which members a package may have: none that reaches outside the directory it is unpacked in."""

from __future__ import annotations

import tarfile
from pathlib import Path
from typing import NoReturn

from tegu.errors import VerifyError

__all__ = ["Checker"]


class Checker:
    """Refuses members that reach outside the directory they are unpacked in.

    Names must be relative, without `..`; nothing may lie below a symbolic link or a file of the
    same package; hard links must point to a regular file that came before. Devices, sockets and
    FIFOs do not belong into packages (Debian Policy, section 10.6).
    """

    def __init__(self, path: Path, limit: int) -> None:
        self.path = path
        self.limit = limit
        self.directories = {""}
        self.kinds: dict[str, str] = {}

    def __call__(self, info: tarfile.TarInfo) -> None:
        name = self._clean(info.name, info)
        info.name = name or "."
        if len(self.kinds) >= self.limit:
            raise VerifyError(f"{self.path}: more than {self.limit} members")
        kind = self._kind(info)
        if not name:
            if kind != "d":
                self._refuse(info, "takes the place of the root directory")
            return
        parent = name.rpartition("/")[0]
        if parent not in self.directories:
            self._enter(parent, info)
        before = self.kinds.get(name)
        if before is not None and (before, kind) != ("d", "d"):
            self._refuse(info, "is there twice")
        self.kinds[name] = kind
        if kind == "d":
            self.directories.add(name)

    def _kind(self, info: tarfile.TarInfo) -> str:
        """Return "d", "l" or "f"; a hard link is a file, and its target is made relative."""
        if info.isdir():
            return "d"
        if info.issym():
            if not info.linkname or "\0" in info.linkname:
                self._refuse(info, "is a symbolic link to nothing")
            return "l"
        if info.islnk():
            target = self._clean(info.linkname, info)
            if self.kinds.get(target) != "f":
                self._refuse(info, f"is a hard link to {info.linkname!r}, no file before it")
            info.linkname = target
        elif not info.isreg():
            self._refuse(info, "is no file, directory or link")
        return "f"

    def _enter(self, parent: str, info: tarfile.TarInfo) -> None:
        """Note directories that have no member of their own; none of them may be a link or file."""
        at = ""
        for part in parent.split("/"):
            at = f"{at}/{part}" if at else part
            if self.kinds.get(at, "d") != "d":
                self._refuse(info, f"lies below {at}, which is no directory")
            self.directories.add(at)

    def _clean(self, name: str, info: tarfile.TarInfo) -> str:
        if name.startswith("/"):
            self._refuse(info, "has an absolute name")
        parts = [part for part in name.split("/") if part not in ("", ".")]
        if ".." in parts or "\0" in name:
            self._refuse(info, "has a name that leads elsewhere")
        return "/".join(parts)

    def _refuse(self, info: tarfile.TarInfo, why: str) -> NoReturn:
        raise VerifyError(f"{self.path}: refused: the member {info.name!r} {why}")
