"""Real builds of a small real system: kept, incremental, from scratch, with and without root."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tarfile
import tempfile
from collections.abc import Callable
from pathlib import Path

import pytest

from tegu.errors import BuildError, VerifyError
from tegu.image.unpack import KIND as PACKAGES
from tegu.store import Store

from .conftest import Small, image_hash, outcomes

pytestmark = pytest.mark.slow

Deb = Callable[..., Path]


def test_nothing_changed_means_nothing_done(small: Small) -> None:
    assert set(outcomes(small.build()).values()) == {"kept"}


def test_one_file_changed_keeps_the_packages(small: Small) -> None:
    before = image_hash(small.build())
    small.write(rest='[[file]]\npath = "/etc/issue"\ncontent = "small\\n"\n')
    built = small.build()
    assert outcomes(built) == {"tree": "kept", "system": "ran", "images": "ran"}
    assert "definition" in next(s.reason for s in built.steps if s.name == "system")
    assert image_hash(built) != before
    small.write()
    assert image_hash(small.build()) == before


def test_the_tree_is_what_the_definition_says(small: Small, tmp_path: Path) -> None:
    (tmp_path / "over/etc/deep").mkdir(parents=True)
    (tmp_path / "over/etc/deep/file").write_text("overlay")
    (tmp_path / "over/etc/deep/file").chmod(0o750)
    small.write(
        rest="""
