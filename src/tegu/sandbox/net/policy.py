"""What a box may reach: names, addresses and ports, as text, as rules, and as a decision.

Of rules on addresses the one for the smallest network that holds an address decides, as in a
routing table; where a rule allows and another denies the same network, it is allowed. What the
resolver answered for an allowed name counts as a rule for that one address while it lasts.
"""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from tegu.errors import UsageError

__all__ = [
    "DENIED",
    "FULL",
    "MAX_ENTRIES",
    "NONE",
    "OWN_ADDRESSES",
    "TCP",
    "UDP",
    "Address",
    "Network",
    "NetworkSpec",
    "Policy",
    "Rule",
    "canonical",
    "mapped",
    "special",
]

Address = ipaddress.IPv4Address | ipaddress.IPv6Address
Network = ipaddress.IPv4Network | ipaddress.IPv6Network
NetworkSpec = str | Sequence[str]
"""As callers write it: "none", "full", "allow:NAME,ADDRESS", or a list of entries."""

NONE, FULL = "none", "full"
TCP, UDP = 6, 17
MAX_ENTRIES = 256
MAX_LINES = 8192
"""Of the kernel's table, in which each port has one for every rule: half of what it holds, so that
as many are left for what is resolved."""
OWN_ADDRESSES: tuple[Address, ...] = (
    ipaddress.IPv4Address("192.0.0.2"),
    ipaddress.IPv6Address("fd00:7e60::2"),
)
"""A box's own: of the range of RFC 7335, which no network routes, and of RFC 4193."""

_LABEL = r"[a-z0-9_]([a-z0-9_-]{0,61}[a-z0-9_])?"
_NAME = re.compile(rf"{_LABEL}(\.{_LABEL})*")
_PROTOCOLS = {"tcp": (TCP,), "udp": (UDP,)}
_LOOPBACK: tuple[Network, ...] = (
    ipaddress.IPv4Network("127.0.0.0/8"),
    ipaddress.IPv6Network("::1/128"),
)


def _networks(text: str) -> tuple[Network, ...]:
    return tuple(ipaddress.ip_network(word) for word in text.split())


DENIED = _networks(
    "0.0.0.0/8 127.0.0.0/8 169.254.0.0/16 192.0.0.0/24 224.0.0.0/4 240.0.0.0/4"
    " 100.100.100.200/32 168.63.129.16/32"
    " ::/96 64:ff9b::/96 64:ff9b:1::/48 2001::/32 2002::/16 fe80::/10 fec0::/10 ff00::/8"
    " fd00:ec2::254/128 fd00:7e60::/64"
)
"""Never reached unless a rule names them, or a part of them: this host, its link, groups, what
carries IPv4 addresses in IPv6 ones (64:ff9b::/96 RFC 6052, 2001::/32 RFC 4380, 2002::/16 RFC 3056),
and where clouds keep their machines' metadata and credentials (169.254.169.254, fd00:ec2::254,
100.100.100.200, 168.63.129.16, 192.0.0.192)."""
_PRIVATE = _networks("10.0.0.0/8 100.64.0.0/10 172.16.0.0/12 192.168.0.0/16 198.18.0.0/15 fc00::/7")
"""What a name may not lead to unless a rule on addresses allows it (DNS rebinding)."""


def _within(address: Address, networks: Sequence[Network]) -> bool:
    return any(address in n for n in networks if n.version == address.version)


def special(address: Address) -> bool:
    """Whether a name of the outside has no business to lead to this address."""
    if isinstance(address, ipaddress.IPv6Address) and address.ipv4_mapped is not None:
        return True
    return _within(address, DENIED) or _within(address, _PRIVATE)


def mapped(network: Network) -> tuple[bytes, int]:
    """Return a network as 16 bytes and a prefix length, IPv4 as ::ffff:a.b.c.d (RFC 4291)."""
    packed = network.network_address.packed
    if network.version == 4:
        return b"\0" * 10 + b"\xff\xff" + packed, 96 + network.prefixlen
    return packed, network.prefixlen


