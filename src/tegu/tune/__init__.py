"""Settings with receipts: profiles as data, applied, verified, undone; and proof that one helps.

A `Profile` holds settings that have a receipt (what a proof measured) or a correctness reason.
`apply` notes every former value first and leaves alone what somebody else has set; `undo` restores
exactly; `prove` measures a setting ABAB and keeps it only when the gain stands out.
"""

from __future__ import annotations

from tegu.tune.apply import Applied, Found, Machine, apply, look, undo
from tegu.tune.profile import Profile, Setting, find_profile, load_profile, profile_names
from tegu.tune.prove import Proof, prove, workload

__all__ = [
    "Applied",
    "Found",
    "Machine",
    "Profile",
    "Proof",
    "Setting",
    "apply",
    "find_profile",
    "load_profile",
    "look",
    "profile_names",
    "prove",
    "undo",
    "workload",
]