[[file]]
path = "/etc/small/secret"
content = "s"
mode = "0600"
owner = "messagebus"
group = "adm"
[[file]]
path = "/etc/small/link"
symlink = "secret"
[[user]]
name = "amy"
authorized_keys = [
  "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIJOxqjDKk++H0Oy/Y5Bc4eATfIatIKaOe2de3rql29xP amy",
]
groups = ["adm"]
[units]
mask = ["systemd-timesyncd.service"]
enable = ["systemd-networkd.service"]
[sysctl]
"vm.swappiness" = 10
[hardening]
setuid = ["/usr/bin/su"]
[trim]
paths = ["/usr/share/doc", "/usr/share/man"]
keep = ["/usr/share/doc/dpkg/copyright"]
"""
        + f'[profile]\ndefault = "x"\n[profile.x]\noverlay = ["{tmp_path / "over"}"]\n'
    )
    built = small.build()
    path = built.images.directory(small.store) / "files" / built.images.images[0].name
    with tarfile.open(path) as tar:
        names = {m.name.removeprefix("./"): m for m in tar}

        def read(name: str) -> str:
            content = tar.extractfile(names[name])
            assert content is not None
            return content.read().decode()

        assert names["etc/small/secret"].mode == 0o600
        assert names["etc/small/secret"].gid == 4
        assert 200 <= names["etc/small/secret"].uid < 900
        assert names["etc/small/link"].linkname == "secret"
        assert names["etc/deep/file"].mode == 0o755
        assert "amy:x:1000:1000" in read("etc/passwd")
        assert names["home/amy/.ssh/authorized_keys"].uid == 1000
        assert names["home/amy/.ssh/authorized_keys"].mode == 0o600
        assert names["etc/systemd/system/systemd-timesyncd.service"].linkname == "/dev/null"
        wants = "etc/systemd/system/multi-user.target.wants/systemd-networkd.service"
        assert names[wants].issym()
        assert "vm.swappiness = 10" in read("etc/sysctl.d/90-definition.conf")
        setuid = sorted(n for n, m in names.items() if m.isfile() and m.mode & 0o6000)
        assert setuid == ["usr/bin/su"]
        docs = [n for n, m in names.items() if n.startswith("usr/share/doc/") and m.isfile()]
        assert docs == ["usr/share/doc/dpkg/copyright"]
        assert 'ID="small"' in read("usr/lib/os-release")
        assert names["etc/machine-id"].size == 0
        assert any(n.endswith(".pyc") for n in names)
        assert not [n for n in names if n.startswith("etc/ssh/ssh_host_")]


def test_a_package_more_equals_a_clean_build(small: Small, deb: Deb) -> None:
    path = deb(
        "tegu-test-more",
        "1",
        {"/usr/bin/tegu-test-more": "#!/bin/sh\n", "/etc/tegu-test-more.conf": "x\n"},
        scripts={
            "postinst": "#!/bin/sh\nset -e\nadduser --system --group --home /nonexistent "
            "--no-create-home _tegutest >/dev/null\nmkdir -p /var/lib/tegu-test-more\n"
            "chown _tegutest /var/lib/tegu-test-more\n"
        },
        conffiles=("/etc/tegu-test-more.conf",),
        fields={"Depends": "adduser"},
    )
    small.write(packages=f'local = ["{path}"]')
    added = small.build()
    step = next(s for s in added.steps if s.name == "tree")
    assert (step.outcome, step.reason) == ("incremental", "+tegu-test-more")
    clean = small.build(clean=True)
    assert outcomes(clean)["tree"] == "ran"
    assert added.tree_digest == clean.tree_digest
    assert image_hash(added) == image_hash(clean)


def test_a_package_that_takes_an_alternative_over_equals_a_clean_build(
    small: Small, deb: Deb
) -> None:
    # The name comes before util-linux, which has the other pager: from scratch it is the first.
    take = "update-alternatives --install /usr/bin/pager pager /usr/bin/a-tegu-pager 99"
    path = deb(
        "a-tegu-pager",
        "1",
        {"/usr/bin/a-tegu-pager": "#!/bin/sh\n", "/usr/share/man/man1/a-tegu-pager.1.gz": "x"},
        scripts={
            "postinst": f"#!/bin/sh\n{take} --slave /usr/share/man/man1/pager.1.gz pager.1.gz"
            " /usr/share/man/man1/a-tegu-pager.1.gz\n"
        },
    )
    small.write(packages=f'local = ["{path}"]')
    added = small.build()
    step = next(s for s in added.steps if s.name == "tree")
    assert (step.outcome, step.reason) == ("incremental", "+a-tegu-pager")
    clean = small.build(clean=True)
    assert added.tree_digest == clean.tree_digest
    assert image_hash(added) == image_hash(clean)


def test_a_newer_package_equals_a_clean_build(small: Small, deb: Deb) -> None:
    files = {"/usr/share/tegu-test/a": "1", "/usr/share/tegu-test/b": "1", "/etc/tegu-test": "1\n"}
    one = deb("tegu-test-data", "1", files, conffiles=("/etc/tegu-test",))
    small.write(packages=f'local = ["{one}"]')
    small.build()
    files = {"/usr/share/tegu-test/a": "2", "/usr/share/tegu-test/c": "2", "/etc/tegu-test": "2\n"}
    two = deb("tegu-test-data", "2", files, conffiles=("/etc/tegu-test",))
    small.write(packages=f'local = ["{two}"]')
    updated = small.build()
    step = next(s for s in updated.steps if s.name == "tree")
    assert (step.outcome, step.reason) == ("incremental", "~tegu-test-data")
    clean = small.build(clean=True)
    assert updated.tree_digest == clean.tree_digest
    assert image_hash(updated) == image_hash(clean)


@pytest.mark.parametrize(
    ("name", "script", "why"),
    [
        (
            "tegu-test-meddler",
            "echo changed >>/etc/environment\n",
            "configuring it changes /etc/environment",
        ),
        ("tegu-test-chmodder", "chmod 700 /usr/share/misc\n", "mode or owner of /usr/share/misc"),
    ],
)
def test_a_package_that_meddles_is_built_from_scratch(
    small: Small, deb: Deb, name: str, script: str, why: str
) -> None:
    # Two names: one package in two forms would be an update, which is refused for another reason.
    path = deb(name, "1", {}, scripts={"postinst": f"#!/bin/sh\n{script}"})
    small.write(packages=f'local = ["{path}"]')
    step = next(s for s in small.build().steps if s.name == "tree")
    assert step.outcome == "ran"
    assert why in step.reason


def test_a_package_that_others_look_for_is_built_from_scratch(small: Small, deb: Deb) -> None:
    path = deb("tegu-test-binfmt", "1", {"/usr/sbin/update-binfmts": "#!/bin/sh\n"})
    small.write(packages=f'local = ["{path}"]')
    step = next(s for s in small.build().steps if s.name == "tree")
    assert step.outcome == "ran"
    assert "mention update-binfmts" in step.reason


def test_a_script_that_fails_is_named_with_its_words(small: Small, deb: Deb) -> None:
    script = "#!/bin/sh\necho the flux is uncalibrated >&2\nexit 3\n"
    path = deb("tegu-test-broken", "1", {}, scripts={"postinst": script})
    small.write(packages=f'local = ["{path}"]')
    with pytest.raises(BuildError, match="tegu-test-broken") as caught:
        small.build()
    assert "the flux is uncalibrated" in caught.value.message


def test_scripts_have_no_network_and_not_this_machine(small: Small, deb: Deb) -> None:
    script = f"""#!/bin/sh
