"""What goes wrong, as HTTP and Connect RPC say it: a status, a code, and one clear line."""

from __future__ import annotations

import errno

from tegu.errors import TeguError, UnsupportedError, UsageError
from tegu.sandbox.box import RefusedError, StartError

__all__ = ["Fault", "as_fault", "closed", "gone"]

_STATUS = {
    "canceled": 499,
    "invalid_argument": 400,
    "deadline_exceeded": 504,
    "not_found": 404,
    "already_exists": 409,
    "permission_denied": 403,
    "resource_exhausted": 429,
    "failed_precondition": 409,
    "unimplemented": 501,
    "internal": 500,
    "unavailable": 503,
    "unauthenticated": 401,
}
"""Codes of Connect RPC (connectrpc.com/docs/protocol) that are used here, with their statuses."""
_ERRNO = {
    errno.ENOENT: "not_found",
    errno.EEXIST: "already_exists",
    errno.EACCES: "permission_denied",
    errno.EPERM: "permission_denied",
    errno.EROFS: "permission_denied",
    errno.ENOSPC: "resource_exhausted",
    errno.EDQUOT: "resource_exhausted",
    errno.EMFILE: "resource_exhausted",
    errno.EAGAIN: "resource_exhausted",
    errno.ENOMEM: "resource_exhausted",
    errno.ENOTEMPTY: "failed_precondition",
    errno.EBUSY: "failed_precondition",
    errno.EXDEV: "failed_precondition",
    errno.ENOTSUP: "unimplemented",
}
_INVALID = (errno.ENOTDIR, errno.EISDIR, errno.EINVAL, errno.ENAMETOOLONG, errno.ELOOP)
_FULL = (errno.ENOSPC, errno.EDQUOT)


class Fault(TeguError):  # noqa: N818 - what a client is told
    """An answer that is an error: `code` as Connect RPC names it, `status` as HTTP does."""

    def __init__(
        self, code: str, message: str, *, status: int | None = None, hint: str | None = None
    ) -> None:
        super().__init__(message, hint=hint)
        self.code = code
        self.status = status or _STATUS[code]


def as_fault(error: TeguError | OSError) -> Fault:
    """Return what a client is told of an error."""
    if isinstance(error, Fault):
        return error
    if isinstance(error, OSError):
        return _by_number(f"{error.filename or 'the box'}: {error.strerror or error}", error.errno)
    hint = error.hint
    if isinstance(error, StartError):
        return Fault("invalid_argument", error.message, hint=hint)
    if isinstance(error, RefusedError):
        return _by_number(error.message, error.number)
    if isinstance(error, UsageError):
        return Fault("invalid_argument", error.message, hint=hint)
    if isinstance(error, UnsupportedError):
        return Fault("unimplemented", error.message, hint=hint)
    return Fault("internal", error.message, hint=hint)


def _by_number(message: str, number: int | None) -> Fault:
    if number in _FULL:
        return Fault("resource_exhausted", message, status=507)
    if number in _INVALID:
        return Fault("invalid_argument", message)
    return Fault(_ERRNO.get(number or 0, "internal"), message)


def gone(name: str, reason: str) -> Fault:
    """Return the error of a box that is not there: 502, as its clients tell it from a bad call.

    E2B's clients look for "was not found" in it (their SandboxNotRunning error).
    """
    why = f": {reason}" if reason else ""
    return Fault("unavailable", f"The sandbox {name} was not found{why}", status=502)


def closed(name: str, port: int) -> Fault:
    """Return the error of a port in a sandbox at which nothing listens.

    E2B's clients look for "port is not open" in it.
    """
    return Fault(
        "unavailable",
        f"The sandbox {name} is running but nothing listens at {port}: port is not open",
        status=502,
    )
