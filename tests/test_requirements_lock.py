"""What pyproject.toml asks for must be in the lock that ./dev installs from."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).parent.parent


def test_every_requirement_is_locked_with_hashes() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    wanted = [
        *project["build-system"]["requires"],
        *project["project"]["dependencies"],
        *project["project"]["optional-dependencies"]["works"],
        *project["project"]["optional-dependencies"]["repo"],
        *project["project"]["optional-dependencies"]["web"],
        *project["project"]["optional-dependencies"]["release"],
        *project["project"]["optional-dependencies"]["export"],
        *project["project"]["optional-dependencies"]["otlp"],
        *project["project"]["optional-dependencies"]["kubernetes"],
        *project["dependency-groups"]["dev"],
    ]
    lock = (ROOT / "requirements.lock").read_text()
    entries = re.findall(r"^(\S+)==(\S+)(.*\n(?:[ \t].*\n)*)", lock, re.MULTILINE)
    assert entries
    assert all("--hash=sha256:" in rest for _, _, rest in entries)
    locked = {canonicalize_name(name): version for name, version, _ in entries}
    stale = [
        text
        for text in wanted
        if (found := locked.get(canonicalize_name(Requirement(text).name))) is None
        or found not in Requirement(text).specifier
    ]
    assert not stale, f"renew requirements.lock (its first lines say how): {stale}"
