"""A file system without a free inode: no file can be made although there is room."""

from __future__ import annotations

from collections.abc import Iterator

from tegu.heal.filesystems import busiest_directory
from tegu.heal.finding import Evidence, Finding, Subject
from tegu.heal.look import Look
from tegu.heal.rule import Rule

_LEAST = 0.01


def check(look: Look) -> Iterator[Finding]:
    for fs in look.filesystems:
        if not fs.inodes or fs.inodes_free / fs.inodes >= _LEAST:
            continue
        directory, count, whole = busiest_directory(fs.mountpoint)
        yield Finding(
            rule="inodes_full",
            title=f"{fs.mountpoint} has {fs.inodes_free} of {fs.inodes} inodes free",
            severity="critical",
            sure=0.9 if whole and count > fs.inodes / 2 else 0.6,
            culprit=Subject("directory", directory),
            victims=(Subject("filesystem", fs.mountpoint),),
            evidence=(
                Evidence("inodes free", round(100 * fs.inodes_free / fs.inodes, 2), "%", 1),
                Evidence("entries of that directory", count),
            ),
            remedy="clean-directory",
            target={"directory": directory, "mountpoint": fs.mountpoint},
            advice=f"remove what is not needed below {directory}, and see who makes it",
        )


RULE = Rule(
    "inodes_full",
    "Is a file system out of inodes?",
    ("statvfs(3)",),
    "df(1), --inodes",
    check,
)
