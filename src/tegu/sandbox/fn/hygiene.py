"""What a fork of a zygote must not have in common with the next one: randomness and names.

Kernel sources (os.urandom, secrets) are each process's own already. `random` is reseeded by
Python after a fork, OpenSSL by itself, as the pid differs; they are done again here, as neither is
ours. What stays shared: the seed of str hashes, and the host's boot id.
"""

from __future__ import annotations

import os
import sys

__all__ = ["renew"]


def renew() -> None:
    """Give this process its own random state, in every module that is loaded and has some."""
    loaded = sys.modules
    if "random" in loaded:
        loaded["random"].seed()
    if "_ssl" in loaded:
        loaded["_ssl"].RAND_add(os.urandom(32), 32.0)
    if "uuid" in loaded:
        for name in ("_node", "_last_timestamp"):
            setattr(loaded["uuid"], name, None)
    if "tempfile" in loaded:
        for name in ("_name_sequence", "tempdir"):
            setattr(loaded["tempfile"], name, None)
    if "multiprocessing.process" in loaded:
        loaded["multiprocessing.process"].current_process().authkey = os.urandom(32)
    if "numpy.random" in loaded:
        loaded["numpy.random"].seed(int.from_bytes(os.urandom(4), "little"))
