"""Those who publish: Tegu, aptly, reprepro, createrepo_c; each with a signing key and a home."""

from __future__ import annotations

import os
import shlex
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from bench.common import Usage, measure

from tegu.process import run

__all__ = ["Aptly", "Createrepo", "Gpg", "Peer", "Reprepro", "Tegu"]


class Gpg:
    """A key in a GnuPG home of its own, for those who sign with gpg."""

    def __init__(self, home: Path) -> None:
        self.home = home
        home.mkdir(mode=0o700)
        self.env = {**os.environ, "GNUPGHOME": str(home)}
        self._gpg("--quick-generate-key", "Bench <bench@tegu.invalid>", "ed25519", "sign", "1y")
        listed = self._gpg("--with-colons", "--list-keys")
        self.key = next(x.split(":")[9] for x in listed.splitlines() if x.startswith("fpr"))

    def _gpg(self, *arguments: str) -> str:
        options = ["--batch", "--pinentry-mode", "loopback", "--passphrase", ""]
        return run(["gpg", *options, *arguments], env=self.env).stdout

    def stop(self) -> None:
        """End the agent that gpg has started."""
        run(["gpgconf", "--kill", "all"], env=self.env, check=False)


@dataclass
class Peer:
    """One of them, with a directory of its own. Commands are shell scripts, run as one process."""

    home: Path
    gpg: Gpg
    name = ""

    def prepare(self) -> None:
        """Make an empty repository; not measured."""

    def first(self, folder: Path) -> str:
        """Return the commands that publish all packages of `folder` for the first time."""
        raise NotImplementedError

    def more(self, package: Path) -> str:
        """Return the commands that add one package."""
        raise NotImplementedError

    def measured(self, script: str) -> Usage:
        """Run the commands."""
        log = self.home.parent / f"{self.home.name}.log"
        return measure(["sh", "-ec", script], env=self.gpg.env, cwd=self.home, log=log)


class Tegu(Peer):
    """`tegu repo`, with a key file."""

    name = "Tegu"

    def prepare(self) -> None:
        init = ["init", str(self.home), "--name", "bench", "--channel", "stable", "--arch", "amd64"]
        run([*self._tegu(), *init])

    def first(self, folder: Path) -> str:
        return shlex.join([*self._tegu(), "add", str(folder), "--publish"])

    def more(self, package: Path) -> str:
        return shlex.join([*self._tegu(), "add", str(package), "--publish"])

    @staticmethod
    def _tegu() -> Sequence[str]:
        return [str(Path(sys.executable).with_name("tegu")), "repo"]


class Aptly(Peer):
    """aptly, without Contents files, which nobody else writes."""

    name = "aptly"

    def prepare(self) -> None:
        (self.home / "aptly.conf").write_text(f'{{"rootDir": "{self.home}/root"}}')
        options = ["-distribution=stable", "-component=main"]
        run([*self._aptly(), "repo", "create", *options, "bench"], env=self.gpg.env)

    def first(self, folder: Path) -> str:
        add = [*self._aptly(), "repo", "add", "bench", str(folder)]
        options = [*self._signed(), "-acquire-by-hash", "-architectures=amd64"]
        publish = [*self._aptly(), "publish", "repo", *options]
        return f"{shlex.join(add)}; {shlex.join([*publish, 'bench'])}"

    def more(self, package: Path) -> str:
        add = [*self._aptly(), "repo", "add", "bench", str(package)]
        return f"{shlex.join(add)}; {shlex.join([*self._aptly(), *self._update(), 'stable'])}"

    def _update(self) -> Sequence[str]:
        return ["publish", "update", *self._signed()]

    def _signed(self) -> Sequence[str]:
        return ["-batch", f"-gpg-key={self.gpg.key}", "-skip-contents"]

    def _aptly(self) -> Sequence[str]:
        return ["aptly", f"-config={self.home}/aptly.conf"]


class Reprepro(Peer):
    """reprepro, with its default indexes (Packages and Packages.gz)."""

    name = "reprepro"

    def prepare(self) -> None:
        (self.home / "conf").mkdir()
        (self.home / "conf/distributions").write_text(
            f"Codename: stable\nComponents: main\nArchitectures: amd64\nSignWith: {self.gpg.key}\n"
        )

    def first(self, folder: Path) -> str:
        return f"reprepro -b . includedeb stable {shlex.quote(str(folder))}/*.deb"

    def more(self, package: Path) -> str:
        return f"reprepro -b . includedeb stable {shlex.quote(str(package))}"


class Createrepo(Peer):
    """createrepo_c, which neither copies nor signs: cp and gpg do."""

    name = "createrepo_c"

    def first(self, folder: Path) -> str:
        return f"cp {shlex.quote(str(folder))}/*.rpm .; createrepo_c -q .; {self._sign()}"

    def more(self, package: Path) -> str:
        return f"cp {shlex.quote(str(package))} .; createrepo_c -q --update .; {self._sign()}"

    def _sign(self) -> str:
        return f"gpg --batch --yes -u {self.gpg.key} --armor --detach-sign repodata/repomd.xml"
