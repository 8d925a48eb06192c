"""What collecting garbage leaves alone."""

from __future__ import annotations

import os
from pathlib import Path

from tegu.image.gc import collect
from tegu.store import Store


def test_the_compilers_cache_bounds_itself(tmp_path: Path) -> None:
    """Its directories do not change when what is in them is used: their age says nothing."""
    store = Store(tmp_path / "store")
    for kind in ("ccache-1", "kernels-1"):
        (store.root / kind / "0").mkdir(parents=True)
        os.utime(store.root / kind / "0", (0, 0))
    collect(store)
    assert (store.root / "ccache-1/0").exists()
    assert not (store.root / "kernels-1/0").exists()
    collect(store, everything=True)
    assert not (store.root / "ccache-1/0").exists()
