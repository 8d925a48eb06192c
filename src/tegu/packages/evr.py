"""What versions of deb and of rpm have in common: `epoch:version-revision`, compared in that order.

An epoch that is missing is 0 (deb-version(7), rpm-version(7)).
"""

from __future__ import annotations

from collections.abc import Callable

__all__ = ["comparison"]

Compare = Callable[[str, str], int]


def comparison(split: Callable[[str], tuple[str, str]], compare_parts: Compare) -> Compare:
    """Return how whole versions compare: negative when the first is older, positive when newer.

    `split` takes what follows the epoch apart; `compare_parts` compares versions, and revisions.
    """

    def compare(one: str, other: str) -> int:
        (epoch, rest), (other_epoch, other_rest) = _epoch(one), _epoch(other)
        if epoch != other_epoch:
            return -1 if epoch < other_epoch else 1
        (version, revision), (other_version, other_revision) = split(rest), split(other_rest)
        return compare_parts(version, other_version) or compare_parts(revision, other_revision)

    return compare


def _epoch(version: str) -> tuple[int, str]:
    epoch, colon, rest = version.partition(":")
    if not colon or not epoch.isascii() or not epoch.isdigit():
        return 0, version
    return int(epoch), rest
