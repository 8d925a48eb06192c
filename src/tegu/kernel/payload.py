"""What goes into the packages of a kernel: the image, its modules, headers to build more."""

from __future__ import annotations

import os
import shutil
import stat
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from tegu.errors import BuildError
from tegu.kernel.kbuild import Kbuild
from tegu.kernel.selftests import Collection, install_selftests, is_program, library_packages
from tegu.packages.deb_write import DebEntry
from tegu.process import run

__all__ = ["Selftests", "header_entries", "image_entries", "selftest_entries"]

_SELFTESTS = "tools/testing/selftests/"
_INSTALLED = "/usr/lib/linux-selftests"


def image_entries(kbuild: Kbuild, work: Path) -> list[DebEntry]:
    """Return the files of the image package: in /boot, and the modules with depmod's indexes."""
    recipe, tree = kbuild.recipe, kbuild.tree
    release = recipe.release
    entries: list[DebEntry] = []
    if kbuild.has_modules():
        root = work / "image"
        # Only debug information is stripped (BTF stays); the kernel's own make compresses.
        kbuild.make(
            f"INSTALL_MOD_PATH={root}/usr",
            "INSTALL_MOD_STRIP=1",
            "DEPMOD=depmod",
            # A fifth smaller than at zstd's usual level, and unpacked as fast.
            "ZSTD=zstd -19",
            "modules_install",
        )
        modules = root / "usr/lib/modules" / release
        if not modules.is_dir():
            raise BuildError(f"the build installed no modules of {release}")
        (modules / "build").unlink(missing_ok=True)
        (modules / "source").unlink(missing_ok=True)
        entries += _files(modules, f"/usr/lib/modules/{release}")
        headers = f"/usr/src/linux-headers-{release}"
        entries.append(DebEntry(f"/usr/lib/modules/{release}/build", target=headers))
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

    The kernel's own script gathers them (scripts/package/install-extmod-build). None for a kernel
    without modules.
    """
    if not kbuild.has_modules():
        return []
    release = kbuild.recipe.release
    root = work / "headers"
    script = f"$(srctree)/scripts/package/install-extmod-build {root}"
    kbuild.make(f"KBUILD_RUN_COMMAND=+{script}", "run-command")
    (root / ".config").write_bytes((kbuild.tree / ".config").read_bytes())
    for path in sorted(root.rglob("*")):
        if path.is_file() and not path.is_symlink() and is_program(path):
            run(["strip", "--strip-unneeded", path], timeout=60)
    return list(_files(root, f"/usr/src/linux-headers-{release}"))


@dataclass(frozen=True, slots=True)
class Selftests:
    """The files of the tests' package, and what it depends on besides the kernel."""

    entries: list[DebEntry]
    depends: list[str]


def selftest_entries(kbuild: Kbuild, tests: Sequence[Collection], work: Path) -> Selftests:
    """Return the kernel's own tests, those that our patches add, and its sample of a live patch.

    The sample is built as an external module is: it shows that live patching works.
    """
    recipe, tree = kbuild.recipe, kbuild.tree
    config = kbuild.config()
    root = work / "selftests"
    root.mkdir()
    install_selftests(kbuild, tests, config, root)
    if config.get("LIVEPATCH") == "y" and kbuild.has_modules():
        kbuild.make("M=samples/livepatch", "CONFIG_SAMPLE_LIVEPATCH=m", "modules")
        sample = tree / "samples/livepatch/livepatch-sample.ko"
        run(["strip", "--strip-debug", sample], timeout=60)
        kbuild.sign(sample)
        (root / "livepatch").mkdir(exist_ok=True)
        shutil.copy(sample, root / "livepatch" / sample.name)
    for patch in recipe.patches:
        for word in patch.test.replace(",", " ").split():
            if word.startswith(_SELFTESTS) and (tree / word).is_file():
                copy = root / word.removeprefix(_SELFTESTS)
                copy.parent.mkdir(parents=True, exist_ok=True)
                shutil.copy(tree / word, copy)
                copy.chmod(0o755)
    return Selftests(list(_files(root, _INSTALLED)), library_packages(root))


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
