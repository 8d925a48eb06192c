"""Every error that a user may meet, each with its exit code.

An error is one line: what failed, why; `hint` says what to do. The front door prints it and exits
with `exit_code`; a traceback that reaches the user is a bug.
"""

from __future__ import annotations

__all__ = [
    "BuildError",
    "DefinitionError",
    "FetchError",
    "LivepatchError",
    "LockError",
    "MachineError",
    "PlanFailed",
    "ProbeError",
    "QosError",
    "RecipeError",
    "ReleaseError",
    "RepositoryError",
    "SandboxError",
    "SettingError",
    "SolveError",
    "StoreError",
    "TeguError",
    "TuneError",
    "UnsupportedError",
    "UpgradeError",
    "UsageError",
    "VerifyError",
]


class TeguError(Exception):
    """Base of all errors shown to a user; `message` is one clear line."""

    exit_code = 1

    def __init__(self, message: str, *, hint: str | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint


class UsageError(TeguError):
    """The command line does not fit together."""

    exit_code = 2


class DefinitionError(TeguError):
    """The definition is wrong; the message starts with `file:line: key`."""

    exit_code = 3


class LockError(TeguError):
    """The lock is missing, unreadable or does not belong to the definition."""

    exit_code = 4


class SolveError(TeguError):
    """No set of packages satisfies the definition."""

    exit_code = 5


class FetchError(TeguError):
    """A mirror could not be reached, or did not deliver."""

    exit_code = 6


class VerifyError(TeguError):
    """A signature or a checksum does not hold; nothing unverified is ever used or kept."""

    exit_code = 7


class StoreError(TeguError):
    """The store cannot be read or written (disk full, permissions, foreign format)."""

    exit_code = 8


class BuildError(TeguError):
    """A build step failed."""

    exit_code = 9


class MachineError(TeguError):
    """A machine did not start, answer or stop."""

    exit_code = 10


class PlanFailed(TeguError):  # noqa: N818 - a plan that fails is an outcome
    """A test plan ran to its end and at least one expectation did not hold."""

    exit_code = 11


class UnsupportedError(TeguError):
    """This machine cannot do it; the message is `unsupported: <reason>`."""

    exit_code = 12

    def __init__(self, reason: str, *, hint: str | None = None) -> None:
        super().__init__(f"unsupported: {reason}", hint=hint)


class RepositoryError(TeguError):
    """A package repository of ours cannot take, publish or hand out what was asked."""

    exit_code = 13


class SandboxError(TeguError):
    """A sandbox, or its supervisor, could not do what was asked."""

    exit_code = 20


class LivepatchError(TeguError):
    """The kernel did not take a live patch, or could not finish the change to or from it."""

    exit_code = 23


class ProbeError(TeguError):
    """A probe could not be read, or a recording is not what it should be."""

    exit_code = 21


class RecipeError(TeguError):
    """A package's recipe is wrong; the message starts with `file:line: key` where it can."""

    exit_code = 14


class ReleaseError(TeguError):
    """A release cannot be prepared, passed, signed or published; or its metadata was refused."""

    exit_code = 15


class UpgradeError(TeguError):
    """The machine could not be upgraded or rolled back; the message says what it runs now."""

    exit_code = 16


class SettingError(TeguError):
    """A value of the kernel or of systemd cannot be read, written, noted or restored."""

    exit_code = 33


class QosError(SettingError):
    """A policy cannot be applied, held or undone on this machine as it is now."""

    exit_code = 34


class TuneError(SettingError):
    """A profile of settings cannot be applied, proved or undone."""

    exit_code = 35
