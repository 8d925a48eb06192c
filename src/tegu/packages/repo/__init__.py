"""Repositories of our own: apt and RPM packages of one pool, channels, snapshots, signed indexes.

`Repository` is a directory: `repo.toml` (settings), `state.db` (what is in which channel, and the
metadata of each package, read once and kept by content hash), `private/` (keys), and `public/`,
which any static web server may serve. `add`, `remove`, `promote` and `take_snapshot` change what is
in a channel; `publish` writes and signs the indexes and puts them in place in one step; `verify`
looks at a repository as its clients do.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from tegu.lazy import lazily
from tegu.packages.repo.repository import Repository

if TYPE_CHECKING:
    from tegu.packages.repo.channels import promote, remove, roll_out, take_snapshot
    from tegu.packages.repo.intake import add
    from tegu.packages.repo.mirroring import mirror
    from tegu.packages.repo.publication import publish
    from tegu.packages.repo.sign import make_key
    from tegu.packages.repo.verification import verify
    from tegu.packages.repo.web import serve

__all__ = [
    "Repository",
    "add",
    "make_key",
    "mirror",
    "promote",
    "publish",
    "remove",
    "roll_out",
    "serve",
    "take_snapshot",
    "verify",
]

__getattr__ = lazily(
    __name__,
    {
        "add": "intake",
        "make_key": "sign",
        "mirror": "mirroring",
        "promote": "channels",
        "publish": "publication",
        "remove": "channels",
        "roll_out": "channels",
        "serve": "web",
        "take_snapshot": "channels",
        "verify": "verification",
    },
)
