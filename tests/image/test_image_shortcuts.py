"""Shortcuts do what the passages do that they stand for; whatever is not known is left alone."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tegu.image import certificates
from tegu.image.shortcuts import _SHORTCUTS, scripts, shortened
from tegu.process import run

_CERTIFICATES, _LOCALES = "ca-certificates.config", "locales.postinst"
_NAMES = ("mozilla/A.crt", "mozilla/AB.crt", "mozilla/A*.crt", "mozilla/xA_crt", "A.crt")


def _shell(script: str, cwd: Path) -> str:
    return run(["sh", "-ec", script], cwd=cwd).stdout


def _script(name: str, *, quick: bool) -> str:
    slow = "\n".join(shortcut.slow for shortcut in _SHORTCUTS[name])
    return (shortened(name, slow) or "") if quick else slow


@settings(max_examples=8, deadline=None)
@given(st.lists(st.sampled_from(_NAMES), max_size=3), st.lists(st.sampled_from(_NAMES), max_size=3))
def test_certificates_are_sorted_into_the_same_lists(
    disabled: list[str], trusted: list[str]
) -> None:
    def answers(*, quick: bool) -> str:
        off, on = _script(_CERTIFICATES, quick=quick).replace("\n elif", "\f elif").split("\f")
        variables = "".join(
            f"{name}='{chr(10).join(lines)}'\n"
            for name, lines in (("CERTS_DISABLED", disabled), ("CERTS_TRUST", trusted))
        )
        names = " ".join(f"'{name}'" for name in _NAMES)
        return _shell(
            f"{variables}for crt in {names}; do\n{off}\n echo off\n{on}\n echo on\n"
            " else\n echo new\n fi\ndone",
            Path("/"),
        )

    assert answers(quick=True) == answers(quick=False)


@pytest.mark.parametrize(
    "there", ["# head\n#\n\n", "# head\n# de_DE ISO-8859-1\nfr_FR.UTF-8 UTF-8  \n#  aa_DJ UTF-8\n"]
)
def test_locales_are_listed_alike(tmp_path: Path, there: str) -> None:
    found = []
    for quick in (False, True):
        table = tmp_path / f"locale.gen.{quick}"
        table.write_text(there)
        supported = (
            "aa_DJ UTF-8\naa_DJ.UTF-8 UTF-8\nde_DE ISO-8859-1\nde_DE@euro X\nfr_FR.UTF-8 UTF-8"
        )
        _shell(
            f"LG={table}\nSUPPORTED_LOCALES='{supported}'\n{_script(_LOCALES, quick=quick)}",
            tmp_path,
        )
        found.append(table.read_text())
    assert found[0] == found[1] != there


def test_a_script_that_is_not_known_is_left_alone() -> None:
    assert all(shortened(name, "#!/bin/sh\nexit 0\n") is None for name in scripts())
    assert shortened("bash.postinst", _script(_LOCALES, quick=False)) is None


class _Box:
    def __init__(self, root: Path) -> None:
        self.root = root
        self.ran: list[Any] = []

    def run(self, argv: Any, **_: Any) -> Any:
        self.ran.append(list(argv))
        return SimpleNamespace(returncode=0)


@pytest.fixture
def box(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> _Box:
    for folder in ("usr/sbin", "usr/bin", "etc/ssl/certs", "usr/share/ca-certificates/m"):
        (tmp_path / folder).mkdir(parents=True)
    (tmp_path / certificates.SCRIPT).write_text("#!/bin/sh\n# words\n\ntrue\n")
    (tmp_path / "usr/bin/openssl").touch()
    known = frozenset({certificates.script_digest("true")})
    monkeypatch.setattr(certificates, "_KNOWN", known)
    return _Box(tmp_path)


def _make(box: _Box) -> bool:
    return certificates.make_bundle(cast("Any", box))


def test_chosen_certificates_are_bundled(box: _Box) -> None:
    shipped = box.root / "usr/share/ca-certificates/m"
    for name, text in (("A (1), b.crt", "one"), ("C.crt", "two\n"), ("D.crt", "off\n")):
        (shipped / name).write_text(text)
    (box.root / "etc/ca-certificates.conf").write_text(
        "# words\n\nm/C.crt\nm/A (1), b.crt\n!m/D.crt\nm/gone.crt\n"
    )
    assert _make(box)
    certs = box.root / "etc/ssl/certs"
    assert (certs / "ca-certificates.crt").read_text() == "two\none\n"
    links = {p.name: str(p.readlink()) for p in certs.iterdir() if p.is_symlink()}
    assert links == {
        "A_=1=__b.pem": "/usr/share/ca-certificates/m/A (1), b.crt",
        "C.pem": "/usr/share/ca-certificates/m/C.crt",
    }
    assert box.ran == [["/usr/bin/openssl", "rehash", "/etc/ssl/certs"]]


@pytest.mark.parametrize(
    "extra",
    [
        "usr/local/share/ca-certificates/own.crt",
        "etc/ca-certificates/update.d/hook",
        "etc/ssl/certs/x",
    ],
)
def test_what_is_out_of_the_ordinary_is_left_to_the_script(box: _Box, extra: str) -> None:
    (box.root / extra).parent.mkdir(parents=True, exist_ok=True)
    (box.root / extra).touch()
    assert not _make(box)
    assert not box.ran


def test_another_script_is_run_itself(box: _Box) -> None:
    (box.root / certificates.SCRIPT).write_text("#!/bin/sh\nfalse\n")
    assert not _make(box)
