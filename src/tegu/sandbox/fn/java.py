"""Java as functions: an archive of loaded classes (AppCDS), made when a version is deployed.

The program runs once, in a box like those of its invocations, with `-XX:ArchiveClassesAtExit`
(JEP 350, Java 13); what it writes becomes part of the version. Invocations map it instead of
loading, verifying and linking the classes again. A short run is also better off with the first
compiler only and the collector that starts no threads.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from tegu.errors import SandboxError, UnsupportedError, UsageError
from tegu.sandbox.fn.spec import FunctionSpec

__all__ = ["ARCHIVE", "FLAGS", "checked", "command_with", "training"]

ARCHIVE = ".tegu-classes.jsa"
FLAGS = ("-XX:TieredStopAtLevel=1", "-XX:+UseSerialGC")
_MOST = 512 * 2**20
_TIMEOUT = 600.0
_TRAIN = (
    'java=$1; shift; "$java" -XX:ArchiveClassesAtExit=/tmp/classes.jsa "$@" >/tmp/out 2>/tmp/err'
    " || { code=$?; cat /tmp/err /tmp/out | tail -c 2000 >&2; exit $code; }; cat /tmp/classes.jsa"
)


def command_with(spec: FunctionSpec, archive: str | None) -> tuple[str, ...]:
    """Return the command of an invocation, with the flags for a quick start before the others."""
    _check(spec)
    java, *rest = spec.command
    share = () if archive is None else (f"-XX:SharedArchiveFile={archive}", "-Xlog:cds=off")
    return (java, *share, *FLAGS, *rest)


def _check(spec: FunctionSpec) -> None:
    if Path(spec.command[0]).name != "java":
        raise UsageError(
            f"command: {spec.command[0]!a} is not java", hint="for other programs: --runtime exec"
        )


def training(spec: FunctionSpec) -> FunctionSpec:
    """Return the function whose result is the archive; to be called with an event as it comes."""
    _check(spec)
    command = ("sh", "-c", _TRAIN, "sh", spec.command[0], *FLAGS, *spec.command[1:])
    return replace(
        spec,
        name=f"{spec.name[:50]}-training",
        command=command,
        timeout=_TIMEOUT,
        disk=max(spec.disk, _MOST),
        max_result=_MOST,
    )


def checked(archive: bytes, outcome: str, words: str) -> bytes:
    """Return an archive, or raise what says why there is none."""
    if outcome == "ok" and archive:
        return archive
    if "Unrecognized VM option" in words:
        raise UnsupportedError("this Java makes no archive of classes: 13 or later does")
    raise SandboxError(
        f"the run that collects classes failed: {words or outcome}",
        hint="--train EVENT gives it another event; --no-archive leaves it out",
    )
