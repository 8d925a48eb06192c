"""`--sign-key` with the real kernel's own makefiles: a module is signed, the kernel has the key."""

from __future__ import annotations

import os
import struct
import subprocess
from pathlib import Path

import pytest

from tegu.errors import FetchError, UnsupportedError
from tegu.kernel import build as build_module
from tegu.kernel import load_recipe
from tegu.kernel.source import source_of
from tegu.kernel.toolchain import require_toolchain
from tegu.kernel.tree import _unpack
from tegu.store import Store

from .test_recipe import TOML, write

# Unpacking the source and preparing its tools take minutes on a busy machine.
pytestmark = [pytest.mark.slow, pytest.mark.timeout(3000)]

CONFIG = """\
# modules, signed
CONFIG_64BIT=y
CONFIG_MODULES=y
CONFIG_MODULE_SIG=y
CONFIG_MODULE_SIG_SHA256=y
"""
MAGIC = b"~Module signature appended~\n"


def openssl(*arguments: str | Path) -> bytes:
    done = subprocess.run(["openssl", *map(str, arguments)], capture_output=True)
    assert done.returncode == 0, done.stderr.decode()
    return done.stdout


def test_signed_and_trusted(
    shared_store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ours = load_recipe()
    try:
        require_toolchain()
        package = source_of(ours, shared_store, offline=True)
        source = build_module.fetched(package, shared_store, offline=True)
    except UnsupportedError as e:
        pytest.skip(f"no kernel can be built here: {e.message}")
    except FetchError as e:
        pytest.skip(f"the source of the kernel was never fetched here: {e.message}")
    user = [] if os.geteuid() == 0 else ["--user", "--map-root-user"]
    if subprocess.run(["unshare", *user, "--mount", "true"], capture_output=True).returncode != 0:
        pytest.skip("this machine refuses mount namespaces")

    key, certificate = tmp_path / "key.pem", tmp_path / "cert.pem"
    openssl(
        *("req", "-new", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "30"),
        *("-subj", "/CN=tegu test", "-keyout", key, "-out", certificate),
    )
    both = tmp_path / "both.pem"
    both.write_bytes(key.read_bytes() + certificate.read_bytes())
    recipe = load_recipe(write(tmp_path, TOML.replace("6.12.107-1", ours.version)))
    (tmp_path / "config/base.config").write_text(CONFIG)
    recipe = load_recipe(recipe.path)

    def make_tree(recipe: object, package: object, files: object, tree: Path, say: object) -> None:
        tree.mkdir()  # without the patches, which take longer than all the rest
        _unpack(source.files[source.package.file(".orig.tar.xz").name], tree, strip=1)
        _unpack(source.files[source.package.file(".debian.tar.xz").name], tree, strip=0)

    monkeypatch.setattr(build_module, "make_tree", make_tree)
    with shared_store.scratch() as scratch:
        made = build_module.configured(
            recipe, source, shared_store, scratch, log=tmp_path / "log", sign_key=both
        )
        assert made.misses == []
        kbuild = made.kbuild
        assert (kbuild.tree / "certs/tegu.pem").stat().st_mode & 0o777 == 0o600
        kbuild.make("modules_prepare")
        kbuild.make("certs/system_certificates.o")
        # What the kernel trusts from its start is our certificate, and the key is not in it.
        compiled = (kbuild.tree / "certs/system_certificates.o").read_bytes()
        der = openssl("x509", "-in", certificate, "-outform", "DER")
        assert der in compiled
        private = openssl("pkey", "-in", key, "-outform", "DER")
        assert private[-64:] not in compiled

        module = kbuild.tree / "drivers/tegu-test"
        module.mkdir()
        (module / "Makefile").write_text("obj-m := hello.o\n")
        (module / "hello.c").write_text(
            '#include <linux/module.h>\nMODULE_DESCRIPTION("x");\nMODULE_LICENSE("GPL");\n'
        )
        kbuild.make("M=drivers/tegu-test", "KBUILD_MODPOST_WARN=1", "modules")
        plain = (module / "hello.ko").read_bytes()
        kbuild.sign(module / "hello.ko")
        signed = (module / "hello.ko").read_bytes()

    # include/linux/module_signature.h: the module, a PKCS#7 message, its length, the magic.
    assert signed.startswith(plain)
    assert signed.endswith(MAGIC)
    _, _, kind, _, _, length = struct.unpack(">5B3xI", signed[: -len(MAGIC)][-12:])
    assert kind == 2
    signature = signed[: -len(MAGIC) - 12][-length:]
    assert len(plain) + length + 12 + len(MAGIC) == len(signed)
    (tmp_path / "content").write_bytes(plain)
    (tmp_path / "signature").write_bytes(signature)
    openssl(
        *("cms", "-verify", "-binary", "-inform", "DER", "-in", tmp_path / "signature"),
        *("-content", tmp_path / "content", "-certfile", certificate, "-nointern", "-noverify"),
        *("-out", tmp_path / "verified"),
    )
    assert (tmp_path / "verified").read_bytes() == plain
