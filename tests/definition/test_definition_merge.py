"""Includes, profiles, architectures: what wins, what is added, what is taken out."""

from __future__ import annotations

from pathlib import Path

import pytest

from tegu.definition import examine, examine_all, load
from tegu.errors import DefinitionError

SYSTEM = '[system]\nname = "acme"\nversion = "1"\n'


def test_the_including_file_wins_and_lists_append(write):
    path = write(
        {
            "tegu.toml": 'include = ["base.toml"]\n[system]\nversion = "2"\n'
            '[packages]\ninstall = ["less", "vim"]\n[packages.pin]\nvim = "2"\n'
            "[sysctl]\nvm.swappiness = 1\n",
            "base.toml": SYSTEM + '[packages]\ninstall = ["vim", "nano"]\n'
            '[packages.pin]\nvim = "1"\nnano = "1"\n[sysctl]\nvm.swappiness = 60\n'
            '"kernel.panic" = 5\n',
        }
    )
    definition = load(path)
    assert definition.system.name == "acme"
    assert definition.system.version == "2"
    assert definition.packages.install == ["vim", "nano", "less"]
    assert definition.packages.pin == {"vim": "2", "nano": "1"}
    assert definition.sysctl == {"vm.swappiness": 1, "kernel.panic": 5}
    assert definition.include == []


def test_includes_are_recursive_in_order_and_relative_to_their_file(write, tmp_path):
    path = write(
        {
            "tegu.toml": 'include = ["sub/a.toml", "sub/b.toml"]\n' + SYSTEM,
            "sub/a.toml": 'include = ["deep/c.toml"]\n[packages]\ninstall = ["aa"]\n'
            '[image]\nsize = "1G"\n',
            "sub/b.toml": 'overlay = ["tree"]\n[packages]\ninstall = ["bb"]\n[image]\nsize="2G"\n',
            "sub/deep/c.toml": 'overlay = ["../tree"]\n[packages]\ninstall = ["cc"]\n'
            '[[file]]\npath = "/etc/x"\nsource = "x.conf"\n',
            "sub/deep/x.conf": "x\n",
            "sub/tree/etc/motd": "hello\n",
        }
    )
    examined = examine(path)
    definition = examined.definition
    assert definition is not None, examined.problems
    assert definition.packages.install == ["cc", "aa", "bb"]
    assert definition.image.size == "2G"
    assert definition.file[0].source == tmp_path / "sub/deep/x.conf"
    # One directory, however it is written.
    assert definition.overlay == [tmp_path / "sub/tree"]
    names = ["sub/deep/c.toml", "sub/a.toml", "sub/b.toml", "tegu.toml"]
    assert list(examined.files) == [tmp_path / name for name in names]


def test_a_file_included_twice_counts_the_first_time(write):
    path = write(
        {
            "tegu.toml": 'include = ["a.toml", "b.toml"]\n' + SYSTEM,
            "a.toml": 'include = ["common.toml"]\n[image]\nsize = "5G"\n',
            "b.toml": 'include = ["common.toml"]\n',
            "common.toml": '[image]\nsize = "1G"\n',
        }
    )
    assert load(path).image.size == "5G"


def test_a_circle_shows_the_way_round(write):
    path = write(
        {
            "tegu.toml": '# first\ninclude = ["a.toml"]\n',
            "a.toml": 'include = [\n  "b.toml",\n]\n',
            "b.toml": 'include = ["a.toml"]\n',
        }
    )
    with pytest.raises(DefinitionError) as e:
        load(path)
    assert e.value.message == "b.toml:1: include: goes in a circle: a.toml -> b.toml -> a.toml"


def test_a_circle_through_a_symbolic_link_is_seen(write, tmp_path):
    path = write({"tegu.toml": 'include = ["link.toml"]\n'})
    (tmp_path / "link.toml").symlink_to("tegu.toml")
    with pytest.raises(DefinitionError, match="circle"):
        load(path)


def test_endless_includes_end(write):
    files = {f"{i}.toml": f'include = ["{i + 1}.toml"]\n' for i in range(200)}
    with pytest.raises(DefinitionError, match="more than 32 files deep"):
        load(write(files))


def test_a_missing_include_points_at_its_line(write):
    path = write('include = [\n  "base.toml",\n]\n' + SYSTEM)
    with pytest.raises(DefinitionError) as e:
        load(path)
    assert e.value.message == "tegu.toml:2: include: base.toml: no such file"


def test_errors_in_an_included_file_point_there(write):
    path = write(
        {
            "tegu.toml": 'include = ["base.toml"]\n' + SYSTEM,
            "base.toml": '\n[image]\nsize = "big"\n',
        }
    )
    with pytest.raises(DefinitionError, match=r"^base\.toml:3: image\.size: 'big' is not a size"):
        load(path)


