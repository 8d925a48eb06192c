"""Mirrors: found in apt's own configuration, never written into a lock with a password."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tegu.definition import Definition
from tegu.errors import FetchError
from tegu.packages import sources
from tegu.packages.aptconfig import parse_deb822, parse_list, parse_settings, read_sources
from tegu.packages.sources import MACHINE_MIRROR, MACHINE_SECURITY, resolve, sources_of

LIST = """
# deb http://commented.example/debian bookworm main
deb cdrom:[Debian]/ bookworm main
deb-src http://mirror.example/debian bookworm main
deb [signed-by=/usr/share/keyrings/x.gpg arch=amd64] https://vendor.example/apt stable main
deb [ check-valid-until=no ] http://mirror.example/debian bookworm main contrib # the mirror
deb http://mirror.example/debian-security bookworm-security main
"""
DEB822 = """# A comment
Types: deb deb-src
URIs: http://mirror.example/debian/
Suites: trixie trixie-updates
Components: main
Signed-By:
 -----BEGIN PGP PUBLIC KEY BLOCK-----
 .
 abc

Types: deb
Enabled: no
URIs: http://off.example/debian
Suites: trixie
Components: main

Types: deb
URIs: http://security.example/debian-security
Suites: trixie-security
Components: main
"""


@pytest.fixture
def machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Return a function that gives the machine other apt sources and settings."""

    def use(files: dict[str, str], dump: str = "") -> None:
        for name, text in files.items():
            path = tmp_path / "apt" / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text)
        monkeypatch.setattr(sources, "read_sources", lambda: read_sources(tmp_path / "apt"))
        monkeypatch.setattr(sources, "read_settings", lambda: parse_settings(dump))
        monkeypatch.delenv("TEGU_MIRROR", raising=False)
        monkeypatch.delenv("TEGU_SECURITY_MIRROR", raising=False)

    return use


def test_one_line_entries() -> None:
    found = list(parse_list(LIST))
    assert [s.suite for s in found] == ["bookworm", "stable", "bookworm", "bookworm-security"]
    assert found[1].options == {"signed-by": "/usr/share/keyrings/x.gpg", "arch": "amd64"}
    assert found[2].components == ("main", "contrib")
    assert not found[2].allows("check-valid-until")


def test_deb822_entries() -> None:
    found = list(parse_deb822(DEB822))
    assert [(s.uri, s.suite) for s in found] == [
        ("http://mirror.example/debian/", "trixie"),
        ("http://mirror.example/debian/", "trixie-updates"),
        ("http://security.example/debian-security", "trixie-security"),
    ]
    assert found[0].options["signed-by"].startswith("\n-----BEGIN")


@pytest.mark.parametrize("name", ["sources.list", "sources.list.d/debian.list"])
def test_the_mirror_is_the_one_with_a_debian_suite(machine, name: str) -> None:
    machine({name: LIST})
    assert resolve(MACHINE_MIRROR).url == "http://mirror.example/debian"
    assert resolve(MACHINE_SECURITY).url == "http://mirror.example/debian-security"


def test_deb822_files_serve_as_well(machine) -> None:
    machine({"sources.list.d/debian.sources": DEB822, "sources.list.d/x.disabled": LIST})
    assert resolve(MACHINE_MIRROR).url == "http://mirror.example/debian"
    assert resolve(MACHINE_SECURITY).url == "http://security.example/debian-security"
    assert not resolve(MACHINE_MIRROR).lenient


def test_age_checks_that_apt_was_told_to_skip(machine) -> None:
    machine({"sources.list": LIST})
    assert resolve(MACHINE_MIRROR).lenient  # an option of this entry
    assert not resolve(MACHINE_SECURITY).lenient
    machine({"sources.list": LIST}, 'Acquire::Check-Valid-Until "false";\n')
    assert resolve(MACHINE_SECURITY).lenient
    assert not resolve("http://named.example/debian").lenient


def test_no_mirror_says_what_to_set(machine) -> None:
    machine({"sources.list": "deb http://ubuntu.example/ubuntu noble main\n"})
    with pytest.raises(FetchError, match="no Debian mirror") as caught:
        resolve(MACHINE_MIRROR)
    assert "base.mirror" in (caught.value.hint or "")
    with pytest.raises(FetchError, match="no Debian security mirror") as caught:
        resolve(MACHINE_SECURITY)
    assert "TEGU_SECURITY_MIRROR" in (caught.value.hint or "")


def test_the_environment_goes_first(machine, monkeypatch: pytest.MonkeyPatch) -> None:
    machine({"sources.list": LIST})
    monkeypatch.setenv("TEGU_MIRROR", "http://near.example/debian")
    monkeypatch.setenv("TEGU_SECURITY_MIRROR", "/srv/mirror/security")
    assert resolve(MACHINE_MIRROR).url == "http://near.example/debian"
    assert resolve(MACHINE_SECURITY).url == "file:///srv/mirror/security"


def test_the_sources_of_a_definition(machine) -> None:
    machine({"sources.list": LIST})
    definition = Definition.model_validate(
        {
            "system": {"name": "acme", "version": "1"},
            "base": {"mirror": "http://me:secret@mirror.example/debian"},
            "repository": [
                {
                    "uri": "https://vendor.example/apt",
                    "suite": "stable",
                    "keyring": Path("/vendor.gpg"),
                    "priority": 900,
                }
            ],
        }
    )
    found = sources_of(definition)
    assert [s.id for s in found] == [
        "trixie",
        "trixie-updates",
        "trixie-security",
        "repository-1-stable",
    ]
    assert found[0].uri == "http://mirror.example/debian"
    assert found[0].base_url == "http://me:secret@mirror.example/debian/dists/trixie"
    assert found[2].uri == MACHINE_SECURITY
    assert [s.base for s in found] == [True, True, True, False]
    assert found[3].priority == 900


def test_proxies_of_apt() -> None:
    settings = parse_settings(
        'Acquire "";\nAcquire::http::Proxy "http://cache.example:3142";\n'
        'Acquire::http::Proxy::near.example "DIRECT";\nAcquire::https::Proxy "";\n'
        'Acquire::Check-Date "no";\n'
    )
    assert settings.proxies == {
        "http": "http://cache.example:3142",
        "http::near.example": "DIRECT",
    }
    assert settings.check_valid_until
    assert not settings.check_date


def test_apts_proxy_is_used(serve, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from tegu.packages import transfer
    from tegu.packages.aptconfig import AptSettings

    server = serve(tmp_path)
    monkeypatch.setattr(transfer, "read_settings", lambda: AptSettings({"http": server.url}))
    monkeypatch.delenv("no_proxy")
    with transfer.client() as web:
        web.get("http://nowhere.example/dists/rock/InRelease")
    assert server.requests[0].path == "http://nowhere.example/dists/rock/InRelease"


@given(st.text())
def test_any_text_is_read_without_failing(text: str) -> None:
    for source in [*parse_list(text), *parse_deb822(text)]:
        assert source.suite
    parse_settings(text)


@given(st.lists(st.sampled_from(["Types: deb", "URIs:", "a", " ", "Suites: x", ":"])))
def test_broken_deb822_is_read_without_failing(lines: list[str]) -> None:
    list(parse_deb822("\n".join(lines)))
