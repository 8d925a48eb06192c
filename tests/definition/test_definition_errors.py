"""Every rule of a definition: a file that breaks it, and the line that says so."""

from __future__ import annotations

import pytest

from tegu.definition import load
from tegu.errors import DefinitionError

SYSTEM = '[system]\nname = "acme"\nversion = "1"\n'  # three lines
ED25519 = "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAICQT0fD0vfdFZgyYArWf5pz7nUBoaSkM0ZMOlwu4DXTb"


def error(path) -> DefinitionError:
    with pytest.raises(DefinitionError) as e:
        load(path)
    return e.value


@pytest.mark.parametrize(
    ("text", "message", "hint"),
    [
        ("[packages]\ninstal = []", "5: packages.instal: unknown key", "did you mean 'install'?"),
        ("[pakages]\n", "4: pakages: unknown key", "did you mean 'packages'?"),
        (
            "[image]\nhostname = 'x'",
            "5: image.hostname: unknown key",
            "'hostname' belongs in [system]",
        ),
        (
            "[image]\ninclude = []",
            "5: image.include: unknown key",
            "'include' belongs at the top of the file, before any table",
        ),
        ("[image]\nshell = ''", "5: image.shell: unknown key", "'shell' belongs in [[user]]"),
        ("[cloud]\nzzz = 1", "5: cloud.zzz: unknown key", "known keys: datasources, default_user"),
        (
            "[image]\nfilesystem = 'ext5'",
            "5: image.filesystem: 'ext5' is not one of ext4, xfs, btrfs, erofs",
            "did you mean 'ext4'?",
        ),
        (
            "[cloud]\ndatasources = ['nocloud']",
            "5: cloud.datasources: 'nocloud' is not one of",
            "did you mean 'NoCloud'?",
        ),
        (
            "[image]\nformats = 'raw'",
            "5: image.formats: must be a list, not a string",
            'write ["raw"]',
        ),
        ("[image]\nformats = ['-*']", "5: image.formats: must have at least 1 entry", None),
        (
            "[packages]\nrecommends = 'yes'",
            "5: packages.recommends: must be true or false, not a string",
            "write true or false, without quotes",
        ),
        ("[packages]\nrecommends = 1", "must be true or false, not an integer", None),
        (
            "[[user]]\nname = 'a'\nuid = '1000'",
            "6: user[a].uid: must be an integer, not a string",
            "write it without quotes",
        ),
        ("[[user]]\nname = 'a'\nuid = 10", "6: user[a].uid: must be at least 1000", None),
        ("[[user]]\nname = 'a'\nuid = 70000", "6: user[a].uid: must be at most 59999", None),
        (
            "[user]\nname = 'a'",
            "4: user: must be a list, not a table",
            "write [[user]] with double brackets",
        ),
        (
            "[[units]]\n",
            "4: units: must be a table, not a list",
            "write [units] with single brackets",
        ),
        ("[[file]]\ncontent = 'x'", "4: file[0].path: is missing", None),
        ("[base]\nkeyring = 1", "5: base.keyring: must be a path in quotes, not an integer", None),
        ("[base]\nkeyring = 2026-01-01", "must be a path in quotes, not a date or time", None),
        ("[packages]\ninstall = ['Vim']", "5: packages.install: 'Vim' is not a package name", None),
        (
            "[packages]\ninstall = [\n'vim',\n'x y']",
            "7: packages.install: 'x y' is not a package",
            None,
        ),
        (
            "[units]\nenable = ['ssh']",
            "5: units.enable: 'ssh' is not a systemd unit with its",
            None,
        ),
        ("[packages.pin]\nA = '1'", "5: packages.pin.A: 'A' is not a package name", None),
        (
            "[sysctl]\nvm.x = true",
            "5: sysctl.vm.x: must be an integer or a string, not a boolean",
            "write 1 or 0",
        ),
        (
            "[sysctl]\nvm.x = 1.5",
            "5: sysctl.vm.x: must be an integer or a string, not a number",
            None,
        ),
        ("[sysctl]\nx = 1", "5: sysctl.x: 'x' is not a sysctl name", None),
        ("[sysctl]\nvm.x = ''", "5: sysctl.vm.x: must be one line", None),
        ('[sysctl]\nvm.x = "a\\nb"', "5: sysctl.vm.x: must be one line", None),
        (
            "[base]\nmirror = 'mirror.example'",
            "5: base.mirror: 'mirror.example' is not a URI",
            None,
        ),
        ("[base]\nmirror = 'http://a b/'", "5: base.mirror: ", None),
        (
            "[base]\nmirror = 'http://me:pw@mirror.example/'",
            "5: base.mirror: has a user or password in it",
            "use apt_auth.conf(5)",
        ),
        ("[base]\nmirror = 'http://[mirror/'", "5: base.mirror: is not a valid URI", None),
        ("[base]\nsnapshot = 'yesterday'", "5: base.snapshot: 'yesterday' is not a UTC time", None),
        (
            "[apt]\nmirror = 'http://mirror.example'",
            "5: apt.mirror: is set, but apt.sources is 'none'",
            'set sources = "base"',
        ),
    ],
)
def test_types_keys_and_words(write, text, message, hint):
    e = error(write(f"{SYSTEM}{text}\n"))
    assert message in e.message
    assert e.message.startswith("tegu.toml:")
    if hint is not None:
        assert hint in (e.hint or "")


