"""Deltas made: from the trees of two releases, the file that turns one into the other.

The machine's side, and the format, are in `tegu.host.delta`.
"""

from tegu.release.delta.make import Made, make_delta
from tegu.release.delta.since import delta_since
from tegu.release.delta.trees import open_tree

__all__ = ["Made", "delta_since", "make_delta", "open_tree"]
