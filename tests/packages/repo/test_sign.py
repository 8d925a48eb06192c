"""Signatures that gpgv accepts, by one signer and by several of different kinds."""

from __future__ import annotations

import os
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tegu.errors import RepositoryError, UnsupportedError, VerifyError
from tegu.packages.release import verify_detached, verify_signature
from tegu.packages.repo import make_key
from tegu.packages.repo.sign import Signers, load_signers, signed_text

TEXT = "Origin: acme\n- dashes\n-----BEGIN odd-----\n\nSHA256:\n abc 1 main\n"


def _keyring(signers: Signers, folder: Path) -> list[str]:
    path = folder / "keyring.gpg"
    path.write_bytes(signers.public)
    return [str(path)]


def _verified(signed: str, keyrings: list[str]) -> str:
    return verify_signature(signed.encode(), keyrings, where="InRelease")


def test_a_key_file(signing_key: Path, tmp_path: Path) -> None:
    signers = load_signers([str(signing_key)], tmp_path)
    keyrings = _keyring(signers, tmp_path)
    signed = signers.clear_sign(TEXT)
    assert _verified(signed, keyrings) == TEXT
    assert signed_text(signed) == TEXT
    with pytest.raises(VerifyError, match="changed after it was signed"):
        _verified(signed.replace("acme", "evil"), keyrings)
    data = os.urandom(1000)
    signature = signers.detach_sign(data).encode()
    verify_detached(data, signature, keyrings, where="repomd.xml")
    with pytest.raises(VerifyError, match="changed after it was signed"):
        verify_detached(data + b"x", signature, keyrings, where="repomd.xml")
    with pytest.raises(VerifyError, match="no armoured OpenPGP signature"):
        verify_detached(data, b"<html>", keyrings, where="repomd.xml")


@settings(
    max_examples=10, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(
    lines=st.lists(
        st.text(st.characters(codec="utf-8", categories=["L", "N", "P", "S"]), max_size=40),
        min_size=1,
        max_size=8,
    )
)
def test_any_lines(signing_key: Path, tmp_path: Path, lines: list[str]) -> None:
    signers = load_signers([str(signing_key)], tmp_path)
    text = "".join(f"{line}\n" for line in lines)
    assert _verified(signers.clear_sign(text), _keyring(signers, tmp_path)) == text
    assert signed_text(signers.clear_sign(text)) == text


def test_a_file_and_an_agent_sign_together(
    signing_key: Path, keys: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("GNUPGHOME", str(keys.home))
    both = load_signers([str(signing_key), "agent:<archive@tegu.invalid>"], tmp_path)
    file_only = load_signers([str(signing_key)], tmp_path)
    signed = both.clear_sign(TEXT)
    assert signed.count("BEGIN PGP SIGNATURE") == 1
    assert _verified(signed, _keyring(both, tmp_path)) == TEXT
    # Each client knows one of them only.
    assert _verified(signed, _keyring(file_only, tmp_path)) == TEXT
    assert _verified(signed, [str(keys.home / "archive.gpg")]) == TEXT
    data = b"repomd"
    verify_detached(
        data, both.detach_sign(data).encode(), [str(keys.home / "archive.gpg")], where="repomd.xml"
    )


def test_an_agent_without_the_key(
    keys: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("GNUPGHOME", str(keys.home))
    with pytest.raises(RepositoryError, match="gpg has no key 0123456789ABCDEF"):
        load_signers(["agent:0123456789ABCDEF"], tmp_path)


def test_an_agent_with_the_public_half_only(
    keys: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import subprocess

    home = tmp_path / "gnupg"
    home.mkdir(mode=0o700)
    gpg = ["gpg", "--batch", "--quiet", "--homedir", str(home)]
    subprocess.run([*gpg, "--import", str(keys.home / "archive.gpg")], check=True)
    monkeypatch.setenv("GNUPGHOME", str(home))
    signers = load_signers(["agent:<archive@tegu.invalid>"], tmp_path)
    try:
        with pytest.raises(RepositoryError, match="does not sign with"):
            signers.clear_sign(TEXT)
    finally:
        subprocess.run(["gpgconf", "--homedir", str(home), "--kill", "all"], capture_output=True)


def test_a_key_with_a_passphrase(
    keys: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import subprocess

    home = tmp_path / "gnupg"
    home.mkdir(mode=0o700)
    gpg = ["gpg", "--batch", "--quiet", "--homedir", str(home), "--pinentry-mode", "loopback"]
    gpg += ["--passphrase", "open sesame"]
    made = ["--quick-generate-key", "Locked <l@tegu.invalid>", "ed25519", "sign", "1y"]
    subprocess.run([*gpg, *made], check=True)
    secret = subprocess.run([*gpg, "--export-secret-keys"], check=True, capture_output=True).stdout
    subprocess.run(["gpgconf", "--homedir", str(home), "--kill", "all"], capture_output=True)
    path = tmp_path / "locked.key"
    path.write_bytes(secret)
    for passphrase in ("", "wrong"):
        monkeypatch.setenv("TEGU_REPO_PASSPHRASE", passphrase)
        with pytest.raises(RepositoryError, match="the key cannot be used"):
            load_signers([str(path)], tmp_path)
    monkeypatch.setenv("TEGU_REPO_PASSPHRASE", "open sesame")
    signers = load_signers([str(path)], tmp_path)
    assert _verified(signers.clear_sign(TEXT), _keyring(signers, tmp_path)) == TEXT


def test_what_is_no_key_or_cannot_be_used(signing_key: Path, tmp_path: Path) -> None:
    (tmp_path / "text").write_text("no key")
    with pytest.raises(RepositoryError, match="no OpenPGP private key"):
        load_signers(["text"], tmp_path)
    signers = load_signers([str(signing_key)], tmp_path)
    (tmp_path / "public").write_bytes(signers.public)
    with pytest.raises(RepositoryError, match="the key cannot be used"):
        load_signers(["public"], tmp_path)
    with pytest.raises(UnsupportedError, match="PKCS#11"):
        load_signers(["pkcs11:token=x"], tmp_path)
    with pytest.raises(RepositoryError, match="expired on"):
        load_signers([str(signing_key)], tmp_path, now=datetime.now(UTC) + timedelta(days=101))


def test_a_key_is_never_overwritten(tmp_path: Path) -> None:
    path = tmp_path / "private/a.key"
    make_key(path, "Acme <a@tegu.invalid>", days=10)
    assert path.stat().st_mode & 0o777 == 0o600
    with pytest.raises(RepositoryError, match="there already"):
        make_key(path, "Acme <a@tegu.invalid>", days=10)
