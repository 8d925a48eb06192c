"""Signatures for Secure Boot: made by the tools of a lock, the same each time, and checked."""

from __future__ import annotations

from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import rsa
from tests.boot.test_boot_loader import make as make_uki

from tegu.definition.models import Definition, Image, Kernel, System
from tegu.errors import BuildError
from tegu.image.programs import Tools
from tegu.image.secure_boot import sign_program
from tegu.image.tools import locked_tools
from tegu.linux import run_isolated
from tegu.packages import Lock, fetch_all, make_lock
from tegu.process import CommandError
from tegu.store import Store

pytestmark = pytest.mark.slow
MOMENT = 1_790_000_000


@pytest.fixture(scope="module")
def tools_lock(shared_store: Store) -> Lock:
    definition = Definition(
        system=System(name="tiny", version="1"),
        kernel=Kernel(package="none"),  # type: ignore[arg-type]
        image=Image(formats=["tar"]),
    )
    lock = make_lock(definition, shared_store, tools=("faketime", "sbsigntool"))
    fetch_all(lock.tools, lock, shared_store)
    return lock


@pytest.fixture(scope="module")
def keys(tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[Path, Path]]:
    directory = tmp_path_factory.mktemp("keys")
    found = {}
    for name in ("ours", "theirs"):
        key, certificate = directory / f"{name}.key", directory / f"{name}.pem"
        private = rsa.generate_private_key(65537, 2048)
        who = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, name)])
        made = (
            x509.CertificateBuilder(who, who, private.public_key(), x509.random_serial_number())
            .not_valid_before(datetime(2026, 1, 1, tzinfo=UTC))
            .not_valid_after(datetime(2046, 1, 1, tzinfo=UTC))
            .sign(private, hashes.SHA256())
        )
        key.write_bytes(
            private.private_bytes(
                serialization.Encoding.PEM,
                serialization.PrivateFormat.PKCS8,
                serialization.NoEncryption(),
            )
        )
        certificate.write_bytes(made.public_bytes(serialization.Encoding.PEM))
        found[name] = (key, certificate)
    return found


def isolated(store: Store, lock: Lock, work: Callable[[Tools, Path], Any]) -> Any:
    def inside(_: Callable[[Any], None]) -> Any:
        with (
            store.scratch() as scratch,
            locked_tools(store, lock.tools, scratch, timestamp=MOMENT) as tools,
        ):
            place = scratch / "place"
            place.mkdir()
            return work(tools, place)

    return run_isolated(inside)


def test_a_program_is_signed_the_same_each_time(
    shared_store: Store, tools_lock: Lock, keys: dict[str, tuple[Path, Path]]
) -> None:
    program = make_uki()

    def work(tools: Tools, place: Path) -> tuple[bytes, bytes, str, bool]:
        one = sign_program(program, keys["ours"], tools, place, MOMENT)
        two = sign_program(program, keys["ours"], tools, place, MOMENT)
        (place / "signed").write_bytes(one)
        for name, (_, certificate) in keys.items():
            (place / f"{name}.pem").write_bytes(certificate.read_bytes())
        verify = ["sbverify", "--cert"]
        said = tools.run([*verify, place / "ours.pem", place / "signed"], binds=[place])
        try:
            tools.run([*verify, place / "theirs.pem", place / "signed"], binds=[place])
        except CommandError:
            return one, two, said.stdout + said.stderr, True
        return one, two, said.stdout + said.stderr, False

    one, two, said, refused = isolated(shared_store, tools_lock, work)
    assert one == two
    assert len(one) > len(program)
    assert "Signature verification OK" in said
    assert refused
    assert isolated(shared_store, tools_lock, lambda _, place: list(place.iterdir())) == []


def test_what_cannot_sign_is_said(
    shared_store: Store, tools_lock: Lock, keys: dict[str, tuple[Path, Path]], tmp_path: Path
) -> None:
    wrong = tmp_path / "wrong.key"
    wrong.write_text("no key\n")
    certificate = keys["ours"][1]

    def attempt(key: Path, program: bytes = make_uki()) -> str:
        def work(tools: Tools, place: Path) -> str:
            try:
                sign_program(program, (key, certificate), tools, place, MOMENT)
            except BuildError as e:
                return e.message
            return "signed"

        result: str = isolated(shared_store, tools_lock, work)
        return result

    assert attempt(wrong).startswith(f"cannot sign with {wrong}")
    assert attempt(tmp_path / "none").startswith("cannot read")
    assert attempt(keys["ours"][0], b"no program").startswith("cannot sign with")