@dataclass(frozen=True)
class Rule:
    """`name` ("*" is every name, "*.example.org" what is below it) or `network`, at a port (0: all)
    of some protocols; `allow` is False for a denial."""

    name: str = ""
    network: Network | None = None
    port: int = 0
    protocols: tuple[int, ...] = (TCP, UDP)
    allow: bool = True

    def fits(self, protocol: int, port: int) -> bool:
        """Whether it is about this protocol and port."""
        return protocol in self.protocols and self.port in (0, port)


def canonical(value: object) -> str | tuple[str, ...]:
    """Return "none", "full" or a tuple of entries, each checked. Raises UsageError."""
    if isinstance(value, str):
        if value in (NONE, FULL):
            return value
        if value.startswith("allow:"):
            value = [word.strip() for word in value.removeprefix("allow:").split(",")]
        else:
            raise UsageError(
                f"network: {value!a} is neither none, full nor allow:NAME,...",
                hint="as in allow:deb.example.org,10.0.0.0/8:443",
            )
    if not isinstance(value, list | tuple) or not all(isinstance(word, str) for word in value):
        raise UsageError(f"network: {value!a} is no list of names and addresses")
    if len(value) > MAX_ENTRIES:
        raise UsageError(f"network: {len(value)} entries are more than {MAX_ENTRIES}")
    entries = tuple(dict.fromkeys(value))
    if not entries or entries == (NONE,):
        return NONE
    if NONE in entries:
        raise UsageError("network: 'none' and more besides")
    lines = sum(1 for _ in Policy(entries).table())
    if lines > MAX_LINES:
        raise UsageError(
            f"network: {len(entries)} entries with too many different ports",
            hint=f"they make {lines} lines, of at most {MAX_LINES}",
        )
    return FULL if entries == (FULL,) else entries


def _parse(word: str) -> Iterator[Rule]:
    if word == FULL:
        yield Rule(name="*")
        yield Rule(network=ipaddress.IPv4Network("0.0.0.0/0"))
        yield Rule(network=ipaddress.IPv6Network("::/0"))
        return
    text, allow = (word[1:], False) if word.startswith("!") else (word, True)
    target, port, protocols = _parts(word, text)
    network = _network(target)
    if network is None:
        if not allow:
            raise UsageError(f"network: {word!a}: only addresses can be denied, names are anyway")
        yield Rule(name=_name(word, target), port=port, protocols=protocols)
        return
    if allow and any(
        network.overlaps(n) and network.prefixlen >= n.prefixlen for n in _own(network)
    ):
        raise UsageError(
            f"network: {word!a} is the box's own", hint="this machine's loopback is never reached"
        )
    yield Rule(network=network, port=port, protocols=protocols, allow=allow)


def _own(network: Network) -> list[Network]:
    own = [ipaddress.ip_network(a) for a in OWN_ADDRESSES]
    return [n for n in (*_LOOPBACK, *own) if n.version == network.version]


def _parts(word: str, text: str) -> tuple[str, int, tuple[int, ...]]:
    """Take an entry apart: target, port (0: all), protocols."""
    protocols: tuple[int, ...] = (TCP, UDP)
    for name, numbers in _PROTOCOLS.items():
        if text.endswith(f"/{name}"):
            text, protocols = text[: -len(name) - 1], numbers
    bracketed = re.fullmatch(r"\[([^\]]*)\](/[0-9]{1,3})?(?::(.*))?", text, re.DOTALL)
    if bracketed is not None:
        target, port = bracketed[1] + (bracketed[2] or ""), bracketed[3]
    elif text.count(":") > 1:
        target, port = text, None  # an IPv6 address
    else:
        target, mark, after = text.partition(":")
        port = after if mark else None
    if port is None:
        return target, 0, protocols
    if re.fullmatch(r"[0-9]{1,5}", port, re.ASCII) is None or not 0 < int(port) < 65536:
        raise UsageError(f"network: {word!a}: {port!a} is no port")
    return target, int(port), protocols


