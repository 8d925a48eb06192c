"""The manifest of a release: all that it consists of, each file with size and SHA-256."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from tegu.errors import ReleaseError
from tegu.files import write_atomic
from tegu.release.numbers import Number

__all__ = ["FORMAT", "File", "Manifest", "ReportNote", "Snapshot"]

FORMAT = "tegu-release-1"


@dataclass(frozen=True, slots=True)
class File:
    """A file of the release: `path` below its directory, `size` in bytes.

    `kind` is lock, image, image-manifest, delta, delta-description, sbom, notes, advisories or
    site; `profile` as it applies.
    """

    path: str
    kind: str
    size: int
    sha256: str
    profile: str = ""


@dataclass(frozen=True, slots=True)
class Snapshot:
    """The snapshot of the package repository: `inrelease_sha256` is of its signed index."""

    name: str
    channel: str
    packages: int
    inrelease_sha256: str


@dataclass(frozen=True, slots=True)
class ReportNote:
    """A test report: what plan it was, whether it passed, on what lock."""

    plan: str
    passed: bool
    steps: int
    failed: int
    subject: str


@dataclass(frozen=True, slots=True)
class Manifest:
    """A release. `date` is ISO 8601 (a day), `figures` by name, `cves` as `tegu cve --json` says.

    `previous` is the number of the release it was compared with.
    """

    number: str
    date: str
    previous: str | None
    files: tuple[File, ...]
    locks: dict[str, str]
    snapshot: Snapshot | None
    reports: tuple[ReportNote, ...]
    figures: dict[str, float]
    cves: dict[str, Any] | None
    known_issues: tuple[str, ...] = ()
    marks: tuple[str, ...] = field(default=())

    def write(self, path: Path) -> None:
        """Write it as JSON, sorted, whole or not at all."""
        body = {"format": FORMAT, **asdict(self)}
        write_atomic(path, json.dumps(body, indent=1, sort_keys=True) + "\n")

    @classmethod
    def read(cls, path: Path) -> Manifest:
        """Read a manifest; raises ReleaseError with file and reason."""
        try:
            raw: Any = json.loads(path.read_text())
            if raw.pop("format") != FORMAT:
                raise ValueError("it is of another format")
            Number.parse(raw["number"])
            files = tuple(File(**f) for f in raw.pop("files"))
            for file in files:
                parts = Path(file.path).parts
                if Path(file.path).is_absolute() or ".." in parts or not parts:
                    raise ValueError(f"the path {file.path!r} leads elsewhere")
            snapshot = raw.pop("snapshot")
            return cls(
                files=files,
                snapshot=None if snapshot is None else Snapshot(**snapshot),
                reports=tuple(ReportNote(**r) for r in raw.pop("reports")),
                known_issues=tuple(raw.pop("known_issues")),
                marks=tuple(raw.pop("marks")),
                **raw,
            )
        except FileNotFoundError as e:
            raise ReleaseError(f"{path.parent.name} was not prepared: there is no {path}") from e
        except OSError as e:
            raise ReleaseError(f"{path}: {e.strerror}") from e
        except (ValueError, KeyError, TypeError, AttributeError) as e:
            raise ReleaseError(f"{path} is no manifest of a release: {e}") from e
