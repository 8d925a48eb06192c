"""Taking packages in: what is refused, and that nothing of it stays."""

from __future__ import annotations

import fcntl
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tegu.cli import main
from tegu.errors import RepositoryError, StoreError, TeguError, UsageError, VerifyError
from tegu.packages.repo import Repository, add, publish, remove
from tegu.packages.repo.rpm_item import read_rpm


def _add(repo: Repository, *paths: Path, channel: str = "dev", **options: Any) -> Any:
    with repo.locked():
        return add(repo, channel, paths, **options)


def _pool(repo: Repository) -> list[str]:
    return sorted(p.name for p in (repo.public / "pool").rglob("*") if p.is_file())


def _nothing_stays(repo: Repository) -> None:
    assert _pool(repo) == []
    assert list(repo.tmp.iterdir()) == []
    assert repo.catalogue.members("dev") == []


def test_what_is_given_twice_or_known_is_in_once(repo: Repository, deb: Any) -> None:
    one = deb("hello")
    added = _add(repo, one, one)
    assert [i.name for i in added.new] == ["hello"]
    again = _add(repo, one, channel="stable")
    assert (len(again.new), len(again.known)) == (0, 1)
    assert _pool(repo) == ["hello_1_all.deb"]


def test_a_directory_is_searched(repo: Repository, deb: Any, tmp_path: Path) -> None:
    folder = deb("hello").parent
    deb("other")
    assert len(_add(repo, folder).new) == 2
    (tmp_path / "empty").mkdir()
    with pytest.raises(UsageError, match=r"no \.deb or \.rpm"):
        _add(repo, tmp_path / "empty")
    with pytest.raises(UsageError, match="not there"):
        _add(repo, tmp_path / "nowhere.deb")


def test_the_same_version_with_other_content_is_refused(repo: Repository, deb: Any) -> None:
    with pytest.raises(RepositoryError, match=r"hello 1 \(all\) has SHA-256"):
        _add(repo, deb("other"), deb("hello", text="a"), deb("hello", text="b"))
    _nothing_stays(repo)
    _add(repo, deb("hello", text="a"))
    with pytest.raises(RepositoryError, match="the repository has that version"):
        _add(repo, deb("hello", text="b"), channel="stable")
    with repo.locked():
        remove(repo, "dev", ["hello"])
    with pytest.raises(RepositoryError, match="the repository has that version"):
        _add(repo, deb("hello", text="b"))


def test_versions_that_differ_by_epoch_only_have_files_of_their_own(
    repo: Repository, deb: Any
) -> None:
    _add(repo, deb("hello", "1"), deb("hello", "1:1", text="newer"))
    assert len(_pool(repo)) == 2
    with repo.locked():
        publish(repo)
    from tegu.packages.repo.verification import verify_own

    assert verify_own(repo).problems == []


def test_a_version_does_not_go_backwards_unless_allowed(repo: Repository, deb: Any) -> None:
    _add(repo, deb("hello", "1.10"), deb("hello", "1.11"))
    with pytest.raises(RepositoryError, match=r"hello 1\.9 \(all\) would go backwards: dev has"):
        _add(repo, deb("hello", "1.9"))
    _add(repo, deb("hello", "1.9"), channel="stable")
    added = _add(repo, deb("hello", "1.9"), allow_downgrade=True)
    assert {i.version for i in added.left} == {"1.10", "1.11"}
    assert [i.version for i in repo.catalogue.members("dev")] == ["1.9"]


@pytest.mark.parametrize("keep", [4, 70, 200, -1])
def test_a_truncated_deb(repo: Repository, deb: Any, tmp_path: Path, keep: int) -> None:
    path = tmp_path / "cut.deb"
    path.write_bytes(deb("hello").read_bytes()[:keep])
    with pytest.raises(VerifyError, match=r"/cut\.deb: "):
        _add(repo, deb("other"), path)
    _nothing_stays(repo)


def test_names_that_lead_elsewhere_are_refused(repo: Repository, tmp_path: Path) -> None:
    from tegu.packages.deb_write import write_deb

    for number, (key, value) in enumerate(
        [
            ("Package", "../../x"),
            ("Version", "1/../../x"),
            ("Architecture", "../x"),
            ("Source", "../x"),
            ("Version", "1 2"),
        ]
    ):
        control = {
            "Package": "hello",
            "Version": "1",
            "Architecture": "all",
            "Maintainer": "Nobody <nobody@tegu.invalid>",
            key: value,
        }
        path = tmp_path / f"{number}.deb"
        write_deb(path, {**control, "Description": "x"}, [], timestamp=0)
        with pytest.raises(RepositoryError, match=f"{key}: "):
            _add(repo, path)
    _nothing_stays(repo)


def test_a_package_cannot_lie_about_where_it_is(repo: Repository, tmp_path: Path) -> None:
    from tegu.packages.deb_write import write_deb

    path = tmp_path / "liar.deb"
    control = {
        "Package": "liar",
        "Version": "1",
        "Architecture": "all",
        "Maintainer": "Nobody <nobody@tegu.invalid>",
        "Filename": "../../etc/passwd",
        "SHA256": "0" * 64,
        "Description": "x",
    }
    write_deb(path, control, [], timestamp=0)
    _add(repo, path)
    item = repo.catalogue.members("dev", meta=True)[0]
    assert b"passwd" not in item.meta
    assert b"SHA256" not in item.meta