def _network(target: str) -> Network | None:
    """Return an address or a network; None when it is a name."""
    if re.fullmatch(r"[0-9./]+", target) is None and ":" not in target:
        return None
    try:
        network = ipaddress.ip_network(target)
    except ValueError as e:
        raise UsageError(f"network: {target!a} is no address: {e}") from e
    if isinstance(network, ipaddress.IPv6Network):
        if "%" in target:
            raise UsageError(f"network: {target!a}: an address here has no zone")
        if network.network_address.ipv4_mapped is not None and network.prefixlen >= 96:
            raise UsageError(f"network: {target!a}: write an IPv4 address as such")
    return network


def _name(word: str, target: str) -> str:
    name = target.lower().removesuffix(".")
    plain = name.removeprefix("*.")
    if name != "*" and (len(plain) > 253 or _NAME.fullmatch(plain) is None):
        raise UsageError(
            f"network: {word!a} is no name, address or network",
            hint="as in example.org, *.example.org:443, 10.0.0.0/8:443, [2001:db8::]/32",
        )
    return name


class Policy:
    """What a box may reach, from entries that `canonical` has seen."""

    def __init__(self, network: str | Sequence[str]) -> None:
        words: Sequence[str] = (network,) if isinstance(network, str) else network
        words = () if tuple(words) == (NONE,) else words
        self.rules = [rule for word in words for rule in _parse(word)]
        self.names = [rule for rule in self.rules if rule.name]
        self._addresses = [(rule.network, rule) for rule in self.rules if rule.network is not None]
        self.ports = {
            protocol: (0, *sorted({r.port for r in self.rules if protocol in r.protocols} - {0}))
            for protocol in (TCP, UDP)
        }
        """The ports that rules name, for each protocol, and 0 for all others."""

    @property
    def any_name(self) -> bool:
        """Whether every name may be resolved."""
        return any(rule.name == "*" for rule in self.names)

    def rules_for(self, name: str) -> list[Rule]:
        """Return the rules that allow a name (lower case, without a dot at its end)."""
        return [
            rule
            for rule in self.names
            if rule.name in ("*", name)
            or (rule.name.startswith("*.") and name.endswith(rule.name[1:]))
        ]

    def _matching(self, protocol: int, port: int) -> Iterator[tuple[Network, bool]]:
        for network in DENIED:
            yield network, False
        for network, rule in self._addresses:
            if rule.fits(protocol, port):
                yield network, rule.allow

    def allows(self, address: Address, protocol: int, port: int) -> bool:
        """Whether rules on addresses allow it."""
        return self.named(address, protocol, port) is not None

    def named(self, address: Address, protocol: int, port: int) -> Network | None:
        """Return the network of the rule that allows an address, or None when none does.

        An IPv4 address written as IPv6 is none: the kernel connects to it as IPv4.
        """
        if isinstance(address, ipaddress.IPv6Address) and address.ipv4_mapped is not None:
            return None
        best: tuple[int, bool, Network] | None = None
        for network, allow in self._matching(protocol, port):
            if network.version != address.version or address not in network:
                continue
            if best is None or (network.prefixlen, allow) > best[:2]:
                best = (network.prefixlen, allow, network)
        return best[2] if best is not None and best[1] else None

    def denies(self, address: Address, protocol: int, port: int) -> bool:
        """Whether a rule that the box's maker wrote denies it."""
        return not self.allows(address, protocol, port) and any(
            not rule.allow and rule.fits(protocol, port) and address in network
            for network, rule in self._addresses
            if network.version == address.version
        )

    def table(self) -> Iterator[tuple[int, int, Network, bool]]:
        """Yield (protocol, port, network, allowed) so that for each protocol and port the smallest
        network decides; port 0 is all ports that are not named."""
        everything = ipaddress.IPv4Network("0.0.0.0/0")
        for protocol, ports in self.ports.items():
            for port in ports:
                # Or "::/0" would be over IPv4 as well, in a table in which that is a part of IPv6.
                found: dict[Network, bool] = {everything: False}
                for network, allow in self._matching(protocol, port):
                    found[network] = found.get(network, False) or allow
                for network, allow in found.items():
                    yield protocol, port, network, allow

    def places(self, rule: Rule) -> Iterator[tuple[int, int]]:
        """Yield (protocol, port) of the tables to which an address that `rule` admits belongs."""
        for protocol in rule.protocols:
            for port in self.ports[protocol] if rule.port == 0 else (rule.port,):
                yield protocol, port