@pytest.mark.parametrize(
    ("entry", "expected"),
    [
        ('"-vim"', ["nano"]),
        ('"-vim", "-nano"', []),
        ('"-*", "less"', ["less"]),
        ('"less", "-vim"', ["nano", "less"]),
        ('"-vim", "vim"', ["nano", "vim"]),
        ('"nano", "nano"', ["vim", "nano"]),
    ],
)
def test_elements_are_taken_out(write, entry, expected):
    path = write(
        {
            "tegu.toml": f'include = ["base.toml"]\n{SYSTEM}[packages]\ninstall = [{entry}]\n',
            "base.toml": '[packages]\ninstall = ["vim", "nano"]\n',
        }
    )
    assert load(path).packages.install == expected


def test_taking_out_what_is_not_there_names_the_nearest(write):
    path = write(
        {
            "tegu.toml": f'include = ["base.toml"]\n{SYSTEM}[packages]\ninstall = ["-vmi"]\n',
            "base.toml": '[packages]\ninstall = ["vim", "nano"]\n',
        }
    )
    with pytest.raises(DefinitionError) as e:
        load(path)
    assert e.value.message == "tegu.toml:6: packages.install: 'vmi' is not there to take out"
    assert e.value.hint == "did you mean '-vim'?"


def test_a_default_is_not_inherited(write):
    assert load(write(SYSTEM + '[base]\nsuites = ["sid"]\n')).base.suites == ["sid"]
    with pytest.raises(DefinitionError, match="not there to take out"):
        load(write(SYSTEM + '[base]\nsuites = ["-trixie-updates"]\n'))


def test_an_overlay_is_taken_out_by_its_path(write):
    path = write(
        {
            "sub/tegu.toml": f'include = ["../base.toml"]\noverlay = ["-../files"]\n{SYSTEM}',
            "base.toml": 'overlay = ["files", "more"]\n',
            "files/a": "",
            "more/b": "",
        }
    )
    assert [p.name for p in load(path).overlay] == ["more"]


def test_entries_of_lists_of_tables_merge_by_their_key(write):
    key = "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAICQT0fD0vfdFZgyYArWf5pz7nUBoaSkM0ZMOlwu4DXTb"
    path = write(
        {
            "tegu.toml": f"""include = ["base.toml"]
{SYSTEM}
[[user]]
name = "ops"
groups = ["systemd-journal", "-adm"]
[[user]]
name = "dev"
[[user]]
name = "-guest"
[[file]]
path = "/etc/motd"
source = "motd"
[[file]]
path = "/etc/issue"
mode = "0600"
[[file]]
path = "-/etc/gone"
[[repository]]
uri = "https://repo.example/debian"
suite = "stable"
priority = 700
[[repository]]
uri = "-https://old.example/debian"
suite = "stable"
""",
            "base.toml": f"""
[[user]]
name = "ops"
groups = ["adm"]
authorized_keys = ["{key}"]
[[user]]
name = "guest"
[[file]]
path = "/etc/motd"
content = "hello"
mode = "0640"
[[file]]
path = "/etc/issue"
content = "issue"
[[file]]
path = "/etc/gone"
content = "x"
[[repository]]
uri = "https://repo.example/debian"
suite = "stable"
keyring = "repo.gpg"
[[repository]]
uri = "https://old.example/debian"
suite = "stable"
keyring = "repo.gpg"
""",
            "motd": "x",
            "repo.gpg": "x",
        }
    )
    definition = load(path)
    assert [user.name for user in definition.user] == ["ops", "dev"]
    assert definition.user[0].groups == ["systemd-journal"]
    assert definition.user[0].authorized_keys == [key]
    motd, issue = definition.file
    assert (motd.content, motd.mode) == (None, "0640")
    assert motd.source is not None
    assert (issue.content, issue.mode) == ("issue", "0600")
    (repository,) = definition.repository
    assert (repository.priority, repository.keyring.name) == (700, "repo.gpg")


def test_the_same_entry_twice_in_one_file_is_an_error(write):
    file = '[[file]]\npath = "/etc/motd"\ncontent = "x"\n'
    with pytest.raises(DefinitionError) as e:
        load(write(SYSTEM + file + file))
    assert e.value.message == "tegu.toml:7: file[/etc/motd]: is there twice; first at tegu.toml:4"


