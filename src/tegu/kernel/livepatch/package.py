"""The package of a live patch: the module and its note, loaded when it is installed."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from tegu.errors import UsageError
from tegu.kernel.livepatch.target import Target
from tegu.packages.deb_write import DebEntry, write_deb

__all__ = ["write_package"]

DIRECTORY = "/usr/lib/tegu/livepatch"
_MAINTAINER = "The Tegu developers <tegu@tegu.invalid>"
# On another kernel there is nothing to do yet: the service loads it when that one starts.
_POSTINST = """#!/bin/sh
set -e
[ "$1" = configure ] || exit 0
if [ "$(uname -r)" = {release} ] && [ -d /sys/kernel/livepatch ]; then
    tegu kernel livepatch load {name} ||
        echo "{name} is installed, but could not be loaded" >&2
else
    tegu kernel livepatch enable {name} --release {release}
fi
"""
_PRERM = """#!/bin/sh
set -e
[ "$1" = remove ] || exit 0
tegu kernel livepatch revert {name} --release {release}
"""


def write_package(
    out: Path,
    name: str,
    version: str,
    target: Target,
    module: bytes,
    note: str,
    patches: Sequence[Path],
    *,
    timestamp: int,
) -> Path:
    """Write the package into `out` and return it.

    `note` is the JSON text that says what the module replaces. Raises UsageError for a version that
    dpkg does not take.
    """
    if not version[:1].isdigit() or not all(c.isalnum() or c in ".+~" for c in version):
        raise UsageError(f"{version!r} is no version of a package (digits, letters, . + ~)")
    release = target.release
    directory = f"{DIRECTORY}/{release}"
    package = f"livepatch-{release}-{name.replace('_', '-')}"
    values = {"name": name, "release": release}
    return write_deb(
        out / f"{package}_{version}_{target.architecture}.deb",
        {
            "Package": package,
            "Version": version,
            "Architecture": target.architecture,
            "Depends": "tegu",
            "Enhances": f"linux-image-{release} (= {target.version})",
            "Maintainer": _MAINTAINER,
            "Section": "kernel",
            "Priority": "optional",
            "Description": f"Live patch of Linux {release}: {name}\n"
            + "".join(f" {p.name}\n" for p in patches).rstrip("\n"),
        },
        [
            DebEntry(f"{directory}/{name}.ko", module),
            DebEntry(f"{directory}/{name}.json", note.encode()),
        ],
        timestamp=timestamp,
        scripts={"postinst": _POSTINST.format(**values), "prerm": _PRERM.format(**values)},
    )
