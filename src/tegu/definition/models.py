"""The definition of an operating system, as typed data.

One `tegu.toml` (with what it includes) becomes one `Definition`. Every table of the file is one
model here; unknown keys are errors and values are taken strictly (`"1"` is not a number). Paths
are relative to the file that names them and are made absolute by the loader. What depends on more
than one value is judged in `tegu.definition.checks`.

The string after each field is its documentation: the reference and the JSON Schema are made of it.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal, Self

from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    PlainSerializer,
    StrictInt,
    StrictStr,
    model_validator,
)

from tegu.definition.architecture import ARCHITECTURES, Architecture, Firmware
from tegu.definition.types import (
    DataSource,
    DottedName,
    EspSize,
    FileSystem,
    Format,
    GroupName,
    Hostname,
    HostPath,
    LocaleName,
    Mode,
    ModuleName,
    ModulePath,
    PackageName,
    Size,
    Snapshot,
    Socket,
    SystemName,
    TreePath,
    UnitName,
    Uri,
    UserName,
    Version,
    Word,
)

__all__ = [
    "Apt",
    "Base",
    "Cloud",
    "Definition",
    "File",
    "Hardening",
    "Image",
    "Kernel",
    "Packages",
    "Repository",
    "System",
    "Table",
    "Trim",
    "Units",
    "User",
]

DEFAULT_SUITES = ["trixie", "trixie-updates", "trixie-security"]
DEFAULT_KEYRING = Path("/usr/share/keyrings/debian-archive-keyring.gpg")


def _none_word(value: object) -> object:
    return None if value == "none" else value


# TOML has no null, so the word "none" stands for "no kernel" in files and in JSON.
KernelPackage = Annotated[
    PackageName | None,
    BeforeValidator(_none_word),
    PlainSerializer(lambda value: value or "none", return_type=str),
]
SysctlValue = StrictInt | StrictStr


class Table(BaseModel):
    """A table of the definition: unknown keys are refused, values never change after loading."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)


class System(Table):
    """What the system is called; goes into os-release, image names and manifests."""

    name: SystemName
    """Short name: `ID` of os-release(5), first part of every image's file name."""
    pretty_name: str = ""
    """Name for people; empty: made from name and version."""
    version: Version
    """Version of this system, such as `"26.11"`; a string, so in quotes."""
    home_url: str = ""
    """`HOME_URL` of os-release(5)."""
    support_url: str = ""
    """`SUPPORT_URL` of os-release(5)."""
    bug_url: str = ""
    """`BUG_REPORT_URL` of os-release(5)."""
    architecture: Architecture = "x86-64"
    """Processor architecture of the machines."""
    hostname: Hostname = "localhost"
    """Host name until the cloud gives one."""
    locale: LocaleName = "C.UTF-8"
    """`LANG` of the system."""
    timezone: str = "UTC"
    """Time zone, as a name of the tz database."""


class Base(Table):
    """The distribution underneath.

    `mirror` and `security_mirror` default to those of the build machine's own apt sources.
    A suite whose name ends in `-security` is read from `security_mirror`.
    """

    suites: list[Word] = Field(
        default=["trixie", "trixie-updates", "trixie-security"], min_length=1
    )
    """Suites to take packages from."""
    components: list[Word] = Field(default=["main"], min_length=1)
    """Components of those suites."""
    mirror: Uri | None = None
    """Mirror of the suites; `{snapshot}` in it is replaced by `snapshot`."""
    security_mirror: Uri | None = None
    """Mirror of the `-security` suites; `{snapshot}` in it is replaced as well."""
    keyring: HostPath = DEFAULT_KEYRING
    """OpenPGP keyring that the suites must be signed with."""
    snapshot: Snapshot | None = None
    """Pin the suites to a moment (UTC): fills `{snapshot}` in the mirrors, and the suites'
    `Valid-Until` is judged at that moment instead of now, as an archived index is long expired."""


class Repository(Table):
    """A further apt repository. Entries with the same `uri` and `suite` are merged."""

    uri: Uri
    """Where the repository is: http, https or file."""
    suite: Word
    """Suite (distribution directory)."""
    components: list[Word] = ["main"]
    """Components."""
    keyring: HostPath
    """OpenPGP keyring that the suite must be signed with."""
    priority: int = Field(default=500, ge=-32768, le=32767)
    """As in apt_preferences(5): higher wins."""
    in_image: bool = False
    """Machines read it too: a source and its keyring are written into the image."""