@pytest.mark.parametrize(
    ("text", "message", "hint"),
    [
        (
            "name = 'acme'\nversion = 26.11",
            "3: system.version: must be a string, not a number",
            "write it in quotes",
        ),
        ("name = 'Acme'\nversion = '1'", "2: system.name: 'Acme' is not a short name", None),
        ("name = 'acme'", "1: system.version: is missing", None),
        (
            "name = 'a'\nversion = '1'\nhostname = '-a'",
            "4: system.hostname: '-a' is not a host name",
            None,
        ),
        (
            "name = 'a'\nversion = '1'\ntimezone = 'Europe/Berlim'",
            "4: system.timezone: there is no time zone 'Europe/Berlim'",
            "did you mean 'Europe/Berlin'?",
        ),
        (
            "name = 'a'\nversion = '1'\ntimezone = '../../etc/passwd'",
            "4: system.timezone: there is no",
            None,
        ),
        (
            'name = "a"\nversion = "1"\npretty_name = "a\\nb"',
            "4: system.pretty_name: must be one line",
            None,
        ),
        (
            "name = 'a'\nversion = '1'\nhome_url = 'example'",
            "4: system.home_url: 'example' is not a URL",
            None,
        ),
        (
            "name = 'a'\nversion = '1'\narchitecture = 'arm'",
            "is not one of x86-64, arm64",
            "'arm64'",
        ),
        (
            f"name = '{'a' * 65}'\nversion = '1'",
            "2: system.name: is longer than 64 characters",
            None,
        ),
    ],
)
def test_the_system_table(write, text, message, hint):
    e = error(write(f"[system]\n{text}\n"))
    assert message in e.message
    if hint is not None:
        assert hint in (e.hint or "")


def test_an_empty_file(write):
    assert error(write("")).message == "tegu.toml:1: system: is missing"


