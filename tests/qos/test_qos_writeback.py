"""Where writeback is attributed: the rule, and the proof in a guest."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import pytest
from tests.qos.fake import Fake

from tegu.qos.writeback import find_gaps

MOUNTS = """\
22 1 254:1 / / rw,relatime - ext4 /dev/vda1 rw
23 22 254:2 / /boot rw,relatime - vfat /dev/vda2 rw
24 22 254:3 / /media ro,relatime - vfat /dev/vdb ro
25 22 7:0 / /snap rw - squashfs /dev/loop0 ro
26 22 0:22 / /run rw - tmpfs tmpfs rw
27 22 254:4 / /data rw - xfs /dev/vdc rw
"""


def test_gaps(fake: Fake, tmp_path: Path) -> None:
    fake.group("/batch")
    fake.group("/bare")
    (fake.place.hierarchy.root / "bare/cgroup.controllers").write_text("cpu memory\n")
    mounts = tmp_path / "mountinfo"
    mounts.write_text(MOUNTS)
    gaps = find_gaps(fake.place.hierarchy, ["/batch", "/bare"], mounts)
    assert [(g.where, g.why) for g in gaps] == [
        ("/bare", "it has no io controller"),
        ("/boot", "vfat does not say whose pages it writes back"),
    ]
    (fake.place.hierarchy.root / "cgroup.controllers").write_text("cpu io\n")
    (gap,) = find_gaps(fake.place.hierarchy, ["/batch"], mounts)
    assert gap.why == "the hierarchy has no memory controller"


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_writeback_is_charged_and_held(tmp_path: Path) -> None:
    """Fails when writeback is not attributed: batch would have next to nothing in io.stat."""
    for program in ("qemu-system-x86_64", "mmdebstrap", "debugfs", "gcc", "apt-get"):
        if shutil.which(program, path=f"{os.environ['PATH']}:/usr/sbin:/sbin") is None:
            pytest.skip(f"there is no {program} here; `./dev bench` installs it")
    from bench.qos.writeback import measure

    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "tegu-bench"
    cache.mkdir(parents=True, exist_ok=True)
    rows = measure(cache, tmp_path)
    held = {r["file system"]: r for r in rows if r["io.max"]}
    assert set(held) == {"ext4", "xfs", "btrfs"}
    for row in held.values():
        assert row["share"] > 0.8, row  # the rest is the journal, which is everyone's
        assert row["rate"] < 1.5, row
    # Without a limit, as where writeback is nobody's, it is several times that.
    (free,) = [r for r in rows if not r["io.max"]]
    assert free["rate"] > 3, free