class Packages(Table):
    """Packages by name."""

    install: list[PackageName] = []
    """Packages to install, with all they depend on."""
    exclude: list[PackageName] = []
    """Packages that must not be installed, not even as a dependency."""
    recommends: bool = False
    """Install recommended packages too."""
    pin: dict[PackageName, str] = {}
    """Versions by package: exact (`"1.2-3"`) or a prefix (`"1.2*"`)."""
    local: list[HostPath] = []
    """Package files (.deb) of our own to install."""
    tegu: bool = True
    """Build the host half of `tegu` as a package and install it."""


class Apt(Table):
    """What apt reads on the machines, once they run; the build has sources of its own."""

    sources: Literal["base", "none"] = "none"
    """`base` writes the base suites and their mirror into the image."""
    mirror: Uri | None = None
    """Mirror for the machines; default: `base.mirror`. The build machine's own is never written."""
    security_mirror: Uri | None = None
    """Mirror of the `-security` suites for the machines; default: `base.security_mirror`."""


class File(Table):
    """One file laid over the tree: exactly one of `content`, `source`, `symlink`, `directory`.

    Entries with the same `path` are merged.
    """

    path: TreePath
    """Where in the image."""
    content: str | None = None
    """The content itself."""
    source: HostPath | None = None
    """File to copy."""
    symlink: str | None = Field(default=None, min_length=1)
    """Target of a symbolic link."""
    directory: bool = False
    """Make a directory."""
    mode: Mode | None = None
    """Permissions in octal; default 0644, 0755 for a directory or an executable `source`."""
    owner: UserName = "root"
    """Owner, by name."""
    group: GroupName = "root"
    """Group, by name."""


class Units(Table):
    """systemd units: enabled, disabled (both override the presets) and masked."""

    enable: list[UnitName] = []
    """Units to enable."""
    disable: list[UnitName] = []
    """Units to disable."""
    mask: list[UnitName] = []
    """Units that can not be started at all."""
    default_target: UnitName = "multi-user.target"
    """Target to boot into."""


class Kernel(Table):
    """The kernel package, its command line, its modules and the initrd."""

    package: KernelPackage = "linux-image-cloud-amd64"
    """Kernel package; default: the cloud kernel of the architecture; `"none"`: no kernel."""
    cmdline: list[str] = []
    """Kernel parameters, one per entry; later entries win in the kernel."""
    initrd: Literal["minimal", "none"] = "minimal"
    """`minimal` holds `modules` and what they need, and nothing else; `none` boots straight from
    the kernel's built-in drivers."""
    modules: list[ModuleName] = []
    """Modules in the initrd."""
    keep_modules: list[ModulePath] = []
    """Modules or directories of modules (`kernel/net/...`) kept in the image; empty keeps all."""
    load: list[ModuleName] = []
    """Modules loaded at boot (modules-load.d(5))."""
    blacklist: list[ModuleName] = []
    """Modules that are never loaded, by alias or by name (modprobe.d(5))."""


class Image(Table):
    """The disk: virtual size, layout, root file system, formats, and how it boots."""

    size: Size = "20G"
    """Virtual size of the disk; `minimal`: as small as the content allows."""
    layout: Literal["plain", "immutable"] = "plain"
    """Partition layout: `plain` is boot partitions and one root; `immutable` is two slots for a
    read-only root that dm-verity checks, and a partition for /var."""
    slot_size: Size = "2G"
    """Size of each slot of the immutable layout; all later versions must fit in it."""
    filesystem: FileSystem = "ext4"
    """Root file system; erofs is read-only, and the default of the immutable layout."""
    grow: bool = True
    """Grow the root file system to the disk at first boot (/var, with slots); default false with
    a plain erofs root."""
    formats: list[Format] = Field(default=["qcow2"], min_length=1)
    """What to make of the tree."""
    firmware: list[Firmware] = ["uefi", "bios"]
    """Firmware that the disk boots under; default: all that the architecture has."""
    esp_size: EspSize = "64M"
    """Size of the EFI system partition."""
    secure_boot_key: HostPath | None = None
    """Private key (PEM) that signs boot loader and kernel for Secure Boot; immutable layout only:
    elsewhere machines make boot files themselves."""
    secure_boot_certificate: HostPath | None = None
    """The certificate (PEM) of that key, which the machines' firmware must know."""

    @model_validator(mode="after")
    def _read_only_root_does_not_grow(self) -> Self:
        if self.layout == "immutable":
            # frozen for others, not while being made
            if "filesystem" not in self.model_fields_set:
                object.__setattr__(self, "filesystem", "erofs")
        elif self.filesystem == "erofs" and "grow" not in self.model_fields_set:
            object.__setattr__(self, "grow", False)
        return self


