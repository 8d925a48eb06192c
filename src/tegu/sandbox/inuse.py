"""Trees in use: a shared lock on each (flock(2)), so that who removes a template leaves them."""

from __future__ import annotations

import fcntl
import os
from pathlib import Path

from tegu.sandbox.state import state_directory

__all__ = ["InUse", "is_free"]


class InUse:
    """Which boxes use which trees of images; other templates are their owners' to keep."""

    def __init__(self) -> None:
        self._trees = state_directory() / "images" / "trees"
        self._held: dict[str, tuple[int, set[str]]] = {}

    def hold(self, template: str, box: str) -> None:
        """Keep a template's tree for a box. Raises OSError when it is gone."""
        root = Path(template)
        if self._trees not in root.parents:
            return
        if template not in self._held:
            fd = os.open(root.parent, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
            try:
                fcntl.flock(fd, fcntl.LOCK_SH | fcntl.LOCK_NB)
            except OSError:
                os.close(fd)
                raise
            self._held[template] = (fd, set())
        self._held[template][1].add(box)

    def release(self, template: str, box: str) -> None:
        """Let go of it for a box that has ended."""
        held = self._held.get(template)
        if held is None:
            return
        held[1].discard(box)
        if not held[1]:
            os.close(self._held.pop(template)[0])


def is_free(tree: Path) -> bool:
    """Whether no box uses a tree, which must be about to be removed: no new one finds it then."""
    try:
        fd = os.open(tree, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    except FileNotFoundError:
        return True
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    finally:
        os.close(fd)
    return True
