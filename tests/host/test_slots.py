"""The upgrade of the other slot: its protocol cut off at every write, and what it refuses.

The disk is files, the ESP a directory; `boots` is what firmware, boot loader and initrd do. What
they really do is in test_slots_guest.py.
"""

from __future__ import annotations

import functools
import hashlib
import http.server
import io
import json
import random
import shutil
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from uuid import UUID

import pytest
from tests.boot.test_boot_loader import make as make_uki

from tegu.boot.slots import FILES, BootName, Places, SlotFile, SlotImage, verity_of, verity_words
from tegu.boot.uki import section_data
from tegu.boot.verity import BLOCK, HEAD, hash_tree, top_matches
from tegu.errors import FetchError, TeguError, UpgradeError, VerifyError
from tegu.host.upgrade import health
from tegu.host.upgrade.slots import machine as machine_module
from tegu.host.upgrade.slots import run, writing
from tegu.host.upgrade.slots.machine import BootFile, SlotMachine, slot_machine
from tegu.host.upgrade.slots.settle import add_accounts, bring_directories
from tegu.host.upgrade.slots.source import Source
from tegu.host.upgrade.state import history, read_state

GUIDS = [str(UUID(int=i)) for i in range(1, 7)]
ESP, DATA, ROOT_A, TREE_A, ROOT_B, TREE_B = GUIDS
SIZES = {ROOT_A: 300, TREE_A: 8, ROOT_B: 300, TREE_B: 8}
BAD = "26.13"


class PowerCut(BaseException):
    """The machine is off."""


def slot_image(place: Path, version: str, *, created: int = 100, blocks: int = 260) -> SlotImage:
    """Make a slot image in the directory `place`."""
    place.mkdir(parents=True)
    data = random.Random(version).randbytes(blocks * BLOCK)
    verity, tree = hash_tree(io.BytesIO(data), len(data), b"salt")
    boot = make_uki(cmdline=" ".join([*verity_words(verity), "ro", "quiet"]))
    files = {}
    for key, content in (("root", data), ("tree", tree), ("boot", boot)):
        (place / FILES[key]).write_bytes(content)
        digest = hashlib.sha256(content).hexdigest()
        files[key] = SlotFile(FILES[key], len(content), digest)
    made = SlotImage(
        "tegu", version, "x86-64", created, verity, files["root"], files["tree"], files["boot"],
        {"tool": version, "same": "1"},
    )  # fmt: skip
    (place / "slot.json").write_text(made.dump())
    return made


@dataclass
class Computer:
    """A machine of the immutable layout in a directory, which can be started and cut off."""

    top: Path
    cut: int | None = None
    changes: int = 0

    def change(self, torn: Iterator[None] | None = None) -> None:
        self.changes += 1
        if self.cut is not None and self.changes > self.cut:
            raise PowerCut

    @property
    def esp(self) -> Path:
        return self.top / "esp"

    def start(self) -> SlotMachine:
        """Do what firmware, systemd-boot, kernel and initrd do; a panic starts it again."""
        for _ in range(3):
            found = self._boot()
            if found is not None:
                (self.top / "run/tegu/slot").write_text(f"{found.current}\n")
                words = " ".join(verity_words(found.running))
                (self.top / "proc/cmdline").write_text(f"ro {words} quiet\n")
                version = self.version(found)
                places = replace(found.places, version=version)
                (self.top / "usr/lib/tegu/slots.json").write_text(places.dump())
                again = slot_machine(self.top)
                assert again is not None
                return again
        raise AssertionError("the machine does not boot")

    def _boot(self) -> SlotMachine | None:
        names = []
        for path in (self.esp / "EFI/Linux").glob("*.efi"):
            name = BootName.parse(path.name, "tegu")
            assert name is not None
            names.append((name.left == 0, -name.generation, path, name))
        _, _, path, name = min(names)
        if name.left:
            counted = replace(name, left=name.left - 1, done=name.done + 1)
            path = path.rename(path.with_name(Path(counted.path).name))
        line = section_data(path.read_bytes(), ".cmdline") or b""
        verity = verity_of(line.decode())
        assert verity is not None
        places = Places("tegu", "", "x86-64", 50, ESP, DATA, ((ROOT_A, TREE_A), (ROOT_B, TREE_B)))
        for slot, (root, tree) in zip("ab", places.slots, strict=True):
            disks = self.top / "dev/disk/by-partuuid"
            if top_matches((disks / tree).read_bytes()[:HEAD], verity):
                with (disks / root).open("rb") as f:
                    whole, made = hash_tree(f, verity.size, b"salt")
                # What is found must be whole: nothing else may ever have a top.
                assert whole == verity
                assert (disks / tree).read_bytes()[: len(made)] == made
                return SlotMachine(places, slot, verity, self.top)
        return None

    def version(self, found: SlotMachine) -> str:
        for place in sorted(self.top.glob("images/*/slot.json")):
            image = SlotImage.parse(place.read_bytes())
            if image.verity == found.running:
                return image.version
        raise AssertionError("an unknown root runs")


