"""The real thing: the machine's own mirror, the distribution's own keys, apt beside us."""

from __future__ import annotations

import dataclasses
import os
import re
import resource
import shutil
import subprocess
from pathlib import Path

import pytest

from tegu.definition import Definition
from tegu.errors import FetchError, SolveError
from tegu.packages import Lock, fetch_all, make_lock, open_deb
from tegu.packages.index import load_indexes
from tegu.packages.sources import MACHINE_MIRROR, MACHINE_SECURITY, resolve, sources_of
from tegu.store import Store

pytestmark = pytest.mark.slow

KEYRING = Path("/usr/share/keyrings/debian-archive-keyring.gpg")
SETS = [
    ["systemd", "cloud-init", "openssh-server", "linux-image-cloud-amd64"],
    ["nginx", "postgresql"],
    ["systemd-sysv", "dbus", "chrony", "sudo", "vim-tiny", "systemd-resolved"],
    ["docker.io", "build-essential"],
]


@pytest.fixture(scope="module")
def real_store(tmp_path_factory: pytest.TempPathFactory) -> Store:
    try:
        resolve(MACHINE_MIRROR)
        resolve(MACHINE_SECURITY)
    except FetchError as e:
        pytest.skip(f"no mirror to test with: {e.message}")
    if not KEYRING.exists():
        pytest.skip("debian-archive-keyring is not installed")
    return Store(tmp_path_factory.mktemp("real-store"))


def definition(*install: str, **packages: object) -> Definition:
    return Definition.model_validate(
        {
            "system": {"name": "acme", "version": "1"},
            "kernel": {"package": "none"},
            "packages": {"install": list(install), "tegu": False, **packages},
        }
    )


@pytest.fixture(scope="module")
def locked(real_store: Store) -> Lock:
    return make_lock(definition(*SETS[0]), real_store)


def test_a_server_is_locked_and_its_packages_come(locked: Lock, real_store: Store) -> None:
    names = {p.name for p in locked.system}
    assert {"libc6", "systemd", "cloud-init", "openssh-server", "bash", "util-linux"} <= names
    assert "apt" not in names
    assert {p.name for p in locked.tools} >= {"dpkg", "mtools", "qemu-utils", "grub-pc-bin"}
    assert [r.uri for r in locked.repositories] == [
        MACHINE_MIRROR, MACHINE_MIRROR, MACHINE_SECURITY,
    ]  # fmt: skip
    some = [p for p in locked.system if p.name in ("base-files", "hostname", "tzdata")]
    fetch_all(some, locked, real_store)
    for package in some:
        path = real_store.blob(package.sha256)
        assert path is not None
        with open_deb(path) as opened:
            assert opened.fields["Version"] == package.version
            assert sum(1 for _ in opened.data()) > 3


def test_again_offline_it_is_the_same(locked: Lock, real_store: Store) -> None:
    wanted = definition(*SETS[0])
    assert make_lock(wanted, real_store, offline=True) == dataclasses.replace(locked)
    assert make_lock(wanted, real_store, previous=locked, update=True, offline=True) == locked


@pytest.mark.parametrize("names", SETS, ids=" ".join)
def test_apt_takes_the_same(names: list[str], locked: Lock, real_store: Store, tmp_path) -> None:
    """With the base named to apt as well, both take the same versions of the same packages."""
    if shutil.which("apt-get") is None:
        pytest.skip("apt is not installed")
    ours = make_lock(definition(*names), real_store, offline=True)
    base = [p.name for p in ours.system if p.priority == "required" or p.essential]
    theirs = _by_apt([*names, *base], real_store, tmp_path)
    assert {(p.name, p.version) for p in ours.system} == theirs


def _by_apt(names: list[str], store: Store, root: Path) -> set[tuple[str, str]]:
    for folder in ("state", "lists/partial", "cache/archives/partial", "etc"):
        (root / folder).mkdir(parents=True)
    (root / "state/status").touch()
    lines = []
    indexes = load_indexes(sources_of(definition()), store, "amd64", offline=True)
    for number, index in enumerate(indexes):
        (root / str(number)).mkdir()
        (root / str(number) / "Packages").symlink_to(index.files[0].path)
        lines.append(f"deb [trusted=yes] file:{root}/{number} ./\n")
    (root / "etc/sources.list").write_text("".join(lines))
    (root / "apt.conf").write_text(
        f'Dir "{root}"; Dir::State "{root}/state"; Dir::State::lists "{root}/lists";\n'
        f'Dir::State::status "{root}/state/status"; Dir::Cache "{root}/cache";\n'
        f'Dir::Etc "{root}/etc"; Dir::Etc::sourcelist "{root}/etc/sources.list";\n'
        'Dir::Etc::sourceparts "-"; APT::Architecture "amd64"; APT::Sandbox::User "";\n'
        '#clear APT::Architectures;\nAPT::Architectures { "amd64"; };\n'
        'APT::Install-Recommends "false"; Acquire::Languages "none";\n'
    )
    environment = {**os.environ, "APT_CONFIG": str(root / "apt.conf"), "LC_ALL": "C"}
    subprocess.run(["apt-get", "-q", "update"], env=environment, check=True, capture_output=True)
    done = subprocess.run(
        ["apt-get", "-s", "-q", "install", *names],
        env=environment,
        check=True,
        capture_output=True,
        text=True,
    )
    return {(m[1], m[2]) for m in re.finditer(r"^Inst ([^\s:]+)\S* \((\S+) ", done.stdout, re.M)}


def test_real_explanations(locked: Lock, real_store: Store) -> None:
    with pytest.raises(SolveError) as caught:
        make_lock(definition("nginx", exclude=["libc6"]), real_store, offline=True)
    assert "libc6 is excluded (packages.exclude)" in caught.value.message
    with pytest.raises(SolveError) as caught:
        make_lock(definition("initramfs-tools", "dracut"), real_store, offline=True)
    assert "conflicts with" in caught.value.message
    assert "you asked for initramfs-tools" in caught.value.message
    assert "you asked for dracut" in caught.value.message
    with pytest.raises(SolveError, match="there is no package opensh-server") as caught:
        make_lock(definition("opensh-server"), real_store, offline=True)
    assert "openssh-server" in (caught.value.hint or "")


def test_the_cost_of_a_warm_solve_is_printed(locked: Lock, real_store: Store, record_property):
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    make_lock(definition(*SETS[0]), real_store, offline=True)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    spent = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    record_property("cpu_seconds", spent)
    print(f"worker and gpgv: {spent:.3f} CPU seconds")
    assert spent > 0