test ! -e {Path(__file__)} || exit 10
test "$(grep -c : /proc/net/dev)" = 1 || exit 11
test "$(id -u)" = 0 || exit 12
test ! -e /proc/{os.getpid()}/cwd || exit 13
"""
    path = deb("tegu-test-curious", "1", {}, scripts={"postinst": script})
    small.write(packages=f'local = ["{path}"]')
    small.build()


@pytest.mark.parametrize(
    ("rest", "why"),
    [
        (
            '[[file]]\npath = "/etc/x"\ncontent = ""\nowner = "nosuch"',
            "no user nosuch in the image",
        ),
        ('[[user]]\nname = "amy"\ngroups = ["nosuch"]', "no group nosuch in the image"),
        ('[units]\nenable = ["nosuch.service"]', "nosuch.service"),
        ('[[file]]\npath = "/etc"\ncontent = ""', "it is a directory in the image"),
        (
            '[[file]]\npath = "/var/log/thing"\ncontent = "trace"',
            "lint: /var/log/thing is a trace of the build",
        ),
    ],
)
def test_what_the_tree_can_not_have_is_one_line(small: Small, rest: str, why: str) -> None:
    small.write(rest=rest)
    with pytest.raises(BuildError, match=why):
        small.build()


# Damage


def _copy_store(small: Small, tmp_path: Path) -> Small:
    """A store of its own for a test that damages it: downloads shared by copy, nothing built."""
    store = Store(tmp_path / "own-store")
    _, lock = small.load()
    for package in lock.system + lock.tools:
        if (blob := small.store.blob(package.sha256)) is not None:
            target = store.blob_path(package.sha256)
            target.parent.mkdir(exist_ok=True)
            shutil.copyfile(blob, target)
    return Small(small.directory, store)


def test_a_rotten_store_is_found_and_made_good(small: Small, tmp_path: Path) -> None:
    own = _copy_store(small, tmp_path)
    good = own.build()
    _, lock = own.load()
    dpkg = next(p for p in lock.system if p.name == "dpkg")
    victim = own.store.root / PACKAGES / dpkg.sha256 / "root/usr/bin/dpkg-split"
    info = victim.stat()
    with victim.open("r+b") as f:
        f.seek(1000)
        f.write(b"rotten")
    os.utime(victim, ns=(info.st_atime_ns, info.st_mtime_ns))
    notes: list[object] = []
    own.write(rest='[[file]]\npath = "/etc/issue"\ncontent = "again"')
    built = own.build(on_event=notes.append)
    assert any("dpkg is damaged" in str(note) for note in notes)
    own.write()
    assert own.build().tree_digest == good.tree_digest
    assert built.tree_digest != good.tree_digest


def test_a_damaged_deb_is_dropped_and_never_unpacked(small: Small, tmp_path: Path) -> None:
    own = _copy_store(small, tmp_path)
    _, lock = own.load()
    package = next(p for p in lock.system if p.name == "base-files")
    blob = own.store.blob_path(package.sha256)
    blob.write_bytes(blob.read_bytes()[:-100])
    with pytest.raises(VerifyError, match="base-files"):
        own.build()
    assert own.store.blob(package.sha256) is None
    own.build()  # fetched again


def test_an_image_that_was_written_to_is_made_again(small: Small) -> None:
    small.write(rest='[[file]]\npath = "/etc/issue"\ncontent = "writable"')
    built = small.build()
    path = built.images.directory(small.store) / "files" / built.images.images[0].name
    path.chmod(0o644)
    path.write_bytes(b"not an image")
    again = small.build()
    assert outcomes(again)["images"] == "ran"
    assert image_hash(again) == image_hash(built)


INTERRUPTED = """
import os, signal, sys
from pathlib import Path
from tegu.image import build_locked, lock_for
from tegu.image.build import BuildOptions
from tegu.store import Store
store = Store(Path(sys.argv[1]))
file = Path(sys.argv[2])
definition, lock = lock_for(file, profile=None, lock_path=None, locked=True, store=store)
def on_event(event):
    if event == ("step", sys.argv[3]):
        os.system(f"sleep {sys.argv[4]} && kill -INT {os.getpid()} &")