def test_a_damaged_rpm(repo: Repository, rpm: Any, tmp_path: Path) -> None:
    whole = rpm("hello").read_bytes()
    for number, (data, why) in enumerate(
        [
            (b"no package", "not an RPM package"),
            (whole[:50], "damaged or cut off"),
            (whole[:120], "cut short in its signature header"),
            (whole[:-5], "cut short"),
            (whole + b"more", "longer than it says"),
        ]
    ):
        path = tmp_path / f"{number}.rpm"
        path.write_bytes(data)
        with pytest.raises(VerifyError, match=why):
            _add(repo, path)
    _nothing_stays(repo)


@given(st.binary(max_size=400))
def test_any_bytes_for_an_rpm(data: bytes) -> None:
    import tempfile

    with tempfile.NamedTemporaryFile(suffix=".rpm") as f:
        f.write(b"\xed\xab\xee\xdb" + bytes(92) + b"\x8e\xad\xe8\x01" + data)
        f.flush()
        with pytest.raises(TeguError):
            read_rpm(Path(f.name), "0" * 64, 0)


def test_two_at_once(repo: Repository, deb: Any, capsys: pytest.CaptureFixture[str]) -> None:
    package = str(deb("hello"))
    command = [sys.executable, "-m", "tegu", "repo", "publish", "--repo", str(repo.root)]
    with repo.locked():
        done = subprocess.run(command, capture_output=True, text=True)
        assert done.returncode == RepositoryError.exit_code
        assert f"another process is changing it (pid {os.getpid()})" in done.stderr
        assert main(["repo", "add", package, "--repo", str(repo.root)]) != 0
    assert "nothing was changed" in capsys.readouterr().err
    assert main(["repo", "add", package, "--repo", str(repo.root)]) == 0


def test_what_a_killed_run_left_is_removed_by_the_next(repo: Repository, deb: Any) -> None:
    _add(repo, deb("hello"))
    (repo.tmp / "left").mkdir()
    (repo.tmp / "left/1").write_text("x")
    orphan = repo.public / "pool/deb/o/orphan/orphan_1_all.deb"
    orphan.parent.mkdir(parents=True)
    orphan.write_text("x")
    handle = os.open(repo.root / "lock", os.O_RDWR)
    os.pwrite(handle, b"999999\n", 0)  # as a process leaves it that could not clean up
    os.close(handle)
    with repo.locked():
        pass
    assert _pool(repo) == ["hello_1_all.deb"]
    assert list(repo.tmp.iterdir()) == []
    with (repo.root / "lock").open() as f:
        fcntl.flock(f, fcntl.LOCK_EX | fcntl.LOCK_NB)
        assert f.read() == ""


def test_a_full_disk(deb: Any, tmp_path: Path) -> None:
    """A real one: a small tmpfs in a mount namespace of its own."""
    if os.geteuid() != 0 or shutil.which("unshare") is None:
        pytest.skip("needs root and unshare: to mount a small file system")
    small = tmp_path / "small"
    small.mkdir()
    big = tmp_path / "big.deb"
    from tegu.packages.deb_write import DebEntry, write_deb

    write_deb(
        big,
        {
            "Package": "big",
            "Version": "1",
            "Architecture": "all",
            "Maintainer": "Nobody <nobody@tegu.invalid>",
            "Description": "large",
        },
        [DebEntry("/usr/share/big", os.urandom(3 << 20))],
        timestamp=0,
    )
    tegu = f"{sys.executable} -m tegu repo"
    script = f"""
        mount -t tmpfs -o size=2m none {small}
        {tegu} init {small}/r --name acme || exit 90
        {tegu} add --repo {small}/r {deb("hello")} --publish || exit 91
        cp {small}/r/public/dists/dev/InRelease {tmp_path}/before
        {tegu} add --repo {small}/r {big} --publish
        code=$?
        cmp {small}/r/public/dists/dev/InRelease {tmp_path}/before || exit 92
        [ -z "$(ls -A {small}/r/tmp)" ] || exit 93
        {tegu} verify --repo {small}/r || exit 94
        exit $code
    """
    done = subprocess.run(["unshare", "-m", "sh", "-c", script], capture_output=True, text=True)
    assert done.returncode == StoreError.exit_code, done.stderr
    assert "no space left on the disk" in done.stderr
    assert "Traceback" not in done.stderr


def test_what_the_catalogue_does_not_take_leaves_the_pool(
    repo: Repository, deb: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fails(self: object, items: object) -> None:
        raise RepositoryError("state.db: the disk is full")

    monkeypatch.setattr("tegu.packages.repo.catalogue.Catalogue.put", fails)
    with pytest.raises(RepositoryError, match="the disk is full"):
        _add(repo, deb("hello"))
    _nothing_stays(repo)
