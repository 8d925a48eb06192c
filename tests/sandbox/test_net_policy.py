"""Network policies as text, and what they decide."""

from __future__ import annotations

import ipaddress

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tegu.errors import UsageError
from tegu.sandbox.net.policy import TCP, UDP, Policy, canonical, mapped
from tegu.sandbox.net.ports import Published, parse_port
from tegu.sandbox.spec import BoxSpec

address = ipaddress.ip_address


def allows(entries: object, text: str, port: int = 443, protocol: int = TCP) -> bool:
    return Policy(canonical(entries)).allows(address(text), protocol, port)


@pytest.mark.parametrize(
    ("said", "kept"),
    [
        ("none", "none"),
        ("full", "full"),
        (["full", "!10.0.0.0/8"], ("full", "!10.0.0.0/8")),
        ("allow:a.example, 10.0.0.0/8:443", ("a.example", "10.0.0.0/8:443")),
        (["a.example", "a.example"], ("a.example",)),
        (("*.a.example:53/udp",), ("*.a.example:53/udp",)),
        (["[2001:db8::]/32:443", "2001:db8::1"], ("[2001:db8::]/32:443", "2001:db8::1")),
        (["none"], "none"),
    ],
)
def test_canonical_form(said: object, kept: object) -> None:
    assert canonical(said) == kept
    assert canonical(kept if isinstance(kept, str) else list(kept)) == kept  # type: ignore[call-overload]


@pytest.mark.parametrize(
    "word",
    [
        *("", " ", "a b", "-a.example", "a..example", "a.example:0", "a.example:65536"),
        *("a.example:x", "10.0.0.1/8", "10.0.0.0/33", "256.1.1.1", "1.2.3", "fe80::1%eth0"),
        *("127.0.0.1", "127.0.0.0/9", "::1", "192.0.0.2", "fd00:7e60::2", "::ffff:10.0.0.1"),
        *("!a.example", "a.*.example", "a.example/icmp", "[::1", "a\0b", "é.example"),
        *("a" * 64 + ".example", "x." * 127 + "xx", "10.0.0.0/8:", "[2001:db8::]x"),
    ],
)
def test_wrong_entries_are_refused_by_name(word: str) -> None:
    with pytest.raises(UsageError, match="network: "):
        canonical([word])


@pytest.mark.parametrize(
    "value", [5, None, {"a": 1}, ["a.example", 5], ["none", "full"], "all", "allow", b"full"]
)
def test_what_is_no_network(value: object) -> None:
    with pytest.raises(UsageError, match="network: "):
        canonical(value)


def test_too_many() -> None:
    with pytest.raises(UsageError, match="more than 256"):
        canonical([f"a{n}.example" for n in range(257)])
    with pytest.raises(UsageError, match="too many"):
        canonical([f"10.0.{n}.0/24:{n + 1}" for n in range(256)])


@given(st.text() | st.lists(st.text(max_size=40), max_size=4))
def test_any_text_is_read_or_refused(value: object) -> None:
    try:
        found = canonical(value)
    except UsageError:
        return
    assert canonical(found if isinstance(found, str) else list(found)) == found
    Policy(found)


def test_addresses_and_ports() -> None:
    entries = ["10.0.0.0/8:443", "192.168.1.1", "[2001:db8::]/32:53/udp"]
    assert allows(entries, "10.1.2.3")
    assert not allows(entries, "10.1.2.3", 80)
    assert allows(entries, "10.1.2.3", 443, UDP)
    assert allows(entries, "192.168.1.1", 1)
    assert not allows(entries, "192.168.1.2", 1)
    assert allows(entries, "2001:db8::5", 53, UDP)
    assert not allows(entries, "2001:db8::5", 53, TCP)
    assert not allows(entries, "2001:db9::5", 53, UDP)
    assert not allows("none", "10.1.2.3")


@pytest.mark.parametrize(
    "text",
    [
        *("127.0.0.1", "127.9.9.9", "::1", "0.0.0.0", "169.254.1.1", "169.254.169.254"),
        *("224.0.0.1", "255.255.255.255", "fe80::1", "ff02::1", "fd00:ec2::254", "::"),
        *("100.100.100.200", "168.63.129.16", "192.0.0.192", "64:ff9b::7f00:1", "2002:7f00:1::"),
    ],
)
def test_full_is_not_loopback_link_or_metadata(text: str) -> None:
    assert not allows("full", text)
    assert not allows(["0.0.0.0/0", "::/0", "*"], text)