build_locked(definition, lock, store, subject=file, on_event=on_event,
             options=BuildOptions(False, False))
"""


@pytest.mark.parametrize(
    ("step", "after"), [("tree", "0.5"), ("tree", "3"), ("system", "0.2"), ("images", "0.1")]
)
def test_an_interrupt_at_any_stage_leaves_nothing(
    small: Small, tmp_path: Path, step: str, after: str
) -> None:
    own = _copy_store(small, tmp_path)
    argv = [sys.executable, "-c", INTERRUPTED, own.store.root, own.directory / "tegu.toml", step]
    done = subprocess.run([*argv, after], capture_output=True, text=True, timeout=300)
    assert "KeyboardInterrupt" in done.stderr or done.returncode == 0
    assert list((own.store.root / "tmp").iterdir()) == []
    assert str(own.store.root) not in Path("/proc/mounts").read_text()
    assert set(outcomes(own.build()).values()) <= {"ran", "kept"}


def test_two_builds_at_once_on_one_store(small: Small, tmp_path: Path) -> None:
    own = _copy_store(small, tmp_path)
    command = [sys.executable, "-m", "tegu", "build", "-f", own.directory / "tegu.toml", "--json"]
    env = {**os.environ, "TEGU_STORE": str(own.store.root)}
    both = [
        subprocess.Popen(command, env=env, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
        for _ in range(2)
    ]
    results = [process.communicate(timeout=600) for process in both]
    assert [p.returncode for p in both] == [0, 0], results
    digests = {json.loads(out)["images"][0]["sha256"] for out, _ in results}
    assert len(digests) == 1


def test_a_full_disk_is_one_line_and_no_rubbish(small: Small, tmp_path: Path) -> None:
    if os.geteuid() != 0:
        pytest.skip("making a small disk needs root")
    mountpoint = tmp_path / "little"
    mountpoint.mkdir()
    script = f"""
mount -t tmpfs -o size=90m none {mountpoint} && mkdir -p {mountpoint}/s/blobs &&
TEGU_STORE={mountpoint}/s {sys.executable} -m tegu build -f {small.directory}/tegu.toml; code=$?
ls {mountpoint}/s/tmp {mountpoint}/s/partial; exit $code
"""
    done = subprocess.run(
        ["unshare", "-m", "sh", "-c", script], capture_output=True, text=True, timeout=300
    )
    assert done.returncode in (8, 9), done.stderr
    assert "no space left" in done.stderr
    assert "Traceback" not in done.stderr
    left = [line for line in done.stdout.split() if not line.endswith(":")]
    assert left == []


def test_without_root_the_bits_are_the_same(small: Small) -> None:
    if os.geteuid() != 0:
        pytest.skip("compares with a build as root")
    # Not below pytest's own directory, which nobody else may enter.
    with tempfile.TemporaryDirectory(dir="/var/tmp", ignore_cleanup_errors=True) as name:
        Path(name).chmod(0o755)
        _build_without_root(small, Path(name))


def _build_without_root(small: Small, place: Path) -> None:
    own = Small(place / "small", _copy_store(small, place).store)
    shutil.copytree(small.directory, own.directory)
    want = image_hash(small.build())
    uid = 54321
    tables = {
        "passwd": f"tester:x:{uid}:{uid}::/tmp:/bin/sh\n",
        "group": f"tester:x:{uid}:\n",
        "subuid": "tester:700000:65536\n",
        "subgid": "tester:700000:65536\n",
    }
    binds = []
    for name, line in tables.items():
        table = place / name
        old = Path("/etc") / name
        table.write_text((old.read_text() if old.exists() else "") + line)
        old.touch()
        binds.append(f"mount --bind {table} {old}")
    subprocess.run(["chown", "-R", f"{uid}:{uid}", own.store.root, own.directory], check=True)
    script = " && ".join(
        [
            *binds,
            f"cd {own.directory}",
            f"exec setpriv --reuid {uid} --regid {uid} --clear-groups env HOME={place} "
            f"TEGU_STORE={own.store.root} {sys.executable} -m tegu build --locked --json",
        ]
    )
    done = subprocess.run(
        ["unshare", "-m", "sh", "-c", script], capture_output=True, text=True, timeout=600
    )
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["images"][0]["sha256"] == want