class Cloud(Table):
    """cloud-init: where it looks for its data, and for whom."""

    datasources: list[DataSource] = []
    """Data sources in the order in which they are tried; no other is probed."""
    default_user: UserName = "tegu"
    """User that cloud-init makes for the keys it is given."""


class User(Table):
    """A user made at build time. Entries with the same `name` are merged."""

    name: UserName
    """Login name."""
    uid: int | None = Field(default=None, ge=1000, le=59999)
    """User id; default: the next free one, in the order of the entries."""
    groups: list[GroupName] = []
    """Further groups."""
    shell: str = "/bin/bash"
    """Login shell."""
    password_hash: str | None = None
    """crypt(5) hash of the password; default: no password, the account takes keys only."""
    authorized_keys: list[str] = []
    """SSH public keys, one per entry, as in sshd(8)."""
    sudo: bool = False
    """May become root by sudo without a password."""


class Hardening(Table):
    """What may stay privileged, and what may listen."""

    setuid: list[TreePath] | None = None
    """Paths that keep setuid and setgid, all others lose the bits; default: as packaged."""
    root_password: str = "locked"
    """`locked`, or a crypt(5) hash."""
    listening: list[Socket] = ["tcp:22"]
    """Sockets that the acceptance plan allows on other than loopback, as `tcp:PORT`, `udp:PORT`."""


class Trim(Table):
    """What is removed from the tree after configuration."""

    paths: list[TreePath] = []
    """Paths to remove (shell globs)."""
    keep: list[TreePath] = []
    """Paths to keep although `paths` matches them (shell globs)."""
    locales: list[LocaleName] | None = None
    """Locales whose data and translations stay; default: all."""


class Definition(Table):
    """A whole operating system."""

    system: System
    base: Base = Base()
    repository: list[Repository] = []
    packages: Packages = Packages()
    apt: Apt = Apt()
    overlay: list[HostPath] = []
    """Directories laid over the tree, in order; owner root, directories and executable files 0755,
    other files 0644; `.gitkeep` is left out. For other modes and owners see `[[file]]`."""
    file: list[File] = []
    units: Units = Units()
    kernel: Kernel = Kernel()
    sysctl: dict[DottedName, SysctlValue] = {}
    """Kernel settings at boot (sysctl.d(5)), by name: an integer or a string."""
    image: Image = Image()
    cloud: Cloud = Cloud()
    user: list[User] = []
    hardening: Hardening = Hardening()
    trim: Trim = Trim()
    include: list[HostPath] = []
    """Definitions that this one builds on: files, or `tegu:PROFILE`. Empty once loaded."""
    profile: str | None = None
    """Profile to select when none is asked for; once loaded, the one that was selected."""
    plan: list[HostPath] = []
    """Test plans (TOML) that an image of this definition must pass."""

    @model_validator(mode="after")
    def _defaults_of_the_architecture(self) -> Self:
        facts = ARCHITECTURES[self.system.architecture]
        if "package" not in self.kernel.model_fields_set:
            kernel = self.kernel.model_copy(update={"package": facts.kernel})
            object.__setattr__(self, "kernel", kernel)
        if "firmware" not in self.image.model_fields_set:
            # The boot loader that counts tries is a UEFI program.
            firmware = ["uefi"] if self.image.layout == "immutable" else list(facts.firmware)
            image = self.image.model_copy(update={"firmware": firmware})
            object.__setattr__(self, "image", image)
        return self