def test_an_entry_that_takes_out_holds_nothing_else(write):
    text = '[[file]]\npath = "-/etc/motd"\nmode = "0600"\n'
    with pytest.raises(DefinitionError, match="'mode' has no meaning"):
        load(write(SYSTEM + text))


def test_names_are_taken_out_of_maps(write):
    path = write(
        {
            "tegu.toml": f'include = ["base.toml"]\n{SYSTEM}[sysctl]\n"-vm.swappiness" = true\n'
            '[packages.pin]\n"-*" = true\n',
            "base.toml": "[sysctl]\nvm.swappiness = 1\nvm.overcommit_memory = 1\n"
            '[packages.pin]\nvim = "1"\n',
        }
    )
    definition = load(path)
    assert definition.sysctl == {"vm.overcommit_memory": 1}
    assert definition.packages.pin == {}
    with pytest.raises(DefinitionError, match="its value is true"):
        load(write(f'{SYSTEM}[sysctl]\n"-vm.swappiness" = 1\n'))
    with pytest.raises(DefinitionError, match=r"'vm\.swapiness' is not there to take out"):
        load(write(f'{SYSTEM}[sysctl]\n"-vm.swapiness" = true\n'))


def test_a_sysctl_may_be_written_with_or_without_quotes_but_once(write):
    assert load(write(f'{SYSTEM}[sysctl]\nnet.core.somaxconn = 1\n"vm.x" = "a b"\n')).sysctl == {
        "net.core.somaxconn": 1,
        "vm.x": "a b",
    }
    with pytest.raises(DefinitionError, match=r"tegu\.toml:6: sysctl\.vm\.x: is there twice"):
        load(write(f'{SYSTEM}[sysctl]\nvm.x = 1\n"vm.x" = 2\n'))


def test_a_value_of_another_kind_names_both_places(write):
    path = write(
        {
            "tegu.toml": f'include = ["base.toml"]\n{SYSTEM}[packages]\ninstall = "vim"\n',
            "base.toml": '[packages]\ninstall = ["vim"]\n',
        }
    )
    with pytest.raises(DefinitionError) as e:
        load(path)
    assert "is a single value here but a list at base.toml:2" in (e.value.hint or "")


PROFILES = f"""{SYSTEM}
[packages]
install = ["vim"]
[profile]
default = "server"
[profile.server.packages]
install = ["openssh-server"]
[profile.bare]
image.size = "1G"
packages.install = ["-vim"]
"""


def test_the_default_profile_is_merged_over_the_rest(write):
    definition = load(write(PROFILES))
    assert definition.profile == "server"
    assert definition.packages.install == ["vim", "openssh-server"]


def test_another_profile_can_be_asked_for(write):
    definition = load(write(PROFILES), profile="bare")
    assert definition.profile == "bare"
    assert definition.packages.install == []
    assert definition.image.size == "1G"


def test_an_unknown_profile_names_those_that_exist(write):
    with pytest.raises(DefinitionError) as e:
        load(write(PROFILES), profile="sever")
    assert e.value.message == (
        "tegu.toml: profile: there is no profile 'sever'; profiles are: bare, server"
    )
    assert e.value.hint == "did you mean 'server'?"
    with pytest.raises(DefinitionError, match="it defines none"):
        load(write(SYSTEM), profile="server")
    with pytest.raises(DefinitionError, match=r"^tegu\.toml:1: profile: there is no profile 'x'"):
        load(write('profile = "x"\n' + SYSTEM))


def test_profiles_of_an_included_file_are_extended_and_selected(write):
    path = write(
        {
            "tegu.toml": 'include = ["base.toml"]\nprofile = "bare"\n',
            "base.toml": PROFILES,
        }
    )
    assert load(path).profile == "bare"
    path = write(
        {
            "tegu.toml": 'include = ["base.toml"]\n[profile.server.packages]\ninstall = ["less"]\n'
            '[packages]\ninstall = ["-vim"]\n',
            "base.toml": PROFILES,
        }
    )
    assert load(path).packages.install == ["openssh-server", "less"]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[profile.x]\ninclude = ['a']\n", "'include' can not stand inside [profile.x]"),
        ("[profile.x.profile]\n", "'profile' can not stand inside [profile.x]"),
        ("[profile]\nx = 1\n", "profile.x: must be a table"),
        ("[profile.default]\n", "no profile can be called 'default'"),
        ("[[profile]]\n", "profile: must be a table of profiles"),
        ("[architecture.arm]\n", "is not an architecture; they are x86-64, arm64"),
        ("[architecture]\narm64 = 1\n", "architecture.arm64: must be a table"),
        ("[architecture.arm64.system]\narchitecture='arm64'\n", "can not choose the architecture"),
    ],
)
def test_profiles_and_architectures_of_the_wrong_shape(write, text, message):
    with pytest.raises(DefinitionError) as e:
        load(write(SYSTEM + text))
    assert message in e.value.message
    assert e.value.message.startswith("tegu.toml:")