@pytest.mark.parametrize(
    ("text", "message", "hint"),
    [
        (
            "[image]\nsize = '100M'",
            "5: image.size: 100M can not hold an ESP of 64M and a root",
            "ext4 needs a disk of at least 128M, or 'minimal'",
        ),
        ("[image]\nsize = '300M'\nfilesystem = 'xfs'", "5: image.size: 300M can not hold", "xfs"),
        (
            "[image]\nsize = '20G'\nesp_size = '30000M'",
            "5: image.size: 20G can not hold an ESP of",
            None,
        ),
        ("[image]\nesp_size = '1M'", "5: image.esp_size: 1M can not hold a boot loader", None),
        ("[image]\nsize = '900T'", "5: image.size: is more than 64T", None),
        ("[image]\nsize = '0G'", "5: image.size: '0G' is not a size", None),
        (
            "[image]\nfilesystem = 'erofs'\ngrow = true",
            "6: image.grow: erofs is read-only",
            "grow = false",
        ),
        (
            "[image]\nlayout = 'immutable'\nfilesystem = 'ext4'",
            "6: image.filesystem: a slot of the immutable layout is erofs, not ext4",
            "leave it out",
        ),
        (
            "[image]\nlayout = 'immutable'\nfirmware = ['uefi', 'bios']",
            "6: image.firmware: the immutable layout boots under UEFI only",
            "uefi",
        ),
        (
            "[image]\nlayout = 'immutable'\nslot_size = 'minimal'",
            "6: image.slot_size: later versions must fit in a slot",
            "2G",
        ),
        (
            "[image]\nlayout = 'immutable'\nsize = '4G'",
            "6: image.size: 4G can not hold an ESP of 64M and a root",
            "4224M",
        ),
        (
            "[image]\nlayout = 'immutable'\n[kernel]\ninitrd = 'none'",
            "7: kernel.initrd: the immutable layout needs an initrd",
            "minimal",
        ),
        ("[image]\nformats = ['slot']", "5: image.formats: a slot image is of", "immutable"),
        (
            "[image]\nsecure_boot_key = '/etc/passwd'\nsecure_boot_certificate = '/etc/passwd'",
            "5: image.secure_boot_key: machines of the plain layout make boot files themselves",
            "immutable",
        ),
        (
            "[image]\nlayout = 'immutable'\nsecure_boot_certificate = '/etc/passwd'",
            "6: image.secure_boot_certificate: needs secure_boot_key beside it",
            None,
        ),
        ("[image]\nfirmware = []", "5: image.firmware: qcow2 needs at least one firmware", None),
        (
            "[kernel]\npackage = 'none'",
            "5: kernel.package: is 'none', but image.formats has qcow2",
            "without a kernel",
        ),
        (
            "[kernel]\npackage = 'linux-image-arm64'",
            "5: kernel.package: 'linux-image-arm64' is a kernel for arm64",
            "linux-image-cloud-amd64",
        ),
        ("[kernel]\ncmdline = ['a b']", "5: kernel.cmdline: has a space in it", "entry of its own"),
        ('[kernel]\ncmdline = ["a\\nb"]', "5: kernel.cmdline: has a line break", None),
        ("[kernel]\ncmdline = ['']", "5: kernel.cmdline: is empty", None),
        ("[kernel]\ncmdline = ['x=\"a b']", "5: kernel.cmdline: has a double quote that", None),
        (f"[kernel]\ncmdline = ['{'x' * 2000}']", "5: kernel.cmdline: is 2000 bytes long", None),
        (
            "[kernel]\nload = ['br-netfilter']\nblacklist = ['br_netfilter']",
            "5: kernel.load: 'br-netfilter' is in kernel.blacklist as well",
            None,
        ),
        (
            "[kernel]\ninitrd = 'none'\nmodules = ['ext4']",
            "6: kernel.modules: without an initrd",
            None,
        ),
        (
            "[packages]\ninstall = ['vim']\nexclude = ['vim']",
            "5: packages.install: 'vim' is both installed and excluded",
            '"-vim"',
        ),
        (
            "[packages]\nexclude = ['vim']\npin.vim = '1'",
            "6: packages.pin.vim: 'vim' is both pinned",
            None,
        ),
        (
            "[packages]\npin.vim = '1 2'",
            "5: packages.pin.vim: '1 2' is not a package version",
            None,
        ),
        ("[packages]\npin.vim = '*'", "5: packages.pin.vim: '*' is not a package version", None),
        (
            "[packages]\nexclude = ['linux-image-cloud-amd64']",
            "5: packages.exclude: 'linux-image-cloud-amd64' is kernel",
            None,
        ),
        (
            "[units]\nenable = ['a.service']\nmask = ['a.service']",
            "5: units.enable: 'a.service' is both enabled and masked",
            None,
        ),
        (
            "[units]\nenable = ['a.service']\ndisable = ['a.service']",
            "both enabled and disabled",
            None,
        ),
        (
            "[units]\ndefault_target = 'a.service'",
            "5: units.default_target: 'a.service' is not a target",
            None,
        ),
        (
            "[units]\nmask = ['multi-user.target']",
            "5: units.mask: 'multi-user.target' is units.default_target",
            None,
        ),
        ("[hardening]\nlistening = ['22']", "5: hardening.listening: '22' is not a socket", None),
        ("[hardening]\nlistening = ['tcp:70000']", "'tcp:70000': ports end at 65535", None),
        ("[hardening]\nlistening = ['sctp:1']", "'sctp:1' is not a socket", None),
        ("[hardening]\nsetuid = ['/usr/bin/../bin/su']", "is not in its shortest form", None),
        ("[hardening]\nsetuid = ['su']", "5: hardening.setuid: 'su' is not an absolute path", None),
        ("[hardening]\nroot_password = 'secret'", "is not 'locked' or a crypt(5) hash", "mkpasswd"),
        ("[trim]\npaths = ['/*']", "5: trim.paths: '/*' would remove the whole system", None),
        ("[trim]\npaths = ['/']", "5: trim.paths: ", None),
        ("[trim]\npaths = ['/usr/../*']", "goes up with '..'", None),
        ("[trim]\nkeep = ['doc']", "5: trim.keep: 'doc' is not an absolute path", None),
        (
            "[[file]]\npath = '/etc/x'",
            "4: file[/etc/x]: says nothing of what is there",
            "give one of",
        ),
        (
            "[[file]]\npath = '/etc/x'\ncontent = ''\nsymlink = 'y'",
            "7: file[/etc/x].symlink: can not stand beside 'content'",
            None,
        ),
        (
            "[[file]]\npath = '/etc/x'\ndirectory = true\nsymlink = 'y'",
            "can not stand beside 'symlink'",
            None,
        ),
        (
            "[[file]]\npath = '/etc/x'\nsymlink = 'y'\nmode = '0644'",
            "7: file[/etc/x].mode: a symbolic",
            None,
        ),
        (
            "[[file]]\npath = '/etc/x'\ncontent = ''\nmode = '999'",
            "7: file[/etc/x].mode: '999' is not a mode",
            None,
        ),
        (
            "[[file]]\npath = 'etc/x'\ncontent = ''",
            "5: file[etc/x].path: 'etc/x' is not an absolute",
            None,
        ),
        ("[[file]]\npath = '/etc//x'\ncontent = ''", "is not in its shortest form, 'etc/x'", None),
        ("[[file]]\npath = '/etc/../x'\ncontent = ''", "is not in its shortest form", None),
        ("[[file]]\npath = '/run/x'\ncontent = ''", "is under /run, which is mounted over", None),
        (
            "[[file]]\npath = '/etc/x'\ncontent = ''\n[[file]]\npath = '/etc/x/y'\ncontent = ''",
            "8: file[/etc/x/y].path: is inside /etc/x",
            None,
        ),
        (
            "[[file]]\npath = '/etc/x'\nsource = 'nope'",
            "6: file[/etc/x].source: no such file: ",
            None,
        ),
        ("overlay = ['nope']", "overlay: unknown key", None),  # in [system]: it must stand above
        ("[packages]\nlocal = ['nope.deb']", "5: packages.local: no such file: ", None),
    ],
)
def test_rules_between_values(write, text, message, hint):
    e = error(write(f"{SYSTEM}{text}\n"))
    assert message in e.message
    assert e.message.startswith("tegu.toml:")
    if hint is not None:
        assert hint in (e.hint or "")


