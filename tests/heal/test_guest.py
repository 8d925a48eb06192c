"""A few faults of the fault lab (bench/faults), in a guest: found, repaired, verified."""

from __future__ import annotations

import pytest
from bench.faults import bench


@pytest.mark.slow
@pytest.mark.timeout(2400)
def test_some_faults_and_a_twin(monkeypatch: pytest.MonkeyPatch) -> None:
    chosen = "suspended-device,mount-leak,dead-dns,private-mounts"
    monkeypatch.setenv("TEGU_FAULTS", chosen)
    result = bench.run(quick=False)
    by_name = {row["what"]: row for row in result.rows}
    for name in chosen.split(",")[:3]:
        row = by_name[name]
        assert row["trouble"] == "", row
        assert (row["found"], row["culprit"], row["repaired"]) == ("yes", "right", "verified"), row
    assert by_name["twin: private-mounts"]["found"] == "none", by_name