@pytest.mark.parametrize("text", ["include = 'a'\n", "include = [1]\n", "include = ['']\n"])
def test_includes_of_the_wrong_type(write, text):
    with pytest.raises(DefinitionError, match=r"^tegu\.toml:1: include: must be"):
        load(write(text + SYSTEM))


def test_architecture_tables_and_defaults_follow_the_architecture(write):
    path = write(
        f"""{SYSTEM}
[architecture.arm64.packages]
install = ["efibootmgr"]
[architecture.x86-64.kernel]
cmdline = ["console=ttyS0"]
[profile.arm.system]
architecture = "arm64"
"""
    )
    here, there = load(path), load(path, architecture="arm64")
    assert here.kernel.package == "linux-image-cloud-amd64"
    assert here.kernel.cmdline == ["console=ttyS0"]
    assert here.image.firmware == ["uefi", "bios"]
    assert there.system.architecture == "arm64"
    assert there.kernel.package == "linux-image-cloud-arm64"
    assert there.kernel.cmdline == []
    assert there.image.firmware == ["uefi"]
    assert there.packages.install == ["efibootmgr"]
    assert load(path, profile="arm").packages.install == ["efibootmgr"]


def test_what_is_wrong_in_a_profile_that_nobody_selects_is_found(write):
    text = (
        PROFILES + "[profile.bare.units]\nenabled = []\n[architecture.arm64.image]\nsise = '1G'\n"
    )
    path = write(text)
    load(path)
    found = {str(p) for examined in examine_all(path) for p in examined.problems}
    assert found == {
        "tegu.toml:15: units.enabled: unknown key",
        "tegu.toml:17: image.sise: unknown key",
    }


def test_the_snapshot_is_filled_in(write):
    base = '[base]\nmirror = "https://mirror.example/{snapshot}/debian"\n'
    definition = load(write(f'{SYSTEM}{base}snapshot = "20261120T000000Z"\n'))
    assert definition.base.mirror == "https://mirror.example/20261120T000000Z/debian"
    with pytest.raises(DefinitionError, match=r"base\.snapshot is not set"):
        load(write(SYSTEM + base))


def test_a_shipped_profile_is_included_without_the_others(write, checkout):
    path = write('include = ["tegu:container-host"]\n' + SYSTEM)
    definition = load(path)
    assert definition.system.name == "acme"
    assert definition.packages.install == ["systemd", "crun"]
    assert definition.kernel.cmdline == ["quiet"]
    assert definition.overlay == [checkout / "distro/files"]
    assert definition.profile is None
    assert load(path, architecture="arm64").kernel.cmdline == ["quiet", "console=ttyAMA0"]
    with pytest.raises(DefinitionError, match="it defines none"):
        load(path, profile="server")


def test_a_shipped_file_is_included_with_its_profiles(write, checkout):
    path = write('include = ["tegu:tegu.toml"]\noverlay = ["-tegu:files"]\n' + SYSTEM)
    definition = load(path, profile="minimal")
    assert definition.packages.install == ["systemd", "chrony"]
    assert definition.overlay == []


def test_an_unknown_shipped_profile(write, checkout):
    with pytest.raises(DefinitionError) as e:
        load(write('include = ["tegu:sever"]\n' + SYSTEM))
    assert e.value.message.startswith("tegu.toml:1: include: there is no profile 'tegu:sever'")
    assert e.value.hint == "did you mean 'tegu:server'?"


def test_the_distribution_in_a_wheel(write, tmp_path, monkeypatch):
    import tegu

    package = tmp_path / "site-packages" / "tegu"
    (package / "distro").mkdir(parents=True)
    monkeypatch.setattr(tegu, "__file__", str(package / "__init__.py"))
    path = write('include = ["tegu:server"]\n' + SYSTEM)
    with pytest.raises(DefinitionError, match=r"tegu\.toml:1: include: .* lacks its distribution"):
        load(path)
    (package / "distro" / "tegu.toml").write_text('[profile.server.image]\nsize = "7G"\n')
    assert load(path).image.size == "7G"


def test_paths_are_absolute_when_the_definition_is_named_relatively(write, tmp_path):
    write({"sub/tegu.toml": SYSTEM + '[base]\nkeyring = "k.gpg"\n', "sub/k.gpg": ""})
    assert load(Path("sub/tegu.toml")).base.keyring == tmp_path / "sub" / "k.gpg"
