"""A full file system, and what fills it: files that have no name any more, or a directory."""

from __future__ import annotations

import os
from collections.abc import Iterator

from tegu.heal.filesystems import DeletedFile, FileSystem, deleted_files
from tegu.heal.finding import Evidence, Finding, Subject
from tegu.heal.look import Look
from tegu.heal.rule import Rule

_LEAST = 0.02
_MUCH = 0.1
"""Of the file system: what a deleted file must hold to be the cause."""


def check(look: Look) -> Iterator[Finding]:
    for fs in look.filesystems:
        if fs.free / fs.size >= _LEAST or fs.size < 1 << 20:
            continue
        free = Evidence("free", round(100 * fs.free / fs.size, 2), "%", 100 * _LEAST)
        victims = (Subject("filesystem", fs.mountpoint),)
        held = _deleted(look, fs)
        if held:
            yield from _by_deleted(look, fs, held, free, victims)
            continue
        yield Finding(
            rule="disk_full",
            title=f"{fs.mountpoint} is full",
            severity="critical",
            sure=0.5,
            culprit=Subject("filesystem", fs.mountpoint),
            victims=victims,
            evidence=(free,),
            advice=f"du -x {fs.mountpoint} | sort -n shows what fills it",
        )


def _by_deleted(
    look: Look,
    fs: FileSystem,
    held: list[DeletedFile],
    free: Evidence,
    victims: tuple[Subject, ...],
) -> Iterator[Finding]:
    largest = max(held, key=lambda f: f.size)
    total = sum(f.size for f in held)
    culprit = look.process(largest.pid)
    yield Finding(
        rule="disk_full",
        title=f"{fs.mountpoint} is full; {culprit} holds {total >> 20} MiB of deleted files open",
        severity="critical",
        sure=0.95,
        culprit=culprit,
        victims=victims,
        evidence=(
            free,
            Evidence("deleted but open", round(total / 2**20, 1), "MiB"),
            Evidence("the largest", largest.name),
        ),
        remedy="truncate-deleted",
        target={
            "pid": largest.pid,
            "fd": largest.fd,
            "name": largest.name,
            "append_only": largest.append_only,
        },
        advice=f"restart {culprit.unit or culprit.name}, which lets go of the file",
    )


def _deleted(look: Look, fs: FileSystem) -> list[DeletedFile]:
    try:
        device = os.stat(fs.mountpoint).st_dev  # noqa: PTH116
    except OSError:
        return []
    found = list(deleted_files(look.proc, look.after.processes, device))
    return found if sum(f.size for f in found) >= _MUCH * fs.size else []


RULE = Rule(
    "disk_full",
    "Is a file system full, and of what?",
    ("statvfs(3)", "/proc/PID/fd"),
    "unlink(2): a file lives until its last descriptor is closed",
    check,
)
