"""The packages of a kernel: image, headers, tests, and one name that always means the newest."""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from tegu.kernel.payload import Selftests
from tegu.kernel.recipe import Recipe
from tegu.packages.deb_write import Compression, DebEntry, write_deb

__all__ = ["write_packages"]

_MAINTAINER = "The Tegu developers <tegu@tegu.invalid>"
# Debian's programs that make initrds and boot files hang on these directories; linux-run-hooks of
# linux-base does the same with some history.
_HOOK = """#!/bin/sh
set -e
{guard}version={release}
image=/boot/vmlinuz-{release}
if [ -d /etc/kernel/{event}.d ]; then
    DEB_MAINT_PARAMS="$*" run-parts --report --exit-on-error --arg="$version" --arg="$image" \\
        /etc/kernel/{event}.d
fi
"""
# What the tests' scripts call.
_TESTED_WITH = ("bash", "ethtool", "iproute2", "iputils-ping", "jq", "kmod", "python3")
_GUARD = {
    "preinst": "case $1 in install | upgrade) ;; *) exit 0 ;; esac\n",
    "postinst": '[ "$1" = configure ] || exit 0\n',
    "prerm": '[ "$1" = remove ] || exit 0\n',
    "postrm": "case $1 in remove | purge) ;; *) exit 0 ;; esac\n",
}


def write_packages(
    recipe: Recipe,
    out: Path,
    *,
    image: Sequence[DebEntry],
    headers: Sequence[DebEntry],
    selftests: Selftests,
    copyright_text: bytes,
    timestamp: int,
) -> list[Path]:
    """Write the packages into `out` and return their paths; the image comes first.

    `timestamp` is in seconds since the epoch, `copyright_text` the source package's.
    """
    release, version = recipe.release, recipe.deb_version
    image_name = f"linux-image-{release}"
    machine = recipe.facts.deb

    def package(
        name: str,
        entries: Sequence[DebEntry],
        description: str,
        fields: dict[str, str],
        scripts: dict[str, str] | None = None,
        compression: Compression = "xz",
    ) -> Path:
        legal = DebEntry(f"/usr/share/doc/{name}/copyright", copyright_text)
        return write_deb(
            # An epoch is no part of a file's name (deb-version(7), dpkg-name(1)).
            out / f"{name}_{version.rpartition(':')[2]}_{fields['Architecture']}.deb",
            {
                "Package": name,
                "Source": f"{recipe.package} ({recipe.version})",
                "Version": version,
                **fields,
                "Maintainer": _MAINTAINER,
                "Section": "kernel",
                "Priority": "optional",
                "Description": description,
            },
            [*entries, legal],
            timestamp=timestamp,
            scripts=scripts,
            compression=compression,
        )

    # Compressing takes the time, and lets other threads run.
    with ThreadPoolExecutor() as pool:
        made = [
            pool.submit(
                package,
                f"linux-image-{release}",
                image,
                f"Linux {recipe.upstream}, the Tegu cloud kernel\n"
                " Built from Debian's source with Tegu's configuration and patches. What the\n"
                " root disk of a cloud machine needs is built in: no initrd is required.",
                {
                    "Architecture": machine,
                    "Depends": "kmod",
                    "Suggests": f"linux-headers-{release}",
                    "Provides": f"linux-image (= {version})",
                },
                {
                    event: _HOOK.format(guard=guard, release=release, event=event)
                    for event, guard in _GUARD.items()
                },
                "gz",  # modules and the image are compressed already
            ),
            pool.submit(
                package,
                f"linux-headers-{release}",
                headers,
                f"Headers of Linux {release}\n What external modules for the Tegu cloud kernel "
                "are built with.",
                {
                    "Architecture": machine,
                    "Depends": "libc6, libelf1t64 | libelf1, libssl3t64 | libssl3",
                },
            ),
            pool.submit(
                package,
                f"linux-image-{recipe.name}",
                [],
                "The Tegu cloud kernel, newest\n"
                " This package depends on the newest Tegu cloud kernel.",
                {"Architecture": machine, "Depends": f"linux-image-{release} (= {version})"},
            ),
            pool.submit(
                package,
                f"linux-selftests-{recipe.name}",
                selftests.entries,
                f"Tests of Linux {release}\n"
                " Some of the kernel's own tests (run_kselftest.sh runs them), those that come\n"
                " with the patches of the Tegu cloud kernel, and its sample of a live patch,\n"
                " below /usr/lib/linux-selftests.",
                {
                    "Architecture": machine,
                    "Depends": ", ".join([*selftests.depends, *_TESTED_WITH, image_name]),
                },
            ),
        ]
        return [job.result() for job in made]
