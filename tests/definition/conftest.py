"""Definitions on disk for the tests of this room."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

import tegu

Write = Callable[..., Path]
MINIMAL = '[system]\nname = "acme"\nversion = "1"\n'


@pytest.fixture
def write(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Write:
    """Return a function that writes files and returns the path of the first.

    `write("text")` is a tegu.toml; `write({"tegu.toml": ..., "base.toml": ...})` several files.
    The working directory is where they are, so that messages name them without directories.
    """
    monkeypatch.chdir(tmp_path)

    def write(files: str | dict[str, str | bytes]) -> Path:
        named = {"tegu.toml": files} if isinstance(files, str) else files
        for name, content in named.items():
            path = tmp_path / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(content.encode() if isinstance(content, str) else content)
        return Path(next(iter(named)))

    return write


@pytest.fixture
def checkout(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Make it look as if tegu ran from a source tree with a small distribution of its own."""
    root = tmp_path / "checkout"
    distro = root / "distro"
    (distro / "files" / "etc").mkdir(parents=True)
    (distro / "files" / "etc" / "motd").write_text("Tegu\n")
    (distro / "tegu.toml").write_text(
        'include = ["common.toml"]\noverlay = ["files"]\n'
        '[system]\nname = "tegu"\nversion = "26.11"\n'
        '[packages]\ninstall = ["systemd", "chrony"]\n'
        '[profile]\ndefault = "server"\n'
        "[profile.minimal.packages]\nrecommends = false\n"
        '[profile.server.packages]\ninstall = ["openssh-server"]\n'
        '[profile.container-host.packages]\ninstall = ["crun", "-chrony"]\n'
        "[architecture.arm64.kernel]\ncmdline = ['console=ttyAMA0']\n"
    )
    (distro / "common.toml").write_text('[kernel]\ncmdline = ["quiet"]\n')
    (root / "pyproject.toml").write_text("[project]\n")
    package = root / "src" / "tegu"
    package.mkdir(parents=True)
    monkeypatch.setattr(tegu, "__file__", str(package / "__init__.py"))
    return root