@pytest.mark.parametrize(
    ("text", "message", "hint"),
    [
        ("name = 'root'", "5: user[root].name: 'root' is there already", "hardening.root_password"),
        ("name = 'daemon'", "5: user[daemon].name: 'daemon' is a system user", None),
        ("name = 'systemd-x'", "is a system user", None),
        ("name = 'Bob'", "5: user[Bob].name: 'Bob' is not a user or group name", None),
        ("name = 'a'\nshell = 'bash'", "6: user[a].shell: 'bash' is not the absolute path", None),
        (
            "name = 'a'\nuid = 1000\n[[user]]\nname = 'b'\nuid = 1000",
            "1000 is the uid of 'a' already",
            None,
        ),
        (
            "name = 'a'\npassword_hash = 'hunter2'",
            "6: user[a].password_hash: is not a crypt(5)",
            "mkpasswd",
        ),
        ("name = 'a'\npassword_hash = '$1$abc$def'", "is a hash of a method that is broken", None),
        ("name = 'a'\nauthorized_keys = ['ssh-ed25519']", "is not an SSH public key", None),
        (f"name = 'a'\nauthorized_keys = ['{ED25519[:-8]}']", "is a damaged SSH public key", None),
        (
            "name = 'a'\nauthorized_keys = ['ssh-dss AAAAB3NzaC1kc3M=']",
            "'ssh-dss' keys are not",
            None,
        ),
        (
            f"name = 'a'\nauthorized_keys = ['{ED25519.replace('ssh-ed25519', 'ssh-rsa')}']",
            "damaged",
            None,
        ),
        (
            'name = "a"\nauthorized_keys = ["""-----BEGIN OPENSSH PRIVATE KEY-----\n"""]',
            "is not there to take out",
            None,
        ),
        ('name = "a"\nauthorized_keys = ["BEGIN OPENSSH PRIVATE KEY"]', "is a private key", ".pub"),
        (f'name = "a"\nauthorized_keys = ["""{ED25519}\nx"""]', "must be one line", None),
    ],
)
def test_users(write, text, message, hint):
    e = error(write(f"{SYSTEM}[[user]]\n{text}\n"))
    assert message in e.message
    if hint is not None:
        assert hint in (e.hint or "")


def test_a_secret_is_never_shown(write):
    text = (
        "[[user]]\nname = 'a'\npassword_hash = 'hunter2'\n[hardening]\nroot_password = 'hunter2'\n"
    )
    e = error(write(SYSTEM + text))
    assert "hunter2" not in e.message + (e.hint or "")


