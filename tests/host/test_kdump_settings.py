"""Crash dumps: settings, targets, places, command lines, memory."""

from __future__ import annotations

import shlex
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tegu.errors import BuildError, DefinitionError, TeguError, UnsupportedError
from tegu.host.kdump import Settings, Target, load_settings
from tegu.host.kdump.cmdline import capture_cmdline, option, with_option
from tegu.host.kdump.config import parse_target
from tegu.host.kdump.control import check_size, require_reservation
from tegu.host.kdump.initrd import capture_conf, check_compression, require_known
from tegu.host.kdump.memory import advise, estimate
from tegu.host.kdump.network import Route, read_route
from tegu.host.kdump.place import DiskPlace, find_place, parse_mountinfo
from tegu.host.kdump.programs import libraries

MIB = 1 << 20


def settings_of(tmp_path: Path, text: str) -> Settings:
    path = tmp_path / "kdump.toml"
    path.write_text(text)
    return load_settings(path)


def test_no_file_means_defaults(tmp_path: Path) -> None:
    assert load_settings(tmp_path / "none") == Settings()


def test_all_keys(tmp_path: Path) -> None:
    found = settings_of(
        tmp_path,
        'target = "ssh://dumps@store.example:2222/srv/crash"\nlevel = 1\ncompression = "zlib"\n'
        'keep = 2\nmax_size = "512M"\nafter = "poweroff"\ntimeout = 60\nssh_key = "/k"\n'
        'ssh_known_hosts = "/h"\n',
    )
    assert found == Settings(
        target=Target("ssh", "/srv/crash", "dumps", "store.example", 2222),
        level=1,
        compression="zlib",
        keep=2,
        max_size=512 * MIB,
        after="poweroff",
        timeout=60,
        ssh_key="/k",
        ssh_known_hosts="/h",
    )


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("level = 32", "level: must be a whole number from 0 to 31"),
        ("level = true", "level: must be a whole number"),
        ('level = "31"', "level: must be a whole number"),
        ("colour = 1", "colour: there is no such key"),
        ('after = "sleep"', "after: must be one of reboot, poweroff, halt"),
        ('max_size = "lots"', "max_size: 'lots' is not a size"),
        ('max_size = "1K"', "max_size: must be at least 16M"),
        ('target = "crash"', "neither an absolute path nor"),
        ('target = "ssh://host"', "needs a path after the host"),
        ('target = "ssh://-oProxyCommand=x/y"', "neither user nor host may begin with a dash"),
        ('target = "/a\'b"', "quotes or control characters"),
        ('target = "ssh://h:99999/x"', "target: "),
        ('target = "https://s3.example/core?X-Amz-Signature=1"', "log_url is missing"),
        ('ssh_key = "key"', "ssh_key: must be an absolute path"),
        ("level = ", "kdump.toml"),
    ],
)
def test_what_is_wrong_is_named(tmp_path: Path, text: str, words: str) -> None:
    with pytest.raises(DefinitionError) as error:
        settings_of(tmp_path, text)
    assert words in error.value.message
    assert "\n" not in error.value.message


@given(st.text(max_size=60))
def test_any_target_is_read_or_refused(text: str) -> None:
    try:
        target = parse_target(text)
    except DefinitionError:
        return
    assert "'" not in target.path and "'" not in target.host and "'" not in target.user


def test_a_credential_is_not_shown() -> None:
    assert (
        str(parse_target("https://s3.example/core?X-Amz-Signature=1")) == "https://s3.example/core"
    )


def test_the_capture_is_told_in_quotes() -> None:
    place = DiskPlace("1-2", "ext4", "/dev/vda3", "/var/my crash;reboot")
    text = capture_conf(Settings(max_size=64 * MIB), place, None, "web-1")
    values = dict(word.split("=", 1) for word in shlex.split(text))
    assert values["path"] == "/var/my crash;reboot"
    assert values["kind"] == "disk"
    assert values["blocks"] == "131072"
    assert values["compression"] == "-z"
    with pytest.raises(TeguError, match="quote"):
        capture_conf(Settings(), place, None, "it's")


def test_the_capture_is_told_the_way() -> None:
    route = Route("10.0.2.2", "eth0", "52:54:00:00:00:01", None, ("10.0.2.15/24",), "10.0.2.1")
    settings = Settings(target=Target("ssh", "/srv/crash/", "u", "store"))
    values = dict(w.split("=", 1) for w in shlex.split(capture_conf(settings, None, route, "h")))
    assert (values["peer"], values["port"], values["alias_name"]) == ("10.0.2.2", "22", "store")
    settings = Settings(target=Target("ssh", "/srv/crash/", "u", "store", 2222))
    values = dict(w.split("=", 1) for w in shlex.split(capture_conf(settings, None, route, "h")))
    # As ssh itself writes it to known_hosts.
    assert values["alias_name"] == "[store]:2222"
    assert values["path"] == "/srv/crash"
    url = Settings(target=parse_target("http://10.0.2.2:8000/up/"))
    values = dict(w.split("=", 1) for w in shlex.split(capture_conf(url, None, route, "h")))
    assert (values["kind"], values["host"], values["port"]) == ("http", "10.0.2.2", "8000")


def test_a_host_whose_key_is_not_known(tmp_path: Path) -> None:
    if shutil.which("ssh-keygen") is None:
        pytest.skip("needs ssh-keygen")
    known = tmp_path / "known_hosts"
    key = "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIG3kY3oG3Xq1pF8y4l2K4b5gqg1W0c0m1kq8n7v3s2aB"
    known.write_text(f"[store]:2222 {key}\n")
    settings = Settings(
        target=Target("ssh", "/srv", "u", "store", 2222), ssh_known_hosts=str(known)
    )
    require_known(settings)
    for wrong in (
        replace(settings, target=Target("ssh", "/srv", "u", "store")),
        replace(settings, ssh_known_hosts=str(tmp_path / "none")),
    ):
        with pytest.raises(TeguError, match="the key of store is not in") as caught:
            require_known(wrong)
        assert "u@store" in str(caught.value.hint)