@pytest.fixture
def computer(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Computer:
    """A machine that runs 26.11 from slot a; images of 26.12 and 26.13 are there."""
    made = Computer(tmp_path)
    disks = tmp_path / "dev/disk/by-partuuid"
    for path in (disks, tmp_path / "run/tegu", tmp_path / "proc", tmp_path / "usr/lib/tegu",
                 made.esp / "EFI/Linux", tmp_path / "var/lib/dpkg", tmp_path / "etc"):  # fmt: skip
        path.mkdir(parents=True)
    for guid, blocks in SIZES.items():
        (disks / guid).write_bytes(random.Random(guid).randbytes(blocks * BLOCK))
    for version in ("26.11", "26.12", BAD):
        slot_image(tmp_path / "images" / version, version)
    first = tmp_path / "images/26.11"
    for guid, name in ((ROOT_A, "root.erofs"), (TREE_A, "root.verity")):
        with (disks / guid).open("r+b") as f:
            f.write((first / name).read_bytes())
    shutil.copy(first / "boot.efi", made.esp / "EFI/Linux/tegu-1-26.11.efi")
    (tmp_path / "var/lib/dpkg/status").write_text(
        "Package: tool\nStatus: install ok installed\nVersion: 26.11\n\n"
        "Package: same\nStatus: install ok installed\nVersion: 1\nDescription: x\n more: y\n"
    )

    @contextmanager
    def esp(self: SlotMachine) -> Iterator[Path]:
        yield made.esp

    @contextmanager
    def view(root: Path) -> Iterator[Path]:
        (tmp_path / "view/var").mkdir(parents=True, exist_ok=True)
        (tmp_path / "view/etc").mkdir(exist_ok=True)
        yield tmp_path / "view"

    monkeypatch.setattr(SlotMachine, "esp", esp)
    monkeypatch.setattr(run, "image_view", view)
    monkeypatch.setattr(health, "failed_units", list)
    monkeypatch.setattr(health, "effective_settings", dict)
    monkeypatch.setattr(health, "problems", lambda before=(): [])
    _count(made, monkeypatch)
    return made


def _count(computer: Computer, monkeypatch: pytest.MonkeyPatch) -> None:
    """Make every change to the disk count, and the one where power goes be half done or undone."""
    write = writing._write

    def torn(fd: int, data: bytes, at: int) -> None:
        try:
            computer.change()
        except PowerCut:
            write(fd, bytes(data)[: len(data) // 2], at)
            raise
        write(fd, data, at)

    monkeypatch.setattr(writing, "_write", torn)
    for where, name in (
        (BootFile, "renamed"), (BootFile, "remove"), (run, "write_file"), (run, "write_state"),
    ):  # fmt: skip
        original = getattr(where, name)

        @functools.wraps(original)
        def counted(*args: object, _original: object = original, **more: object) -> object:
            computer.change()
            return _original(*args, **more)  # type: ignore[operator]

        monkeypatch.setattr(where, name, counted)


def upgrade(computer: Computer, version: str, **more: object) -> object:
    source = Source(str(computer.top / "images" / version))
    machine = slot_machine(computer.top)
    assert machine is not None
    return run.upgrade(machine, source, **more)  # type: ignore[arg-type]


def boot(computer: Computer) -> tuple[str, str]:
    """Start it, with its boot units; returns version and what the units say."""
    machine = computer.start()
    said = run.begin(machine)
    if said == "trying":
        said = run.prove(machine, reboot=False)
    return machine.places.version, said


def test_an_upgrade_is_tried_and_kept(computer: Computer) -> None:
    assert boot(computer) == ("26.11", "nothing")
    done = upgrade(computer, "26.12")
    assert (done.status, done.release, done.reboot) == ("trial", "26.12", True)  # type: ignore[attr-defined]
    assert [(u.name, u.old, u.new) for u in done.updates] == [("tool", "26.11", "26.12")]  # type: ignore[attr-defined]
    files = sorted(p.name for p in (computer.esp / "EFI/Linux").iterdir())
    assert files == ["tegu-1-26.11.efi", "tegu-2-26.12+1-0.efi"]
    with pytest.raises(UpgradeError, match="has not proved itself"):
        upgrade(computer, BAD)
    assert boot(computer) == ("26.12", "done")
    files = sorted(p.name for p in (computer.esp / "EFI/Linux").iterdir())
    assert files == ["tegu-1-26.11.efi", "tegu-2-26.12.efi"]
    assert boot(computer) == ("26.12", "nothing")
    assert upgrade(computer, "26.12").status == "current"  # type: ignore[attr-defined]
    assert [e.what for e in history(computer.top)] == ["began", "installed", "trying", "done"]


def test_one_that_is_not_well_goes_back_by_itself(
    computer: Computer, monkeypatch: pytest.MonkeyPatch
) -> None:
    computer.start()
    upgrade(computer, BAD)
    monkeypatch.setattr(health, "problems", lambda before=(): ["the unit x.service has failed"])
    assert boot(computer) == (BAD, "failed")
    assert boot(computer) == ("26.11", "rolled-back")
    state = read_state(computer.top)
    assert state is not None
    assert state.reason == "the unit x.service has failed"
    with pytest.raises(UpgradeError, match=r"tried and left behind: the unit x.service"):
        upgrade(computer, BAD)
    monkeypatch.setattr(health, "problems", lambda before=(): [])
    upgrade(computer, "26.12")
    assert boot(computer) == ("26.12", "done")


def test_one_that_does_not_come_up_is_started_once(computer: Computer) -> None:
    computer.start()
    upgrade(computer, BAD)
    assert computer.start().places.version == BAD  # and hangs: nothing of ours runs
    assert boot(computer) == ("26.11", "rolled-back")
    state = read_state(computer.top)
    assert state is not None
    assert state.reason == "it did not come up"
    with pytest.raises(UpgradeError, match="left behind: it did not come up"):
        upgrade(computer, BAD)
    upgrade(computer, BAD, to=BAD)
    assert boot(computer) == (BAD, "done")


def test_back_and_forth_by_hand(computer: Computer) -> None:
    computer.start()
    upgrade(computer, "26.12")
    assert boot(computer) == ("26.12", "done")
    machine = computer.start()
    assert run.roll_back(machine).release == "26.11"
    assert boot(computer) == ("26.11", "rolled-back")
    assert boot(computer) == ("26.11", "nothing")
    machine = computer.start()
    assert run.roll_back(machine).release == "26.12"
    assert boot(computer) == ("26.12", "done")
    assert boot(computer) == ("26.12", "nothing")


def test_going_back_to_a_slot_that_is_gone_stays(computer: Computer) -> None:
    computer.start()
    upgrade(computer, "26.12")
    boot(computer)
    machine = computer.start()
    run.roll_back(machine)
    (computer.top / "dev/disk/by-partuuid" / TREE_A).write_bytes(bytes(8 * BLOCK))
    (computer.esp / "EFI/Linux/tegu-1-26.11.efi").unlink()
    assert boot(computer) == ("26.12", "done")
    assert boot(computer) == ("26.12", "nothing")
    with pytest.raises(UpgradeError, match="no system to go back to"):
        run.roll_back(computer.start())


def test_a_cut_at_any_write_leaves_one_or_the_other(computer: Computer, tmp_path: Path) -> None:
    computer.start()
    kept = tmp_path.with_name(f"{tmp_path.name}.kept")
    shutil.copytree(tmp_path, kept)
    cut, seen = 0, set()
    while True:
        for place in ("dev", "esp", "var"):
            shutil.rmtree(tmp_path / place)
            shutil.copytree(kept / place, tmp_path / place)
        computer.cut = None
        computer.start()
        computer.changes, computer.cut = 0, cut
        try:
            upgrade(computer, "26.12")
        except PowerCut:
            pass
        else:
            break
        finally:
            computer.cut = None
        version, said = boot(computer)
        seen.add((version, said))
        assert version in ("26.11", "26.12"), cut
        if version == "26.11":
            assert boot(computer) == ("26.11", "nothing"), cut
            upgrade(computer, "26.12")
            assert boot(computer) == ("26.12", "done"), cut
        assert boot(computer) == ("26.12", "nothing"), cut
        cut += 1
    shutil.rmtree(kept)
    assert cut > 6
    assert ("26.11", "rolled-back") in seen


@pytest.mark.parametrize("step", range(8))
def test_a_cut_while_it_is_proved_or_gone_back(computer: Computer, step: int) -> None:
    computer.start()
    upgrade(computer, "26.12")
    computer.changes, computer.cut = 0, step
    try:
        boot(computer)
        run.roll_back(computer.start())
    except PowerCut:
        pass
    computer.cut = None
    version, _ = boot(computer)
    assert version in ("26.11", "26.12")
    assert boot(computer)[0] in ("26.11", "26.12")
    if version == "26.11":
        upgrade(computer, "26.12", to="26.12")
        assert boot(computer)[0] == "26.12"


# What is refused


def test_what_came_is_checked(computer: Computer) -> None:
    computer.start()
    place = computer.top / "images/26.12"
    original = {p.name: p.read_bytes() for p in place.iterdir()}
    for name, change, words in (
        ("root.erofs", lambda d: d[:-1] + bytes([d[-1] ^ 1]), "root.erofs is not what"),
        ("root.erofs", lambda d: d[:-1], "ended after"),
        ("root.erofs", lambda d: d + b"x", "root.erofs is not what"),
        ("root.verity", lambda d: d[:HEAD] + bytes(len(d) - HEAD), "root.verity is not what"),
        ("root.verity", lambda d: d[:10], "ended after"),
        ("boot.efi", lambda d: d[:-1] + b"x", "boot.efi is not what"),
        ("slot.json", lambda d: d[:-5], "describes no slot image"),
    ):
        (place / name).write_bytes(change(original[name]))
        with pytest.raises(VerifyError, match=words):
            upgrade(computer, "26.12")
        (place / name).write_bytes(original[name])
        assert boot(computer)[0] == "26.11"
    (place / "root.erofs").unlink()
    with pytest.raises(FetchError, match="No such file"):
        upgrade(computer, "26.12")
    (place / "root.erofs").write_bytes(original["root.erofs"])
    upgrade(computer, "26.12")
    assert boot(computer) == ("26.12", "done")


def test_a_tree_of_another_root_is_refused(computer: Computer) -> None:
    """All digests fit, but the hash tree is not that of the root: the reading back finds it."""
    computer.start()
    place = computer.top / "images/26.12"
    image = SlotImage.parse((place / "slot.json").read_bytes())
    data = bytearray((place / "root.erofs").read_bytes())
    data[5000] ^= 1
    (place / "root.erofs").write_bytes(data)
    root = replace(image.root, sha256=hashlib.sha256(data).hexdigest())
    (place / "slot.json").write_text(replace(image, root=root).dump())
    with pytest.raises(VerifyError, match="reads back with the root hash"):
        upgrade(computer, "26.12")
    assert boot(computer)[0] == "26.11"


def test_a_boot_file_of_another_root_is_refused(computer: Computer) -> None:
    computer.start()
    place = computer.top / "images/26.12"
    image = SlotImage.parse((place / "slot.json").read_bytes())
    boot_file = (computer.top / "images" / BAD / "boot.efi").read_bytes()
    (place / "boot.efi").write_bytes(boot_file)
    file = SlotFile("boot.efi", len(boot_file), hashlib.sha256(boot_file).hexdigest())
    (place / "slot.json").write_text(replace(image, boot=file).dump())
    with pytest.raises(VerifyError, match="starts another root"):
        upgrade(computer, "26.12")


def test_what_does_not_belong_here_is_refused(computer: Computer) -> None:
    computer.start()
    large = computer.top / "images/large"
    slot_image(large, "27.1", blocks=301)
    with pytest.raises(UpgradeError, match="does not fit its slot"):
        upgrade(computer, "large")
    slot_image(computer.top / "images/old", "26.10", created=10)
    with pytest.raises(UpgradeError, match="older than what runs"):
        upgrade(computer, "old")
    with pytest.raises(UpgradeError, match=r"has 26.12, not 9"):
        upgrade(computer, "26.12", to="9")
    other = json.loads((computer.top / "images/26.12/slot.json").read_text())
    other["architecture"] = "arm64"
    (computer.top / "images/26.12/slot.json").write_text(json.dumps(other))
    with pytest.raises(UpgradeError, match="for arm64"):
        upgrade(computer, "26.12")
    assert boot(computer)[0] == "26.11"
    upgrade(computer, "old", to="26.10")
    assert boot(computer) == ("26.10", "done")


def test_a_full_esp_leaves_what_runs(computer: Computer, monkeypatch: pytest.MonkeyPatch) -> None:
    computer.start()

    def full(*_: object) -> bool:
        raise UpgradeError("the ESP is full")

    with monkeypatch.context() as patch:
        patch.setattr(run, "write_file", full)
        with pytest.raises(UpgradeError, match="ESP is full"):
            upgrade(computer, "26.12")
    assert boot(computer)[0] == "26.11"
    upgrade(computer, "26.12")
    assert boot(computer) == ("26.12", "done")


def test_half_a_rename_on_fat_is_no_second_system(computer: Computer) -> None:
    computer.start()
    upgrade(computer, "26.12")
    boot(computer)
    folder = computer.esp / "EFI/Linux"
    shutil.copy(folder / "tegu-2-26.12.efi", folder / "tegu-2-26.12+0-1.efi")
    machine = computer.start()
    found = machine.boot_files(computer.esp)
    assert [f.path.name for f in found] == ["tegu-2-26.12.efi", "tegu-1-26.11.efi"]


def test_no_machine_of_slots_is_none(tmp_path: Path) -> None:
    assert slot_machine(tmp_path) is None
    (tmp_path / "run/tegu").mkdir(parents=True)
    (tmp_path / "proc").mkdir()
    (tmp_path / "run/tegu/slot").write_text("c\n")
    (tmp_path / "proc/cmdline").write_text("quiet\n")
    with pytest.raises(UpgradeError, match="do not fit together"):
        slot_machine(tmp_path)


def test_a_missing_partition_is_named(computer: Computer) -> None:
    machine = computer.start()
    (computer.top / "dev/disk/by-partuuid" / TREE_B).unlink()
    with pytest.raises(UpgradeError, match="slot b has no partition"):
        machine.devices("b")
    with (
        pytest.raises(UpgradeError, match="cannot open"),
        machine_module.opened_device(computer.top / "nothing", 0),
    ):
        pass


# Where images come from


def test_an_image_comes_over_http(computer: Computer) -> None:
    """Signed descriptions are what makes http possible; the transfer itself is tried here."""
    handler = functools.partial(
        http.server.SimpleHTTPRequestHandler, directory=str(computer.top / "images")
    )
    handler.log_message = lambda *_: None  # type: ignore[attr-defined]
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        try:
            url = f"http://127.0.0.1:{server.server_port}/26.12"
            with pytest.raises(UpgradeError, match="can be anybody's"):
                Source(url)
            source = Source(url, computer.top / "keyring")
            with pytest.raises(FetchError, match=r"slot.json.asc: 404"):
                source.describe()
            source.keyring = None
            computer.start()
            machine = slot_machine(computer.top)
            assert machine is not None
            assert run.upgrade(machine, source).status == "trial"
        finally:
            server.shutdown()
            thread.join()
    with pytest.raises(FetchError, match=r"slot.json"):
        source.describe()
    assert boot(computer) == ("26.12", "done")


@pytest.mark.parametrize("where", ["ftp://x/y", "data:x"])
def test_what_is_no_place_is_refused(where: str) -> None:
    with pytest.raises(UpgradeError, match="is no directory"):
        Source(where)


def test_a_signature_is_demanded_where_there_is_a_keyring(computer: Computer) -> None:
    from tegu.packages.repo import make_key
    from tegu.packages.repo.sign import load_signers

    place = computer.top / "images/26.12"
    keys = []
    for name in ("ours", "theirs"):
        path = computer.top / f"{name}.key"
        make_key(path, f"{name} <x@tegu.invalid>", days=10)
        keys.append(load_signers([str(path)], computer.top))
        (computer.top / f"{name}.gpg").write_bytes(keys[-1].public)
    source = Source(str(place), computer.top / "ours.gpg")
    with pytest.raises(FetchError, match=r"slot.json.asc: No such file"):
        source.describe()
    text = (place / "slot.json").read_bytes()
    (place / "slot.json.asc").write_text(keys[1].detach_sign(text))
    with pytest.raises(VerifyError, match=r"not signed by a key of ours.gpg"):
        source.describe()
    (place / "slot.json.asc").write_text(keys[0].detach_sign(text))
    assert source.describe().version == "26.12"
    (place / "slot.json").write_bytes(text.replace(b"26.12", b"26.14"))
    with pytest.raises(VerifyError, match=r"not signed by a key of ours.gpg"):
        source.describe()
    source.keyring = computer.top / "none.gpg"
    with pytest.raises(TeguError, match="is not there"):
        source.describe()


def test_two_upgrades_at_once_are_one_too_many(tmp_path: Path) -> None:
    from tegu.host.upgrade.choose import _alone

    with (
        _alone(tmp_path / "lock"),
        pytest.raises(UpgradeError, match="another upgrade is under way"),
        _alone(tmp_path / "lock"),
    ):
        pass
    with _alone(tmp_path / "lock"):
        pass


# What two roots share


def test_new_accounts_of_an_image_are_added(tmp_path: Path) -> None:
    image, etc = tmp_path / "image", tmp_path / "etc"
    for place in (image, etc):
        place.mkdir()
    (image / "passwd").write_text(
        "root:x:0:0::/root:/bin/sh\nnew:x:990:990::/:/bin/false\nclash:x:1000:1000::/:/bin/false\n"
    )
    (etc / "passwd").write_text("root:x:0:0::/root:/bin/bash\nme:x:1000:1000::/home/me:/bin/sh\n")
    (image / "shadow").write_text("root:*:1::::::\nnew:!:1::::::\n")
    (etc / "shadow").write_text("root:secret:1::::::\n")
    (etc / "shadow").chmod(0o640)
    said = add_accounts(image, etc)
    assert said == ["passwd: clash has number 1000, which is taken", "passwd: new"]
    assert (etc / "passwd").read_text() == (
        "root:x:0:0::/root:/bin/bash\nme:x:1000:1000::/home/me:/bin/sh\n"
        "new:x:990:990::/:/bin/false\n"
    )
    assert (etc / "shadow").read_text() == "root:secret:1::::::\nnew:!:1::::::\n"
    assert (etc / "shadow").stat().st_mode & 0o777 == 0o640
    assert add_accounts(image, etc) == ["passwd: clash has number 1000, which is taken"]


def test_new_directories_of_an_image_come_and_nothing_else(tmp_path: Path) -> None:
    image, var = tmp_path / "image", tmp_path / "var"
    (image / "lib/new/deep").mkdir(parents=True)
    (image / "lib/new/deep/file").write_text("x")
    (image / "lib/old").mkdir()
    (image / "lib/old/default").write_text("from the image")
    (image / "lib/dpkg/info").mkdir(parents=True)
    (image / "run").symlink_to("/run")
    (var / "lib/old").mkdir(parents=True)
    (var / "lib/dpkg").mkdir()
    assert bring_directories(image, var) == ["lib/new"]
    assert (var / "lib/new/deep/file").read_text() == "x"
    assert not (var / "lib/old/default").exists()
    assert not (var / "lib/dpkg/info").exists()
    assert bring_directories(image, var) == []
