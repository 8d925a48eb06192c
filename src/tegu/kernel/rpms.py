"""The packages of a kernel for systems of RPM packages: the payload of the .deb, file by file.

They are written from the finished .deb, so that both always hold the same; kept in the store under
the hash of these and of rpmbuild's version.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from tegu.errors import BuildError
from tegu.files import write_atomic
from tegu.kernel.build import Built
from tegu.kernel.recipe import Recipe
from tegu.packages import open_deb, rpm_write
from tegu.packages.deb_write import DebEntry
from tegu.packages.rpm_write import RpmHeader, rpm_version, write_rpm

if TYPE_CHECKING:
    from tegu.store import Store

__all__ = ["rpm_packages"]

KIND = "kernel-rpms-1"
_FACTS = "rpms.json"
_LICENSE = "GPL-2.0-only WITH Linux-syscall-note"
# What installs a kernel on a system of RPM packages: kernel-install(8), or grubby(8) before it.
_ADD = """\
if [ -x /usr/bin/kernel-install ]; then
    kernel-install add {release} /boot/vmlinuz-{release}
elif [ -x /usr/sbin/grubby ]; then
    grubby --add-kernel=/boot/vmlinuz-{release} --title="Linux {release}" --copy-default
fi
"""
_REMOVE = """\
if [ -x /usr/bin/kernel-install ]; then
    kernel-install remove {release} /boot/vmlinuz-{release}
elif [ -x /usr/sbin/grubby ]; then
    grubby --remove-kernel=/boot/vmlinuz-{release}
fi
"""


def rpm_packages(
    recipe: Recipe, built: Built, store: Store, *, say: Callable[[str], None] | None = None
) -> list[Path]:
    """Return the .rpm of the image, the headers and the name of the newest, made when needed.

    Raises UnsupportedError without rpmbuild, BuildError when it fails.
    """
    debs = {p.name.partition("_")[0]: p for p in built.packages}
    digest = hashlib.sha256(f"{rpm_version()}\n".encode())
    for module in (__file__, rpm_write.__file__):
        digest.update(Path(str(module)).read_bytes())
    for path in debs.values():
        with path.open("rb") as f:
            digest.update(hashlib.file_digest(f, "sha256").digest())
    key = digest.hexdigest()
    with store.shared(), store.locked(f"kernel-{key}"):
        if (there := store.tree(KIND, key)) is None:
            with store.new_tree(KIND, key) as tree:
                names = []
                for name, header in _headers(recipe).items():
                    if name not in debs:
                        raise BuildError(f"the kernel {recipe.release} has no package {name}")
                    if say is not None:
                        say(f"write {header.file_name}")
                    entries, timestamp = _payload(debs[name])
                    path = write_rpm(
                        tree,
                        header,
                        entries,
                        timestamp=timestamp,
                        # Modules and the image are compressed already.
                        compression="xz" if "headers" in name else "gz",
                    )
                    names.append(path.name)
                write_atomic(tree / _FACTS, json.dumps(names))
            there = store.tree(KIND, key)
            assert there is not None, "new_tree leaves it there"
    return [there / name for name in json.loads((there / _FACTS).read_text())]


def _payload(deb: Path) -> tuple[list[DebEntry], int]:
    """Return the files of a .deb and the time that they have, in seconds since the epoch."""
    entries: list[DebEntry] = []
    newest = 0
    with open_deb(deb) as package:
        for info, content in package.data():
            newest = max(newest, int(info.mtime))
            path = f"/{info.name}"
            if content is not None:
                entries.append(DebEntry(path, content.read(), mode=info.mode))
            elif info.issym():
                entries.append(DebEntry(path, target=info.linkname))
            elif info.isdir():
                continue  # those above the files are made; a kernel has no empty ones
            else:
                raise BuildError(f"{deb.name}: {info.name} is no file, link or directory")
    return entries, newest


def _headers(recipe: Recipe) -> Mapping[str, RpmHeader]:
    """Return what each package says of itself, by the name that it shares with the .deb."""
    release = recipe.release
    # An epoch is dropped: versions are compared with those of RPM packages, which have their own.
    version, _, revision = recipe.deb_version.rpartition(":")[2].rpartition("-")
    full = f"{version.replace('-', '~')}-{revision}"

    def header(name: str, summary: str) -> RpmHeader:
        return RpmHeader(
            name=name,
            version=version.replace("-", "~"),
            release=revision,
            architecture=recipe.facts.machine,
            summary=summary,
            description=summary,
            license=_LICENSE,
        )

    image = f"linux-image-{release}"
    found = [
        replace(
            header(image, f"Linux {recipe.upstream}, the Tegu cloud kernel"),
            requires=("kmod",),
            suggests=(f"linux-headers-{release}",),
            provides=(
                f"kernel = {full}",
                f"kernel-core-uname-r = {release}",
                f"kernel-uname-r = {release}",
                # dnf keeps several of these beside each other (dnf.conf(5), installonlypkgs).
                "installonlypkg(kernel)",
            ),
            scripts={
                "posttrans": _ADD.format(release=release),
                "preun": _REMOVE.format(release=release),
            },
        ),
        replace(
            header(f"linux-headers-{release}", f"What to build modules for Linux {release} with"),
            requires=("libc.so.6()(64bit)", "libcrypto.so.3()(64bit)", "libelf.so.1()(64bit)"),
            provides=(f"kernel-devel = {full}", f"kernel-devel-uname-r = {release}"),
        ),
        replace(
            header(f"linux-image-{recipe.name}", "The Tegu cloud kernel, newest"),
            requires=(f"{image} = {full}",),
        ),
    ]
    return {h.name: h for h in found}
