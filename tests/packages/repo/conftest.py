"""A repository of our own, packages for it, and the clients that read it: apt and dnf."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tegu.packages.deb_write import DebEntry, write_deb
from tegu.packages.repo import Repository, make_key

MakeDeb = Callable[..., Path]
MakeRpm = Callable[..., Path]
_EPOCH = 1767225600  # seconds: 2026-01-01


@pytest.fixture(scope="session")
def signing_key(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("signing") / "signing.key"
    make_key(path, "Acme <acme@tegu.invalid>", days=100)
    return path


@pytest.fixture
def repo(tmp_path: Path, signing_key: Path) -> Iterator[Repository]:
    made = Repository.create(
        tmp_path / "repo",
        name="acme",
        channels=["dev", "stable"],
        architectures=["amd64"],
        signers=[str(signing_key)],
    )
    with made:
        yield made


@pytest.fixture
def deb(tmp_path: Path) -> MakeDeb:
    """Return a function that makes a package; `text` is what is in it."""
    folder = tmp_path / "debs"

    def make(name: str, version: str = "1", *, text: str = "hello", arch: str = "all") -> Path:
        folder.mkdir(exist_ok=True)
        path = folder / f"{name}_{version.replace(':', '%3a')}_{arch}_{text}.deb"
        control = {
            "Package": name,
            "Version": version,
            "Architecture": arch,
            "Maintainer": "Nobody <nobody@tegu.invalid>",
            "Description": f"the package {name}\n It says {text}.",
        }
        content = [DebEntry(f"/usr/share/{name}/text", f"{text}\n".encode())]
        return write_deb(path, control, content, timestamp=_EPOCH, compression="gz")

    return make


@pytest.fixture(scope="session")
def rpm(tmp_path_factory: pytest.TempPathFactory) -> MakeRpm:
    """Return a function that makes an RPM package with rpmbuild."""
    if shutil.which("rpmbuild") is None:
        pytest.skip("rpmbuild is not installed: no RPM packages to publish")
    home = tmp_path_factory.mktemp("rpm")

    def make(name: str, version: str = "1", release: str = "1") -> Path:
        spec = home / f"{name}.spec"
        spec.write_text(
            f"Name: {name}\nVersion: {version}\nRelease: {release}\nSummary: About {name}\n"
            "License: Apache-2.0\nBuildArch: noarch\n%description\nText.\n"
            f"%install\nmkdir -p %{{buildroot}}/usr/share/{name}\n"
            f"echo hello > %{{buildroot}}/usr/share/{name}/text\n"
            f"%files\n/usr/share/{name}/text\n"
        )
        done = subprocess.run(
            ["rpmbuild", "-bb", "--define", f"_topdir {home}/top", str(spec)],
            capture_output=True,
            text=True,
        )
        assert done.returncode == 0, done.stderr
        return home / f"top/RPMS/noarch/{name}-{version}-{release}.noarch.rpm"

    return make


class Apt:
    """The machine's own apt, with directories, sources and settings of its own."""

    def __init__(self, home: Path, url: str, keyring: Path, suite: str) -> None:
        self.home = home
        for name in ("lists/partial", "cache/archives/partial", "state", "debs"):
            (home / name).mkdir(parents=True)
        (home / "status").touch()
        (home / "sources.list").write_text(f"deb [signed-by={keyring}] {url} {suite}\n")
        options = {
            "Dir::Etc::sourcelist": home / "sources.list",
            "Dir::Etc::sourceparts": "/dev/null",
            "Dir::State": home / "state",
            "Dir::State::Lists": home / "lists",
            "Dir::State::status": home / "status",
            "Dir::Cache": home / "cache",
            "APT::Architecture": "amd64",
            "APT::Architectures::": "amd64",
            "APT::Sandbox::User": "root",
            "Acquire::Languages": "none",
            "Acquire::Check-Valid-Until": "true",
            "Acquire::Check-Date": "true",
            "Acquire::Retries": "0",
            "Acquire::http::Proxy": "DIRECT",
        }
        self.options = [word for k, v in options.items() for word in ("-o", f"{k}={v}")]

    def run(self, *arguments: str, cwd: Path | None = None) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            ["apt-get", *self.options, *arguments],
            capture_output=True,
            text=True,
            cwd=cwd,
            env={**os.environ, "LC_ALL": "C"},
        )

    def update(self) -> str:
        """Read the indexes; returns "" or what apt says is wrong."""
        done = self.run("--error-on=any", "update")
        return "" if done.returncode == 0 else done.stderr + done.stdout

    def download(self, package: str) -> str:
        """Fetch a package; returns "" or what apt says is wrong."""
        done = self.run("download", package, cwd=self.home / "debs")
        return "" if done.returncode == 0 else done.stderr + done.stdout

    def has(self) -> set[str]:
        """Return the newest of each package that the indexes have, as `name=version`."""
        done = subprocess.run(
            ["apt-cache", *self.options, "dumpavail"], capture_output=True, text=True
        )
        found = set()
        for entry in done.stdout.split("\n\n"):
            fields = dict(x.split(": ", 1) for x in entry.splitlines() if ": " in x)
            if fields:
                found.add(f"{fields['Package']}={fields['Version']}")
        return found


@pytest.fixture
def apt(tmp_path: Path) -> Callable[..., Apt]:
    """Return a function that makes a client of a served repository; each is a new machine."""
    if shutil.which("apt-get") is None:
        pytest.skip("there is no apt-get here")
    made = 0

    def make(
        repo: Repository,
        suite: str = "stable",
        *,
        url: str | None = None,
        component: str = "main",
    ) -> Apt:
        nonlocal made
        made += 1
        keyring = repo.public / "keyring.asc"
        return Apt(
            tmp_path / f"apt{made}", url or repo.public.as_uri(), keyring, f"{suite} {component}"
        )

    return make
