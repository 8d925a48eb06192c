"""Deployed functions in the store: code by its content, and for each name which version answers.

A version is `functions/KEY/`, with `function.json` and `code/`; KEY is the SHA-256 of both. A name
is `function-names/NAME.json`, replaced whole.
"""

from __future__ import annotations

import json
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tegu.errors import SandboxError, TeguError, UsageError
from tegu.sandbox.fn.spec import FunctionSpec, check_name

__all__ = ["NAMES", "VERSIONS", "Deployed", "Manifest", "read_manifest", "read_name", "stamp"]

VERSIONS = "functions"
NAMES = "function-names"
_KEY = frozenset("0123456789abcdef")


@dataclass(frozen=True)
class Manifest:
    """What is deployed as a version: `imports` are the modules that its code names."""

    spec: FunctionSpec
    imports: list[str]
    code: Path
    extra: dict[str, Any]


@dataclass(frozen=True)
class Deployed:
    """A name: the version that answers, and all that were deployed, as (version, time), the latest
    last."""

    name: str
    current: str
    versions: list[tuple[str, float]]

    def to_json(self) -> dict[str, Any]:
        """Return plain data."""
        return {"name": self.name, "current": self.current, "versions": self.versions}

    def with_version(self, version: str) -> Deployed:
        """Return it with another version that answers."""
        kept = [v for v in self.versions if v[0] != version]
        return Deployed(self.name, version, [*kept, (version, time.time())])


def check_key(key: object) -> str:
    """Return a version's key, or raise UsageError."""
    if not isinstance(key, str) or len(key) != 64 or not _KEY.issuperset(key):
        raise UsageError(f"{key!a} is not a version")
    return key


def read_manifest(root: Path, version: str) -> Manifest:
    """Return a version of the store at `root`; raises SandboxError when it is not there, whole."""
    directory = root / VERSIONS / check_key(version)
    path = directory / "function.json"
    try:
        data = json.loads(path.read_text())
        spec = FunctionSpec.from_json(data["spec"])
        imports = [str(name) for name in data["imports"]]
        return Manifest(spec, imports, directory / "code", dict(data.get("extra", {})))
    except FileNotFoundError as e:
        raise SandboxError(
            f"version {version[:12]} is not in the store at {root}", hint="deploy it again"
        ) from e
    except (OSError, ValueError, KeyError, TypeError, TeguError) as e:
        raise SandboxError(f"{path} is damaged: {e}", hint="deploy the function again") from e


def name_path(root: Path, name: str) -> Path:
    """Return where it stands which version of a function answers."""
    return root / NAMES / f"{check_name(name)}.json"


def read_name(root: Path, name: str) -> Deployed:
    """Return a deployed function; raises SandboxError when there is none."""
    path = name_path(root, name)
    try:
        data = json.loads(path.read_text())
        versions = [(check_key(v), float(when)) for v, when in data["versions"]]
        return Deployed(name, check_key(data["current"]), versions)
    except FileNotFoundError as e:
        raise SandboxError(
            f"there is no function {name}", hint="`tegu fn ls` lists those that are deployed"
        ) from e
    except (OSError, ValueError, KeyError, TypeError, TeguError) as e:
        raise SandboxError(f"{path} is damaged: {e}", hint="deploy the function again") from e


def stamp(root: Path, name: str) -> tuple[int, int] | None:
    """Return what changes when another version answers; None when the name is gone."""
    try:
        about = name_path(root, name).stat()
    except OSError:
        return None
    return about.st_ino, about.st_mtime_ns
