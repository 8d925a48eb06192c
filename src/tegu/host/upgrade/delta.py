"""What an upgrade asks of deltas: a new tree from the one that runs (see `tegu.host.delta`)."""

from tegu.host.delta import TreeDigest, apply

__all__ = ["TreeDigest", "apply"]
