"""The kernel that a live patch is for, read from its installed form: packages."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from tegu.errors import UsageError, VerifyError
from tegu.kernel.fragments import parse_config
from tegu.kernel.livepatch.locate import SymbolMap
from tegu.packages import open_deb

__all__ = ["Target", "read_target"]

_SETUP = 64 << 10  # bytes; the part of a bzImage that the boot loader reads ends within


@dataclass(frozen=True, slots=True)
class Target:
    """An installed kernel: `release` is its `uname -r`, `build` its `uname -v`, `version` its
    package's, `symvers` the text of Module.symvers (the symbols that it exports, with checksums).
    """

    release: str
    version: str
    architecture: str
    build: str
    config: dict[str, str]
    symbols: SymbolMap
    symvers: str

    @property
    def exported(self) -> frozenset[str]:
        """The symbols that the kernel itself (no module) offers to all modules.

        Those of a namespace (Documentation/core-api/symbol-namespaces.rst) are for some only.
        """
        rows = (line.split("\t") for line in self.symvers.splitlines())
        return frozenset(
            r[1] for r in rows if len(r) > 2 and r[2] == "vmlinux" and not "".join(r[4:]).strip()
        )


def read_target(packages: Sequence[Path]) -> Target:
    """Read a kernel from its image and headers packages (files, or directories with them).

    Raises UsageError when one of them is missing, VerifyError when they do not belong together.
    """
    files = [d for p in packages for d in (sorted(p.glob("*.deb")) if p.is_dir() else [p])]
    boot: dict[str, dict[str, bytes]] = {}
    symvers: dict[str, bytes] = {}
    versions: dict[str, tuple[str, str]] = {}
    for path in files:
        with open_deb(path) as deb:
            name = deb.fields.get("Package", "")
            release = name.removeprefix("linux-image-").removeprefix("linux-headers-")
            if release == name:
                continue
            for info, content in deb.data():
                member = Path(info.name).name
                if content is None:
                    continue
                if member == f"vmlinuz-{release}":
                    boot.setdefault(release, {})["vmlinuz"] = content.read(_SETUP)
                elif member in (f"System.map-{release}", f"config-{release}"):
                    boot.setdefault(release, {})[member.split("-")[0]] = content.read()
                    versions[release] = deb.fields["Version"], deb.fields["Architecture"]
                elif info.name.endswith(f"/linux-headers-{release}/Module.symvers"):
                    symvers[release] = content.read()
    whole = sorted(r for r in boot if len(boot[r]) == 3 and r in symvers)
    if not whole:
        lacks = "headers" if boot else "image" if symvers else "image and headers"
        raise UsageError(
            f"no kernel to patch: the {lacks} package is missing",
            hint="name linux-image-RELEASE and linux-headers-RELEASE, or their directory, with "
            "--kernel",
        )
    if len(whole) > 1:
        raise UsageError(f"more than one kernel to patch: {', '.join(whole)}")
    (release,) = whole
    try:
        config, text = boot[release]["config"].decode(), symvers[release].decode()
        symbols = SymbolMap(boot[release]["System.map"].decode(), f"System.map-{release}")
    except UnicodeDecodeError as e:
        raise VerifyError(f"linux-image-{release}: not text where text must be: {e}") from e
    build = _build(boot[release]["vmlinuz"], release)
    return Target(release, *versions[release], build, parse_config(config), symbols, text)


def _build(image: bytes, release: str) -> str:
    """Return the `uname -v` of a bzImage (Documentation/arch/x86/boot.rst, kernel_version)."""
    try:
        start = int.from_bytes(image[0x20E:0x210], "little") + 0x200
        text = image[start : image.index(b"\0", start)].decode()
    except ValueError:
        text = ""
    if image[0x202:0x206] != b"HdrS" or not text.startswith(f"{release} ") or "#" not in text:
        raise VerifyError(f"vmlinuz-{release} does not say what kernel it is")
    return text[text.index("#") :]
