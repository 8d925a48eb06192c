"""Updates that fetch little: a new tree is made of the old one and a small file, a delta.

A delta says what the new tree is (`table`: every path with all its metadata, every content by its
SHA-256) and holds what the old tree has not: each changed file as the difference to the file it
came from, all of them compressed together (`container`, `patch`). Files that are compressed
themselves (kernel modules) are compared as what is in them and compressed again (`recode`).
`apply` trusts nothing in a delta but what its hashes prove.
"""

from tegu.host.delta.apply import apply
from tegu.host.delta.container import (
    FORMAT,
    MAGIC,
    STREAMS,
    Description,
    PlanItem,
    describe,
    open_delta,
)
from tegu.host.delta.patch import coded, coded_move
from tegu.host.delta.recode import Recoding, decode, settings_of
from tegu.host.delta.table import Record, Table, TreeDigest, digest_of, parse_table, read_table

__all__ = [
    "FORMAT",
    "MAGIC",
    "STREAMS",
    "Description",
    "PlanItem",
    "Recoding",
    "Record",
    "Table",
    "TreeDigest",
    "apply",
    "coded",
    "coded_move",
    "decode",
    "describe",
    "digest_of",
    "open_delta",
    "parse_table",
    "read_table",
    "settings_of",
]
