"""Latency-critical, normal and batch work on one machine, kept apart by control groups.

A `Policy` says which groups are of which class. The static layer (`apply`) is written once and
holds without a process of ours; every write is noted in a journal first, and `undo` restores what
was there. The feedback layer (`tegu.qos.daemon`) moves one limit of the batch class at a time,
within the policy's floor and ceiling, as the latency class's own figures say.
"""

from __future__ import annotations

from tegu.linux.journal import Journal, Restored
from tegu.qos.layer import Applied, Place, apply, undo
from tegu.qos.policy import Policy, load_policy, parse_policy

__all__ = [
    "Applied",
    "Journal",
    "Place",
    "Policy",
    "Restored",
    "apply",
    "load_policy",
    "parse_policy",
    "undo",
]
