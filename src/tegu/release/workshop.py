"""The directory in which releases are made: `tegu release init`.

keys/          private keys of the TUF roles, mode 0600
work/NUMBER/   a release while it is made: manifest.json, files/, gate.json
public/        **the only directory to serve**: metadata/ and targets/
"""

from __future__ import annotations

import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

from tegu.errors import ReleaseError
from tegu.release.manifest import Manifest
from tegu.release.numbers import Number

__all__ = ["Workshop"]


class Workshop:
    """An open workshop; `create` makes one."""

    def __init__(self, root: Path) -> None:
        self.root = root.absolute()
        if not (self.root / "public" / "metadata").is_dir():
            raise ReleaseError(
                f"{root} is no workshop of releases", hint="make one with `tegu release init`"
            )

    @classmethod
    def create(cls, root: Path) -> Workshop:
        """Make a workshop in `root`, with keys and the first root metadata."""
        from tegu.release.signing import make_root

        if (root / "public" / "metadata").exists():
            raise ReleaseError(f"{root} is a workshop of releases already")
        for name in ("keys", "work", "public/metadata", "public/targets"):
            (root / name).mkdir(parents=True, exist_ok=True)
        (root / "keys").chmod(0o700)
        made = cls(root)
        make_root(made)
        return made

    @property
    def keys(self) -> Path:
        return self.root / "keys"

    @property
    def public(self) -> Path:
        return self.root / "public"

    def work(self, number: Number) -> Path:
        """Return where the release `number` is made."""
        return self.root / "work" / str(number)

    def manifest(self, number: Number) -> Manifest:
        """Return the manifest of the release `number`; ReleaseError when it was not prepared."""
        return Manifest.read(self.work(number) / "manifest.json")

    def mark(self, number: Number, name: str, text: str) -> Manifest:
        """Note in the manifest that someone has looked; ReleaseError when it is published."""
        if number in self.published():
            raise ReleaseError(f"{number} is published: a release never changes its content")
        if not name or any(c in name for c in ":\n") or "\n" in text:
            raise ReleaseError(f"{name!r} is no name of a mark")
        manifest = self.manifest(number)
        marked = replace(manifest, marks=(*manifest.marks, f"{name}: {text}"))
        marked.write(self.work(number) / "manifest.json")
        return marked

    def numbers(self) -> list[Number]:
        """Return the releases that there are, published or in work, oldest first."""
        made = (self.root / "work").glob("[0-9]*/manifest.json")
        return sorted(Number.parse(path.parent.name) for path in made)

    def published(self) -> list[Number]:
        """Return the releases that clients can see, oldest first."""
        from tegu.release.signing import published_numbers

        return published_numbers(self)

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Be the only one who changes the workshop; ReleaseError at once when another does."""
        handle = os.open(self.root / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            os.ftruncate(handle, 0)
            os.pwrite(handle, f"{os.getpid()}\n".encode(), 0)
            yield
        except BlockingIOError:
            holder = os.pread(handle, 64, 0).decode(errors="replace").strip() or "unknown"
            raise ReleaseError(
                f"{self.root}: another process is changing it (pid {holder})",
                hint="try again when it has ended; nothing was changed",
            ) from None
        finally:
            os.close(handle)
