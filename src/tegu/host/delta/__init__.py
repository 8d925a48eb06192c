"""Updates that fetch little: a new tree is made of the old one and a small file, a delta.

A delta says what the new tree is (`table`: every path with all its metadata, every content by its
SHA-256) and holds what the old tree has not: each changed file as the difference to the file it
came from, all of them compressed together (`container`, `patch`). Files that are compressed
themselves (kernel modules) are compared as what is in them and compressed again (`recode`).
`apply` trusts nothing in a delta but what its hashes prove.
"""

from tegu.host.delta.apply import apply
from tegu.host.delta.container import Description, describe, open_delta
from tegu.host.delta.table import TreeDigest, digest_of

__all__ = ["Description", "TreeDigest", "apply", "describe", "digest_of", "open_delta"]
