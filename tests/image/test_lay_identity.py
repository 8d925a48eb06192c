"""Who keeps os-release: the image itself, or a package which moves with releases."""

from __future__ import annotations

from pathlib import Path

import pytest

from tegu.definition import os_release
from tegu.definition.models import System
from tegu.image.lay import _diverted


@pytest.mark.parametrize(
    ("lines", "ours"),
    [
        (None, False),
        ("", False),
        ("/usr/lib/os-release\n/usr/lib/os-release.base\n:\n", False),
        ("/usr/lib/os-release\n/usr/lib/os-release.base\ntegu-release\n", True),
        ("/bin/sh\n/bin/sh.distrib\ndash\n/usr/lib/os-release\n/x\ntegu-release\n", True),
        ("/bin/sh\n/usr/lib/os-release\ndash\n", False),
    ],
)
def test_a_package_that_diverts_is_seen(tmp_path: Path, lines: str | None, ours: bool) -> None:
    if lines is not None:
        (tmp_path / "var/lib/dpkg").mkdir(parents=True)
        (tmp_path / "var/lib/dpkg/diversions").write_text(lines)
    assert _diverted(tmp_path) is ours


def test_what_os_release_says() -> None:
    system = System(name="acme", version="26.11", pretty_name="Acme 26.11")
    text = os_release(system, codename="trixie", day=20000)
    assert 'ID="acme"\nID_LIKE="debian"\nVERSION_ID="26.11"\n' in text
    assert 'VERSION_CODENAME="trixie"\n' in text and 'BUILD_ID="26.11-20000"\n' in text
    assert "VERSION_CODENAME" not in os_release(system, codename=None, day=1)
