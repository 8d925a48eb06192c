"""Releases: what one consists of, whether it may go out, and metadata that clients can trust.

A release is a lock, its images, a snapshot of the package repository, bills of material, advisories
and notes, all listed in one manifest. `prepare` puts it together, `judge` holds it to the gate,
`sign` and `publish` put it out under TUF metadata (https://theupdateframework.github.io/), which
`Client` verifies: roll-back, freeze and mix-and-match attacks are refused. `cve` says which known
vulnerabilities a lock, an image or a machine has.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from tegu.lazy import lazily

if TYPE_CHECKING:
    from tegu.release.gate import judge
    from tegu.release.manifest import Manifest
    from tegu.release.numbers import Number, support_of
    from tegu.release.prepare import prepare
    from tegu.release.workshop import Workshop

__all__ = ["Manifest", "Number", "Workshop", "judge", "prepare", "support_of"]

__getattr__ = lazily(
    __name__,
    {
        "Manifest": "manifest",
        "Number": "numbers",
        "Workshop": "workshop",
        "judge": "gate",
        "prepare": "prepare",
        "support_of": "numbers",
    },
)
