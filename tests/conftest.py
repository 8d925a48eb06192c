"""What all tests share: one store for what is downloaded and built, and the distribution's image.

The store survives between runs where it can (TEGU_TEST_STORE, else the user's own), so that
nothing is fetched or built twice; losing it costs time only.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import hypothesis
import pytest

from tegu.store import Store

# A loaded machine is not a failure: no example of Hypothesis is timed.
hypothesis.settings.register_profile("tegu", deadline=None)
hypothesis.settings.load_profile("tegu")

ROOT = Path(__file__).parent.parent


@pytest.fixture(scope="session")
def shared_store() -> Store:
    """The store of this test run."""
    named = os.environ.get("TEGU_TEST_STORE")
    return Store(Path(named).absolute()) if named else Store.default()


@pytest.fixture(scope="session")
def tegu_image(shared_store: Store) -> Iterator[Path]:
    """The bootable image (qcow2) of Tegu Linux's server profile, built once for all workers."""
    if named := os.environ.get("TEGU_TEST_IMAGE"):
        yield Path(named)
        return
    from tegu.image import build_definition

    with shared_store.locked("tests-image"):
        built = build_definition(ROOT / "distro" / "tegu.toml", store=shared_store)
    yield built.path
