"""The table of probes by kernel."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tegu.cli import main
from tegu.errors import ProbeError
from tegu.probe.matrix import read_listing


def listing(kernel: str, **reasons: str | None) -> str:
    probes = [{"name": n, "reason": r} for n, r in reasons.items()]
    return json.dumps({"kernel": kernel, "probes": probes})


def test_side_by_side(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "a").write_text(listing("6.1", runq="no BTF"))
    (tmp_path / "b").write_text(listing("6.12", runq=None, drops=None))
    assert main(["probe", "matrix", str(tmp_path / "a"), str(tmp_path / "b")]) == 0
    assert capsys.readouterr().out.splitlines() == [
        "| probe | 6.1 | 6.12 |",
        "|---|---|---|",
        "| `drops` | not asked | works |",
        "| `runq` | unsupported: no BTF | works |",
    ]


@given(
    st.one_of(st.binary(max_size=60), st.text(max_size=60).map(lambda t: json.dumps(t).encode()))
)
def test_anything_else_is_named(tmp_path_factory: pytest.TempPathFactory, data: bytes) -> None:
    path = tmp_path_factory.mktemp("matrix") / "file"
    path.write_bytes(data)
    with pytest.raises(ProbeError, match="file is not what"):
        read_listing(path)
