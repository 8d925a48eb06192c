"""Settings of a running machine: profiles with receipts, and one that is served on any kernel.

A `Profile` holds settings that have a receipt (what a proof measured) or a correctness reason.
`apply` notes every former value first and leaves alone what somebody else has set; `undo` restores
exactly; `prove` measures a setting ABAB and keeps it only when the gain stands out.

`tcp_tw_timeout`, how long closed connections stay in TIME-WAIT, is set by `put` where the kernel
has it; elsewhere a sweep ends the sockets that are old enough.
"""

from __future__ import annotations

from tegu.tune.apply import Applied, Found, Machine, apply, look, undo
from tegu.tune.profile import Profile, Setting, find_profile, load_profile, profile_names
from tegu.tune.prove import Proof, prove, workload
from tegu.tune.settings import TimeWait, clear, current, put
from tegu.tune.timewait import Swept, serve, sweep

__all__ = [
    "Applied",
    "Found",
    "Machine",
    "Profile",
    "Proof",
    "Setting",
    "Swept",
    "TimeWait",
    "apply",
    "clear",
    "current",
    "find_profile",
    "load_profile",
    "look",
    "profile_names",
    "prove",
    "put",
    "serve",
    "sweep",
    "undo",
    "workload",
]
