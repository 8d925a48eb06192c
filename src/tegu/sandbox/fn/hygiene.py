"""What a fork of a zygote must not have in common with the next one: randomness and names.

Kernel sources (os.urandom, secrets) are each process's own already. `random` is reseeded by its own
fork handler, and so is what registered one (os.register_at_fork). OpenSSL sees the other pid; it
gets fresh entropy here all the same. What stays shared: the seed of str hashes, and the host's
boot id.
"""

from __future__ import annotations

import os
import sys

__all__ = ["renew"]


def renew() -> None:
    """Give this process its own random state, in every module that is loaded and has some."""
    loaded = sys.modules
    if "_ssl" in loaded:
        loaded["_ssl"].RAND_add(os.urandom(32), 32.0)
    if "uuid" in loaded:
        # libuuid keeps a node and a sequence of its own; Python's way has them from here. The bit
        # says that the node is nobody's address (RFC 9562, 6.10).
        node = int.from_bytes(os.urandom(6), "big") | 1 << 40
        for name, value in (
            ("_node", node),
            ("_last_timestamp", None),
            ("_generate_time_safe", None),
        ):
            setattr(loaded["uuid"], name, value)
    if "tempfile" in loaded:
        for name in ("_name_sequence", "tempdir"):
            setattr(loaded["tempfile"], name, None)
    if "multiprocessing.process" in loaded:
        loaded["multiprocessing.process"].current_process().authkey = os.urandom(32)
    if "numpy.random" in loaded:
        loaded["numpy.random"].seed(int.from_bytes(os.urandom(4), "little"))