def test_routes() -> None:
    assert read_route('[{"dst":"1.1.1.1","gateway":"10.0.2.2","dev":"ens3"}]') == (
        "ens3",
        "10.0.2.2",
    )
    assert read_route('[{"dst":"10.0.2.9","dev":"ens3"}]') == ("ens3", "")
    for bad in ("", "[]", "{}", "[{}]", "3"):
        with pytest.raises(TeguError, match="ip route get"):
            read_route(bad)


MOUNTS = """\
25 1 254:3 / / rw,relatime shared:1 - ext4 /dev/root rw
26 25 0:24 / /proc rw - proc proc rw
30 25 0:30 / /run rw shared:5 - tmpfs tmpfs rw
40 25 253:0 / /srv rw - xfs /dev/dm-0 rw
41 25 0:44 / /nfs rw - nfs4 server:/x rw
42 25 254:16 /sub /var/my\\040crash rw - ext4 /dev/vdb rw
broken line
"""


def test_mountinfo() -> None:
    mounts = parse_mountinfo(MOUNTS)
    assert len(mounts) == 6
    assert mounts[-1].point == "/var/my crash"


@given(st.text(max_size=200))
def test_any_mountinfo_is_read(text: str) -> None:
    parse_mountinfo(text)


@pytest.mark.parametrize(
    ("directory", "words"),
    [
        ("/srv/crash", "/dev/dm-0 is not a plain disk"),
        ("/nfs/crash", "it is on nfs4"),
        ("/run/crash", "it is on tmpfs"),
    ],
)
def test_places_that_another_kernel_cannot_mount(directory: str, words: str) -> None:
    with pytest.raises(UnsupportedError, match="unsupported: a crash dump cannot") as error:
        find_place(Path(directory), MOUNTS)
    assert words in error.value.message
    assert error.value.hint is not None


def test_libraries() -> None:
    listing = (
        "\tlinux-vdso.so.1 (0x00007f)\n\tlibz.so.1 => /lib/x86_64-linux-gnu/libz.so.1 (0x00007f)\n"
        "\t/lib64/ld-linux-x86-64.so.2 (0x00007f12)\n"
    )
    assert libraries(listing) == ["/lib/x86_64-linux-gnu/libz.so.1", "/lib64/ld-linux-x86-64.so.2"]
    with pytest.raises(BuildError, match="libx"):
        libraries("\tlibx.so.1 => not found\n")


def test_the_capture_kernel_gets_no_root_and_no_reservation() -> None:
    running = (
        "BOOT_IMAGE=/x root=PARTUUID=1 rootfstype=ext4 rw quiet console=ttyS0 crashkernel=192M"
        " no_timer_check lsm=apparmor systemd.unit=x tegu.overlay -- single"
    )
    words = capture_cmdline(running, "x86_64").split()
    assert words[:2] == ["console=ttyS0", "no_timer_check"]
    assert "lsm=" in words and "irqpoll" in words and "nr_cpus=1" in words and "panic=10" in words
    joined = " ".join(words)
    for gone in ("root=", "crashkernel", "quiet", "systemd", "tegu", "single"):
        assert gone not in joined
    assert "irqpoll" not in capture_cmdline(running, "aarch64")


def test_a_compression_that_is_not_built_in() -> None:
    version = "makedumpfile: version 1.7.6\nlzo\tenabled\nsnappy\tdisabled\nzstd\tenabled\n"
    for name in ("zstd", "zlib", "lzo", "none"):
        check_compression(name, version)
    with pytest.raises(UnsupportedError, match="built without snappy"):
        check_compression("snappy", version)


def test_options_of_a_command_line() -> None:
    assert option("a crashkernel=1M b crashkernel=2M", "crashkernel") == "2M"
    assert option("crashkernels=1M", "crashkernel") is None
    changed = with_option("root=/dev/a crashkernel=1M quiet -- x", "crashkernel", "2M")
    assert changed == "root=/dev/a quiet crashkernel=2M -- x"


def test_memory_grows_with_the_machine() -> None:
    small = estimate(40 * MIB, 3 * MIB, 7 * MIB, 1 << 30, network=False)
    big = estimate(40 * MIB, 3 * MIB, 7 * MIB, 1 << 40, network=False)
    assert big.total - small.total == (1 << 40) // 16384 - (1 << 30) // 16384
    assert advise(small) % (16 * MIB) == 0
    assert advise(small) >= small.total


@pytest.mark.parametrize(
    ("cmdline", "words", "remedy"),
    [
        ("root=/dev/vda1 rw", "there is no crashkernel=", "sets crashkernel=128M; then reboot"),
        ("root=/dev/vda1 crashkernel=96M", "crashkernel=96M is not reserved", "reboot to have it"),
    ],
)
def test_nothing_is_reserved(cmdline: str, words: str, remedy: str) -> None:
    with pytest.raises(TeguError) as error:
        require_reservation(0, cmdline, 128 * MIB)
    assert words in error.value.message
    assert remedy in (error.value.hint or "")
    require_reservation(1, cmdline, 0)


def test_too_little_is_reserved() -> None:
    need = estimate(50 * MIB, 3 * MIB, 7 * MIB, 1 << 30, network=False)
    check_size(need, need.total)
    with pytest.raises(TeguError, match="too small: 64 MiB, and the capture kernel needs") as error:
        check_size(need, 64 * MIB)
    assert f"crashkernel={advise(need) >> 20}M" in (error.value.hint or "")
