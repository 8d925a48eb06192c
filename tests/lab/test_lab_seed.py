"""Seeds and user-data: taken when cloud-init takes them, refused with a reason when not."""

from __future__ import annotations

import gzip
import json
from email.mime.multipart import MIMEMultipart
from email.mime.text import MIMEText
from pathlib import Path

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from tegu.errors import UsageError
from tegu.lab.seed import Seed, read_public_key
from tegu.lab.ssh import make_key
from tegu.lab.userdata import (
    LIMIT,
    check_meta_data,
    check_network_config,
    check_user_data,
    cloud_config,
)

KEY = "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIL4w79xZLEKYzgKvuGJRvbKSc/v8z6L6M6Tc5L0OBDQe me@here"


def packed(data: bytes) -> bytes:
    return gzip.compress(data, mtime=0)  # the same for every worker: it names the test


def multipart(*parts: tuple[str, str]) -> bytes:
    message = MIMEMultipart(boundary="=limit=")
    for kind, text in parts:
        message.attach(MIMEText(text, kind))
    return message.as_bytes()


@pytest.mark.parametrize(
    ("data", "kind"),
    [
        (b"#cloud-config\npackages: [vim]\n", "cloud-config"),
        (b"#cloud-config\n", "cloud-config"),
        (b"#!/bin/sh\necho hi\n", "script"),
        (b"#include\nhttp://mirror.example/x\n", "include"),
        (b"#cloud-boothook\nx", "boothook"),
        (b"## template: jinja\n#cloud-config\n{% if x %}", "template"),
        (b"#cloud-config-archive\n- type: text/cloud-config\n", "archive"),
        (packed(b"#cloud-config\na: 1\n"), "cloud-config"),
        (
            multipart(("cloud-config", "#cloud-config\na: 1\n"), ("x-shellscript", "#!/bin/sh")),
            "mime",
        ),
    ],
)
def test_user_data_that_cloud_init_takes(data: bytes, kind: str) -> None:
    assert check_user_data(data) == kind


@pytest.mark.parametrize(
    ("data", "said"),
    [
        (b"", "is empty"),
        (b"  \n", "is empty"),
        (b"packages: [vim]\n", "cloud-init would ignore this"),
        (b"# cloud-config\na: 1\n", "cloud-init would ignore this"),
        (b"\xef\xbb\xbf#cloud-config\n", "cloud-init would ignore this"),
        (b"#cloud-config\na: [1\n", "ud:3: not YAML"),
        (b"#cloud-config\nok: 1\n\tb: 2\n", "ud:3: not YAML"),
        (b"#cloud-config\n- a\n- b\n", "must hold `key: value` lines, not a list"),
        (b"#cloud-config\njust words\n", "not a str"),
        (b"#cloud-config-archive\na: 1\n", "must be a list"),
        (b"#cloud-config\na: 2001-99-99\n", "not YAML"),
        (b"#cloud-config\nx: \xff\xfe\n", "byte 17 is not UTF-8"),
        (b"#!/bin/sh\n" + b"x" * LIMIT, "are more than the"),
        (b"\x1f\x8bnot gzip at all", "damaged gzip"),
        (packed(b"#cloud-config\n")[:-6], "damaged gzip"),
        (packed(b"#!/bin/sh\n" + b"\0" * (LIMIT * 40)), "are more than the"),
        (packed(packed(b"#cloud-config\n")), "gzip within gzip"),
        (b"Content-Type: multipart/mixed; boundary=x\n\nnothing\n", "boundary"),
        (multipart(("cloud-config", "- a\n")), "part 1: must hold"),
    ],
)
def test_user_data_that_it_would_not(data: bytes, said: str) -> None:
    with pytest.raises(UsageError) as caught:
        check_user_data(data, "ud")
    assert said in caught.value.message
    assert caught.value.message.startswith("ud")


