"""Where this room keeps what it caches in the store: kinds of small files."""

__all__ = ["INDEXES"]

INDEXES = "indexes"
"""Signed indexes, Packages files and what the solver makes of them."""
