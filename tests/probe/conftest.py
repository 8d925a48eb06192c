"""Control groups for the probes' tests."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from tests.probe.load import Groups


@pytest.fixture
def groups(request: pytest.FixtureRequest) -> Iterator[Groups]:
    try:
        made = Groups(getattr(request, "param", "cpu"))
    except (OSError, AssertionError) as e:
        pytest.skip(f"no control groups may be made here: {e}")
    try:
        yield made
    finally:
        made.close()