@given(
    st.binary(max_size=400) | st.text(max_size=300).map(lambda t: f"#cloud-config\n{t}".encode())
)
@settings(max_examples=300, deadline=None)
def test_any_bytes_are_taken_or_refused(data: bytes) -> None:
    for check in (check_user_data, check_meta_data, check_network_config):
        try:
            check(data)
        except UsageError as e:
            assert "\n" not in e.message


def test_network_config_has_a_version() -> None:
    check_network_config(b"version: 2\nethernets: {}\n")
    check_network_config(b"network:\n  version: 1\n")
    for bad in (b"version: 3\n", b"a: 1\n", b"network: 3\n", b"[]"):
        with pytest.raises(UsageError):
            check_network_config(bad)


def test_the_files_of_a_seed() -> None:
    seed = Seed(user="alice", hostname="web", instance="i-1", keys=(KEY,))
    files = seed.files()
    meta = yaml.safe_load(files["meta-data"])
    assert meta == {"instance-id": "i-1", "local-hostname": "web", "public-keys": [KEY]}
    assert cloud_config(files["vendor-data"]) == {"user": {"name": "alice"}}
    assert check_user_data(files["user-data"]) == "cloud-config"
    assert "network-config" not in files


def test_ones_own_data_wins() -> None:
    seed = Seed(
        hostname="web",
        instance="i",
        user_data=b"#cloud-config\nuser: {name: carol}\n",
        meta_data=b"instance-id: mine\nregion: here\n",
        network_config=b"version: 2\n",
    )
    files = seed.files()
    meta = json.loads(files["meta-data"])
    assert (meta["instance-id"], meta["region"], meta["local-hostname"]) == ("mine", "here", "web")
    assert files["user-data"].startswith(b"#cloud-config\nuser:")
    assert files["network-config"] == b"version: 2\n"
    assert seed.login_user() == "carol"


def test_the_login_user_is_ours_unless_renamed() -> None:
    assert Seed().login_user() == "tegu"
    assert Seed(user="bob", user_data=b"#cloud-config\nusers: [default, x]\n").login_user() == "bob"
    assert Seed(user_data=b"#cloud-config\nuser: dave\n").login_user() == "dave"
    assert Seed(user_data=b"#!/bin/sh\n").login_user() == "tegu"


def test_root_is_let_in_when_asked_for() -> None:
    assert cloud_config(Seed(user="root").files()["vendor-data"])["disable_root"] is False


def test_the_same_seed_gives_the_same_volume(tmp_path: Path) -> None:
    seed = Seed(hostname="web", instance="i", keys=(KEY,))
    seed.write(tmp_path / "a")
    seed.write(tmp_path / "b")
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()
    assert (tmp_path / "a").stat().st_mode & 0o777 == 0o600


@pytest.mark.parametrize(
    "wrong",
    [
        {"user": "Alice"},
        {"user": "a b"},
        {"user": ""},
        {"hostname": "-x"},
        {"hostname": "a..b"},
        {"hostname": "a_b"},
        {"hostname": "x" * 64},
        {"keys": ("ssh-rsa",)},
        {"keys": (f"{KEY}\nmore",)},
        {"user_data": b"nonsense"},
        {"meta_data": b"- a\n"},
        {"network_config": b"version: 9\n"},
    ],
)
def test_a_seed_that_cannot_be(wrong: dict[str, object]) -> None:
    with pytest.raises(UsageError):
        Seed(**wrong)  # type: ignore[arg-type]


def test_keys_are_read(tmp_path: Path) -> None:
    made = make_key(tmp_path / "id", "me")
    assert read_public_key(tmp_path / "id.pub") == made
    assert read_public_key(tmp_path / "id") == made
    with pytest.raises(UsageError, match="cannot read the key"):
        read_public_key(tmp_path / "none")
    (tmp_path / "bad.pub").write_text("hello\n")
    with pytest.raises(UsageError, match="is not an OpenSSH public key"):
        read_public_key(tmp_path / "bad.pub")
