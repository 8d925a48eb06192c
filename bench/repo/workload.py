"""What is published: real packages of this machine, and small ones made here and kept."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

from bench.common import BenchError

from tegu.errors import TeguError
from tegu.packages.deb import open_deb
from tegu.packages.deb_write import DebEntry, write_deb
from tegu.process import run

__all__ = ["real_packages", "small_debs", "small_rpms"]

_KEPT = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "tegu-bench" / "repo"
_LARGEST = 20 << 20
_KINDS = ("all", "amd64")
_EPOCH = 1767225600  # seconds: 2026-01-01


def real_packages(count: int) -> list[Path]:
    """Return `count` real .debs: of the store, and of apt's cache; raises BenchError."""
    from tegu.store import Store

    store = Store.default()
    found: dict[tuple[str, str], Path] = {}
    kept = _KEPT / "real"
    kept.mkdir(parents=True, exist_ok=True)
    places = [
        *sorted((store.root / "blobs").glob("??/*")),
        *sorted(Path("/var/cache/apt/archives").glob("*.deb")),
    ]
    for path in places:
        if len(found) == count:
            break
        if not _is_deb(path) or path.stat().st_size > _LARGEST:
            continue
        try:
            with open_deb(path) as deb:
                fields = deb.fields
        except TeguError:
            continue
        # reprepro refuses packages without these; tests leave some in the store.
        if not {"Section", "Priority"} <= fields.keys() or fields["Architecture"] not in _KINDS:
            continue
        # One version of each: reprepro keeps no more.
        name = (fields["Package"], fields["Architecture"])
        if name in found:
            continue
        shown = fields["Version"].partition(":")[2] or fields["Version"]
        link = kept / f"{name[0]}_{shown}_{name[1]}.deb"
        if not link.exists():
            shutil.copyfile(path, link)
        found[name] = link
    if len(found) < count:
        raise BenchError(
            f"this machine has {len(found)} real packages, the bench needs {count}",
            hint="build an image or two: the store then has them",
        )
    return list(found.values())


def _is_deb(path: Path) -> bool:
    try:
        with path.open("rb") as f:
            return f.read(8) == b"!<arch>\n"
    except OSError:
        return False


def small_debs(count: int) -> list[Path]:
    """Return `count` small .debs."""
    folder = _KEPT / f"deb-{count}"
    if not folder.is_dir():
        with _made(folder) as new:
            for number, name in enumerate(_names(count)):
                write_deb(
                    new / f"{name}_1.{number}_all.deb",
                    {
                        "Package": name,
                        "Version": f"1.{number}",
                        "Architecture": "all",
                        "Maintainer": "Bench <bench@tegu.invalid>",
                        "Section": "misc",
                        "Priority": "optional",
                        "Depends": "libc6 (>= 2.36)",
                        "Description": f"small package {number}\n It says {number}.",
                    },
                    [DebEntry(f"/usr/share/{name}/data", f"{number}\n".encode())],
                    timestamp=_EPOCH,
                )
    return sorted(folder.glob("*.deb"))


def small_rpms(count: int) -> list[Path]:
    """Return `count` small .rpms: the packages of one build with rpmbuild."""
    folder = _KEPT / f"rpm-{count}"
    if not folder.is_dir():
        with _made(folder) as new:
            spec = new / "bench.spec"
            spec.write_text(_spec(list(_names(count))))
            defines = [f"_topdir {new}/top", f"_rpmdir {new}/rpms", "_binary_payload w1.gzdio"]
            options = [word for d in defines for word in ("--define", d)]
            run(["rpmbuild", "-bb", *options, spec], timeout=3600)
            for path in new.glob("rpms/*/*.rpm"):
                path.rename(new / path.name)
            shutil.rmtree(new / "top")
    return sorted(folder.glob("*.rpm"))


def _spec(names: list[str]) -> str:
    parts = [
        "Name: tegu-bench\nVersion: 1\nRelease: 1\nSummary: Small packages\nLicense: Apache-2.0\n"
        "BuildArch: noarch\n%description\nSmall packages.\n"
    ]
    parts += [
        f"%package -n {name}\nSummary: Small\n%description -n {name}\nIt is {name}.\n"
        for name in names
    ]
    listed = " ".join(names)
    parts.append(
        "%install\nmkdir -p %{buildroot}/usr/share/tegu-bench\n"
        f"for n in {listed}; do echo $n > %{{buildroot}}/usr/share/tegu-bench/$n; done\n"
    )
    parts += [f"%files -n {name}\n/usr/share/tegu-bench/{name}\n" for name in names]
    return "".join(parts)


def _names(count: int) -> Iterator[str]:
    return (f"bench-{number * 7919 % count:05d}" for number in range(count))


class _made:  # noqa: N801 - reads as what it does
    """A directory that appears when the block ends without an exception."""

    def __init__(self, final: Path) -> None:
        self.final = final
        final.parent.mkdir(parents=True, exist_ok=True)

    def __enter__(self) -> Path:
        self.new = Path(tempfile.mkdtemp(dir=self.final.parent))
        return self.new

    def __exit__(self, kind: object, *_: object) -> None:
        if kind is None:
            self.new.rename(self.final)
        else:
            shutil.rmtree(self.new)