def test_good_users_and_keys_are_taken(write):
    keys = [
        ED25519,
        f'from="10.0.0.0/8",no-pty {ED25519} me@example',
        "sk-ssh-ed25519@openssh.com AAAAGnNrLXNzaC1lZDI1NTE5QG9wZW5zc2guY29tAAAAIHTVQe1lZ0dCwh+h"
        "u02pDkmbKQKMQEUCvRM2PXUUS2zFAAAABHNzaDo=",
    ]
    text = f"""{SYSTEM}[[user]]
name = "ops"
password_hash = "$y$j9T$F5Jx5fExrKuPp53xLKQ..1$X3DX6M94c7o.9agCG9G317fhZg9SqC.5i5rd.RhAtQ7"
authorized_keys = {keys!r}
"""
    assert load(write(text)).user[0].authorized_keys == keys


def test_firmware_that_the_architecture_lacks(write):
    text = SYSTEM + 'architecture = "arm64"\n[image]\nfirmware = ["bios"]\n'
    e = error(write(text))
    assert e.message == "tegu.toml:6: image.firmware: arm64 machines have no bios; they have uefi"


def test_an_erofs_root_does_not_grow_by_default(write):
    assert load(write(f'{SYSTEM}[image]\nfilesystem = "erofs"\n')).image.grow is False


def test_the_immutable_layout_has_defaults_of_its_own(write):
    image = load(write(f'{SYSTEM}[image]\nlayout = "immutable"\n')).image
    assert (image.filesystem, image.firmware, image.grow) == ("erofs", ["uefi"], True)


def test_apt_on_the_machines_needs_a_mirror_that_is_named(write):
    e = error(write(f'{SYSTEM}[apt]\nsources = "base"\nmirror = "https://mirror.example/debian"\n'))
    assert e.message == (
        "tegu.toml:5: apt.sources: is 'base', but no mirror is named for trixie-security"
    )
    assert e.hint == "set apt.security_mirror or base.security_mirror"
    text = f'{SYSTEM}[base]\nsuites = ["sid"]\nmirror = "https://mirror.example/debian"\n'
    assert load(write(text + '[apt]\nsources = "base"\n')).apt.sources == "base"


def test_no_kernel_is_fine_without_a_disk(write):
    text = f'{SYSTEM}[kernel]\npackage = "none"\n[image]\nformats = ["oci", "tar"]\n'
    assert load(write(text)).kernel.package is None


def test_quoted_kernel_parameters_are_fine(write):
    text = f"{SYSTEM}[kernel]\ncmdline = ['dyndbg=\"file a.c +p\"', 'quiet', '{'x' * 1000}']\n"
    assert len(load(write(text)).kernel.cmdline) == 3


def test_a_missing_path_names_the_nearest_and_its_line(write):
    path = write(
        {
            "tegu.toml": 'overlay = [\n  "file",\n]\nplan = ["accept.toml"]\n' + SYSTEM,
            "files/x": "",
            "accept.toml/x": "",
        }
    )
    e = error(path)
    assert e.message.startswith("tegu.toml:2: overlay: no such directory: ")
    assert "did you mean 'files'?" in (e.hint or "")
    assert "accept.toml is not a file" in (e.hint or "")


def test_a_path_that_can_not_be_looked_at(write):
    name = "x" * 5000
    e = error(write(f"{SYSTEM}[[file]]\npath = '/etc/x'\nsource = '{name}'\n"))
    assert "File name too long" in e.message
    assert len(e.message) < 200


def test_all_problems_are_reported_in_the_order_of_the_file(write):
    text = f"""{SYSTEM}
[image]
size = "big"
filesytem = "ext4"
[packages]
install = ["-vim", 1]
[cloud]
datasources = ["EC2"]
"""
    e = error(write(text))
    assert e.message.startswith("tegu.toml:6: image.size: 'big' is not a size")
    assert (e.hint or "").splitlines() == [
        "5 problems:",
        e.message,
        "tegu.toml:7: image.filesytem: unknown key (did you mean 'filesystem'?)",
        "tegu.toml:9: packages.install: 'vim' is not there to take out (nothing is inherited; a"
        " default is not, it ends when the key is set at all)",
        "tegu.toml:9: packages.install: must be a string, not an integer (write it in quotes)",
        "tegu.toml:11: cloud.datasources: 'EC2' is not one of NoCloud, ConfigDrive, AliYun, Ec2,"
        " Azure, GCE, OpenStack (did you mean 'Ec2'?)",
    ]


def test_a_problem_is_always_one_line(write):
    text = f"""{SYSTEM}
[image]
"a\\nb" = 1
[[file]]
path = "/etc/x"
source = "c\\nd\\u0000"
[profile.p]
"""
    e = error(write(text.replace("\\\\", "\\")))
    assert e.message == "tegu.toml:6: image.a\\nb: unknown key"
