"""What sandboxes over HTTP may reach: at most what the service was started with.

And E2B's words for it: everything but what is denied, or nothing but what is allowed.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Iterator, Sequence
from typing import Any

from tegu.errors import UnsupportedError, UsageError
from tegu.linux.route import LOCAL, Routes
from tegu.sandbox.net.policy import DENIED, FULL, NONE, Network, Policy, canonical
from tegu.sandbox.web.fault import Fault
from tegu.sandbox.web.fields import Field, read

__all__ = ["from_e2b", "permitted", "to_e2b"]

_HINT = "tegu sandbox serve --network says what its sandboxes may reach"
_ALL = ("0.0.0.0/0", "::/0")
_FIELDS = (
    Field("allowOut", "texts", "Where it may connect to."),
    Field("denyOut", "texts", "Where it may not."),
    Field("allowPublicTraffic", "flag", "Never: a token opens its ports."),
)
_NEVER = {
    "dnsServers": "names are answered by the service's own resolver",
    "egressProxy": "connections are made by the service itself",
    "rules": "what is sent is not changed on the way",
    "maskRequestHost": "requests keep their host",
    "httpsPorts": "ports are reached without TLS",
}


def permitted(base: str | Sequence[str], asked: str | Sequence[str]) -> str | Sequence[str]:
    """Return what a sandbox gets of what it asks for; what the service denies stays denied.

    Raises Fault when it is more than `base`, what the service gives.
    """
    if asked in (NONE, base):
        return asked
    if base == NONE:
        raise Fault("invalid_argument", "network: this service gives none", hint=_HINT)
    given = (base,) if isinstance(base, str) else tuple(base)
    wanted = (asked,) if isinstance(asked, str) else tuple(asked)
    denied = [word for word in given if word.startswith("!")]
    ruled = [*DENIED, *(r.network for r in Policy(denied).rules if r.network is not None)]
    for word in wanted:
        if word in given or word.startswith("!"):
            continue
        if FULL in given and all(_fits(r.network, ruled) for r in Policy((word,)).rules):
            continue
        raise Fault(
            "invalid_argument", f"network: {word!r} is more than the service gives", hint=_HINT
        )
    return canonical([*wanted, *denied])


def _fits(network: Network | None, denied: Sequence[Network]) -> bool:
    """Whether a rule that is allowed within everything opens nothing that is denied.

    A larger network does not: what is denied is the smaller then, and decides. An address of this
    host itself would be opened by its name alone.
    """
    if network is None:
        return True
    if network.prefixlen == network.max_prefixlen:
        with Routes() as routes:
            if routes.type_of(network.network_address) == LOCAL:
                return False
    return not any(_below(network, d) for d in denied)


def _below(network: Network, other: Network) -> bool:
    if isinstance(network, ipaddress.IPv4Network):
        return isinstance(other, ipaddress.IPv4Network) and network.subnet_of(other)
    return isinstance(other, ipaddress.IPv6Network) and network.subnet_of(other)


def from_e2b(internet: bool | None, network: object) -> str | Sequence[str] | None:
    """Return what E2B's fields ask for; None when they say nothing.

    Where something is allowed, all else is denied. Raises Fault or UnsupportedError.
    """
    if internet is None and network is None:
        return None
    if isinstance(network, dict):
        for name, why in _NEVER.items():
            if network.get(name) is not None:
                raise UnsupportedError(f"network.{name}: {why}")
        network = {k: v for k, v in network.items() if k not in _NEVER}
    said = read({} if network is None else network, _FIELDS, what="network")
    if said.get("allowPublicTraffic"):
        raise UnsupportedError("network.allowPublicTraffic: a token opens the ports of a sandbox")
    allow, deny = said.get("allowOut"), said.get("denyOut", [])
    try:
        if internet is False or allow or any(word in _ALL for word in deny):
            return canonical([FULL if word in _ALL else word for word in allow or []])
        return canonical([FULL, *_denials(deny)])
    except UsageError as e:
        raise Fault("invalid_argument", e.message, hint=e.hint) from e


def _denials(deny: Sequence[str]) -> Iterator[str]:
    for word in deny:
        if word.startswith("!"):
            raise UsageError(f"network: {word!a} is no address")
        yield f"!{word}"


def to_e2b(network: str | Sequence[str]) -> dict[str, Any]:
    """Return the fields in which E2B shows what a sandbox may reach."""
    words = [network] if isinstance(network, str) else list(network)
    allow = [word for word in words if not word.startswith("!") and word not in (NONE, FULL)]
    deny = [word[1:] for word in words if word.startswith("!")]
    if FULL not in words:
        deny.append(_ALL[0])
    return {
        "allowInternetAccess": network != NONE,
        "network": {"allowOut": allow, "denyOut": deny},
    }
