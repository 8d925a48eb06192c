"""A file system made again on a machine, of the old tree and a delta, is the one that was built."""

from __future__ import annotations

from pathlib import Path
from uuid import UUID

import pytest

from tegu.host.upgrade.delta import apply
from tegu.image.filesystems import Request, make_file_system
from tegu.image.formats import content_sha256
from tegu.image.tools import LockedTools
from tegu.release.delta import make_delta

from .conftest import TIMESTAMP, Bench, unpack

pytest.importorskip("bsdiff4", reason="bsdiff4 is not installed: pip install 'tegu[release]'")

pytestmark = pytest.mark.slow


def test_the_rebuilt_image_is_the_built_one_bit_for_bit(bench: Bench) -> None:
    """With a kernel's modules moved to another version, as in a real update."""

    def work(tools: LockedTools, place: Path) -> tuple[str, str, int]:
        old, new = unpack(bench.tree, place / "old"), unpack(bench.tree, place / "new")
        (modules,) = (new / "usr/lib/modules").iterdir()
        modules.rename(modules.with_name(f"{modules.name}.1"))
        program = new / "bin/busybox"
        data = bytearray(program.read_bytes())
        data[4000:4100] = bytes(100)
        program.write_bytes(data)
        program.chmod(0o755)
        delta = place / "delta"
        size = make_delta(old, new, delta).description.size
        apply(old, delta, place / "made")
        digests = []
        for name in ("new", "made"):
            disk = place / f"{name}.raw"
            with disk.open("wb") as f:
                f.truncate(512 << 20)
            (place / f"scratch-{name}").mkdir()
            request = Request(
                root=place / name,
                disk=disk,
                offset=0,
                size=512 << 20,
                label="root",
                uuid=UUID(int=7),
                seed=lambda _: UUID(int=8),
                timestamp=TIMESTAMP,
                scratch=place / f"scratch-{name}",
            )
            make_file_system("erofs", request, tools)
            digests.append(content_sha256(disk))
        return digests[0], digests[1], size

    built, rebuilt, size = bench.isolated(work)
    assert rebuilt == built
    assert size < 100_000