def test_full_and_its_exceptions() -> None:
    for text in ("1.1.1.1", "10.0.0.1", "2001:4860::1", "fd12::1"):
        assert allows("full", text)
    assert allows(["full", "169.254.169.254:80"], "169.254.169.254", 80)
    assert not allows(["full", "169.254.169.254:80"], "169.254.169.254", 443)
    some = ["full", "!10.0.0.0/8", "10.1.0.0/16", "!10.1.1.1"]
    assert not allows(some, "10.2.0.1")
    assert allows(some, "10.1.0.1")
    assert not allows(some, "10.1.1.1")
    assert allows(some, "11.0.0.1")
    assert allows(["10.0.0.0/8", "!10.0.0.0/8"], "10.0.0.1")  # as E2B: allowing wins


def test_ipv6_rules_are_not_over_ipv4() -> None:
    assert not allows(["::/0"], "1.1.1.1")
    assert not allows(["0.0.0.0/0"], "2001:db8::1")


def test_names() -> None:
    policy = Policy(canonical(["a.example:443", "*.b.example", "C.example."]))
    assert [r.port for r in policy.rules_for("a.example")] == [443]
    assert policy.rules_for("x.b.example")
    assert policy.rules_for("x.y.b.example")
    assert policy.rules_for("c.example")
    for name in ("b.example", "xb.example", "a.example.evil", "x.a.example", "", "example"):
        assert not policy.rules_for(name)
    assert not policy.any_name
    assert Policy("full").any_name


texts = st.sampled_from(
    [
        *("10.0.0.0/8", "10.1.0.0/16:443", "!10.1.1.0/24", "0.0.0.0/0:80", "::/0", "a.example:99"),
        *("[2001:db8:1::]/48:443/tcp", "169.254.169.254", "full", "10.1.1.1:443/udp"),
        "!2001:db8::/32",
    ]
)


@given(
    st.lists(texts, max_size=6),
    st.ip_addresses() | st.sampled_from([address("10.1.1.1"), address("2001:db8:1::1")]),
    st.sampled_from([80, 99, 443, 5]),
    st.sampled_from([TCP, UDP]),
)
def test_the_kernels_table_says_the_same(
    entries: list[str], where: ipaddress.IPv4Address | ipaddress.IPv6Address, port: int, number: int
) -> None:
    """What the map answers (exact port before all ports, longest prefix) is what `allows` says."""
    policy = Policy(canonical(entries))
    network, _ = mapped(ipaddress.ip_network(where))
    bits = int.from_bytes(network, "big")
    tables: dict[int, tuple[int, bool]] = {}
    for protocol, at, place, allow in policy.table():
        key, length = mapped(place)
        same = bits >> 128 - length == int.from_bytes(key, "big") >> 128 - length
        if protocol == number and at in (0, port) and same:
            tables[at] = max(tables.get(at, (-1, False)), (length, allow))
    found = tables.get(port) or tables.get(0)
    if where.version == 6 and where.ipv4_mapped is not None:  # type: ignore[union-attr]
        return  # the kernel sends those as IPv4
    assert (found is not None and found[1]) == policy.allows(where, number, port)


@pytest.mark.parametrize(
    ("word", "port"),
    [
        ("8000", Published(8000)),
        ("8080:8000", Published(8000, 8080)),
        ("0:8000", Published(8000)),
        ("0.0.0.0:8080:8000", Published(8000, 8080, "0.0.0.0")),
        ("[::1]:8080:8000", Published(8000, 8080, "::1")),
    ],
)
def test_ports(word: str, port: Published) -> None:
    assert parse_port(word) == port


@pytest.mark.parametrize(
    "word", ["", "x", "0", "70000", "1:70000", "a:1:2", "1:2:3:4", "::1:1:2", "-1:5", "1:", "١:2"]
)
def test_wrong_ports(word: str) -> None:
    with pytest.raises(UsageError, match="publish: "):
        parse_port(word)


def test_a_boxs_description() -> None:
    spec = BoxSpec(network="allow:a.example", publish=["8080:80"])
    assert spec.network == ("a.example",)
    assert BoxSpec.from_json(spec.to_json()) == spec
    assert BoxSpec.from_json({"network": ["full"]}).network == "full"
    with pytest.raises(UsageError, match="network"):
        BoxSpec(network="full", init=False)
    for publish in ("8080:80", ["x"], [5], ["1:1"] * 65):
        with pytest.raises(UsageError, match="publish"):
            BoxSpec(publish=publish)  # type: ignore[arg-type]
