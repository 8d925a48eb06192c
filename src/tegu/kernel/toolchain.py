"""What a kernel is built with: is all of it here, and in which version."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

from tegu.errors import UnsupportedError
from tegu.process import run

__all__ = ["PROGRAMS", "require_toolchain", "toolchain_versions"]

# Programs and the Debian packages that have them; Documentation/process/changes.rst.
PROGRAMS = {
    "bc": "bc",
    "bison": "bison",
    "ccache": "ccache",
    "cpio": "cpio",
    "depmod": "kmod",
    "flex": "flex",
    "gcc": "gcc",
    "ld": "binutils",
    "make": "make",
    "openssl": "openssl",
    "pahole": "dwarves",
    "patch": "patch",
    "perl": "perl",
    "python3": "python3",
    "rsync": "rsync",
    "tar": "tar",
    "xz": "xz-utils",
    "zstd": "zstd",
}
# What programs of the build (objtool, resolve_btfids, sign-file) and tests are linked with.
_HEADERS = {
    "gelf.h": "libelf-dev",
    "openssl/opensslv.h": "libssl-dev",
    "sys/capability.h": "libcap-dev",
    "zlib.h": "zlib1g-dev",
}
# What the bits of the result depend on.
_VERSIONED = ("gcc", "ld", "pahole", "zstd", "depmod", "make")


def require_toolchain(prefix: str = "") -> None:
    """Raise UnsupportedError that names all that is missing, with the command that installs it.

    `prefix` is that of a compiler for another architecture ("aarch64-linux-gnu-").
    """
    search = os.environ.get("PATH", os.defpath) + ":/usr/sbin:/sbin"
    wanted = dict(PROGRAMS)
    if prefix:
        triplet = prefix.rstrip("-").replace("_", "-")
        wanted |= {f"{prefix}gcc": f"gcc-{triplet}", f"{prefix}ld": f"binutils-{triplet}"}
    missing = {p: d for p, d in wanted.items() if shutil.which(p, path=search) is None}
    if "gcc" not in missing:
        missing |= {h: d for h, d in _HEADERS.items() if not _has_header(h)}
    if missing:
        packages = " ".join(sorted(set(missing.values())))
        raise UnsupportedError(
            f"building a kernel needs {', '.join(sorted(missing))}",
            hint=f"apt-get install {packages}",
        )


def _has_header(name: str) -> bool:
    done = run(
        ["gcc", "-E", "-x", "c", "-o", os.devnull, "-"],
        stdin=f"#include <{name}>\n",
        check=False,
        timeout=60,
    )
    return done.returncode == 0


def toolchain_versions() -> dict[str, str]:
    """Return the first line that each program says of its version."""
    versions = {}
    for program in _VERSIONED:
        done = run([program, "--version"], check=False, timeout=60, env=_plain())
        lines = (done.stdout or done.stderr).strip().splitlines()
        versions[program] = lines[0].strip() if lines else "unknown"
    return versions


def _plain() -> dict[str, str]:
    path = os.environ.get("PATH", os.defpath) + ":/usr/sbin:/sbin"
    return {"PATH": path, "LC_ALL": "C", "HOME": str(Path.home())}
