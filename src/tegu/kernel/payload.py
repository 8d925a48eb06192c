"""What goes into the packages of a kernel: the image, its modules, headers to build more."""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator
from pathlib import Path

from tegu.errors import BuildError
from tegu.kernel.kbuild import Kbuild
from tegu.packages.deb_write import DebEntry
from tegu.process import run

__all__ = ["header_entries", "image_entries", "selftest_entries"]

_SELFTESTS = "tools/testing/selftests/"
_INSTALLED = "/usr/lib/linux-selftests"


def image_entries(kbuild: Kbuild, work: Path) -> list[DebEntry]:
    """Return the files of the image package: in /boot, and the modules with depmod's indexes."""
    recipe, tree = kbuild.recipe, kbuild.tree
    release = recipe.release
    root = work / "image"
    # Only debug information is stripped (BTF stays); the kernel's own make compresses.
    kbuild.make(
        f"INSTALL_MOD_PATH={root}/usr",
        "INSTALL_MOD_STRIP=1",
        "DEPMOD=depmod",
        "modules_install",
    )
    modules = root / "usr/lib/modules" / release
    (modules / "build").unlink(missing_ok=True)
    (modules / "source").unlink(missing_ok=True)
    entries = list(_files(modules, f"/usr/lib/modules/{release}"))
    entries.append(
        DebEntry(f"/usr/lib/modules/{release}/build", target=f"/usr/src/linux-headers-{release}")
    )
    for source, name in (
        (recipe.facts.image, "vmlinuz"),
        ("System.map", "System.map"),
        (".config", "config"),
    ):
        path = tree / source
        if not path.is_file():
            raise BuildError(f"the build left no {source}")
        # Where the symbols are is nobody's business but root's.
        mode = 0o600 if name == "System.map" else 0o644
        entries.append(DebEntry(f"/boot/{name}-{release}", path.read_bytes(), mode=mode))
    return entries


def header_entries(kbuild: Kbuild, work: Path) -> list[DebEntry]:
    """Return the files of the headers package: what an external module is built with.

    The kernel's own script gathers them (scripts/package/install-extmod-build).
    """
    release = kbuild.recipe.release
    root = work / "headers"
    script = f"$(srctree)/scripts/package/install-extmod-build {root}"
    kbuild.make(f"KBUILD_RUN_COMMAND=+{script}", "run-command")
    (root / ".config").write_bytes((kbuild.tree / ".config").read_bytes())
    for path in sorted(root.rglob("*")):
        if path.is_file() and not path.is_symlink() and _is_program(path):
            run(["strip", "--strip-unneeded", path], timeout=60)
    return list(_files(root, f"/usr/src/linux-headers-{release}"))


def selftest_entries(kbuild: Kbuild) -> list[DebEntry]:
    """Return the tests that our patches add, and the kernel's sample of a live patch.

    The sample is built as an external module is: it shows that live patching works.
    """
    recipe, tree = kbuild.recipe, kbuild.tree
    kbuild.make("M=samples/livepatch", "CONFIG_SAMPLE_LIVEPATCH=m", "modules")
    sample = tree / "samples/livepatch/livepatch-sample.ko"
    run(["strip", "--strip-debug", sample], timeout=60)
    entries = [DebEntry(f"{_INSTALLED}/livepatch/{sample.name}", sample.read_bytes())]
    for patch in recipe.patches:
        for word in patch.test.replace(",", " ").split():
            path = tree / word
            if word.startswith(_SELFTESTS) and path.is_file():
                name = word.removeprefix(_SELFTESTS)
                entries.append(DebEntry(f"{_INSTALLED}/{name}", path.read_bytes(), mode=0o755))
    return list({e.path: e for e in entries}.values())


def _is_program(path: Path) -> bool:
    if not path.stat().st_mode & stat.S_IXUSR:
        return False
    with path.open("rb") as f:
        return f.read(4) == b"\x7fELF"


def _files(root: Path, prefix: str) -> Iterator[DebEntry]:
    """Yield all that is below `root`, sorted; the order of a directory is nobody's promise."""
    for directory, names, files in os.walk(root):
        names.sort()
        for name in sorted([*files, *(n for n in names if (Path(directory) / n).is_symlink())]):
            path = Path(directory) / name
            target = f"{prefix}/{path.relative_to(root).as_posix()}"
            if path.is_symlink():
                yield DebEntry(target, target=str(path.readlink()))
            else:
                mode = 0o755 if path.stat().st_mode & stat.S_IXUSR else 0o644
                yield DebEntry(target, path.read_bytes(), mode=mode)
