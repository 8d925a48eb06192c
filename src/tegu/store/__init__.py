"""Content-addressed blobs and cached trees on disk, safe with concurrent users.

Blobs are files named by their SHA-256. Trees and small files are results named by the key of
everything that went into them. Nothing under a final name is ever half-written, and everything
here is safe to lose.
"""

from tegu.store.store import Incoming, Store

__all__ = ["Incoming", "Store"]
