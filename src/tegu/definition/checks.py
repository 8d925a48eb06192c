"""What a definition must hold beyond the type of each value: rules between values, and files.

Every rule yields flaws: where, what is wrong, and what may be done. None of them raises.
"""

from __future__ import annotations

import posixpath
from collections.abc import Iterator, Sequence
from pathlib import Path
from urllib.parse import urlsplit

from tegu.definition.accounts import account_flaws
from tegu.definition.architecture import ARCHITECTURES
from tegu.definition.locate import Location
from tegu.definition.models import DEFAULT_KEYRING, Definition, File
from tegu.definition.problems import Flaw, nearest, shown_path
from tegu.definition.slots import slot_flaws

__all__ = ["DISK_FORMATS", "flaws", "mebibytes"]

DISK_FORMATS = frozenset({"raw", "qcow2", "vhd", "vhd-fixed"})
MIN_ESP_MIB = 16
# The smallest root in MiB that each mkfs makes and a small system fits in; mkfs.xfs refuses less
# than 300 MiB (xfsprogs 5.19), mkfs.btrfs less than about 110.
MIN_ROOT_MIB = {"ext4": 64, "xfs": 300, "btrfs": 128, "erofs": 16}
# COMMAND_LINE_SIZE of x86 and arm64 is 2048 with the final NUL; the build adds root= and the like.
MAX_CMDLINE = 1900
_SLOT_WORDS = 300  # root hash, salt, and the partitions of the immutable layout
_VOLATILE = ("/dev", "/proc", "/run", "/sys")
_UNITS_MIB = {"M": 1, "G": 1024, "T": 1024 * 1024}


def flaws(definition: Definition) -> Iterator[Flaw]:
    """Yield everything that is wrong with `definition`."""
    yield from _system(definition)
    yield from _base(definition)
    yield from _packages(definition)
    yield from _files(definition)
    yield from _units(definition)
    yield from _kernel(definition)
    yield from _sysctl(definition)
    yield from _image(definition)
    yield from account_flaws(definition)
    yield from _hardening(definition)
    yield from _trim(definition)
    yield from _paths(definition)


def mebibytes(size: str) -> int | None:
    """Return a `Size` in MiB; None for `minimal`."""
    return None if size == "minimal" else int(size[:-1]) * _UNITS_MIB[size[-1]]


def _system(definition: Definition) -> Iterator[Flaw]:
    system = definition.system
    for key in ("pretty_name", "home_url", "support_url", "bug_url"):
        value: str = getattr(system, key)
        if not value.isprintable():
            yield Flaw(("system", key), "must be one line of printable characters")
        elif key.endswith("_url") and value and not urlsplit(value).scheme:
            yield Flaw(("system", key), f"'{value}' is not a URL", "it starts with https://")
    yield from _timezone(system.timezone)


def _timezone(name: str) -> Iterator[Flaw]:
    database = Path("/usr/share/zoneinfo")
    if not database.is_dir():
        return  # no tz database here to judge by; the build installs one
    clean = posixpath.normpath(name) == name and not name.startswith(("/", "."))
    if clean and "\0" not in name and (database / name).is_file():
        return
    import zoneinfo

    near = nearest(name, zoneinfo.available_timezones())
    hint = f"did you mean '{near}'?" if near else "names are like 'Europe/Berlin' and 'UTC'"
    yield Flaw(("system", "timezone"), f"there is no time zone {name!r}", hint)


def _base(definition: Definition) -> Iterator[Flaw]:
    base = definition.base
    uris: list[tuple[Location, str | None]] = [
        (("base", "mirror"), base.mirror),
        (("base", "security_mirror"), base.security_mirror),
        (("apt", "mirror"), definition.apt.mirror),
        (("apt", "security_mirror"), definition.apt.security_mirror),
    ]
    uris += [(("repository", i, "uri"), r.uri) for i, r in enumerate(definition.repository)]
    for location, uri in uris:
        if uri is None:
            continue
        if "{snapshot}" in uri:
            what = "has {snapshot} in it, but base.snapshot is not set"
            yield Flaw(location, what, 'set it, such as snapshot = "20261120T000000Z"')
        try:
            credentials = "@" in urlsplit(uri).netloc
        except ValueError as e:
            yield Flaw(location, f"is not a valid URI: {e}")
            continue
        if credentials:
            what = "has a user or password in it; a definition is no place for secrets"
            yield Flaw(location, what, "use apt_auth.conf(5) on the build machine")
    yield from _apt(definition)


def _apt(definition: Definition) -> Iterator[Flaw]:
    apt, base = definition.apt, definition.base
    if apt.sources == "none":
        if apt.mirror or apt.security_mirror:
            location = ("apt", "mirror" if apt.mirror else "security_mirror")
            yield Flaw(location, "is set, but apt.sources is 'none'", 'set sources = "base"')
        return
    # The build machine's own mirror, which a lock uses by default, is no business of the image: it
    # may be private, and the image would depend on where it was built.
    for key in ("mirror", "security_mirror"):
        security = key == "security_mirror"
        needed = [s for s in base.suites if s.endswith("-security") == security]
        if needed and not (getattr(apt, key) or getattr(base, key)):
            what = f"is 'base', but no mirror is named for {', '.join(needed)}"
            yield Flaw(("apt", "sources"), what, f"set apt.{key} or base.{key}")


def _packages(definition: Definition) -> Iterator[Flaw]:
    packages = definition.packages
    excluded = set(packages.exclude)
    for index, name in enumerate(packages.install):
        if name in excluded:
            hint = f'an inherited one is taken out with "-{name}"'
            what = f"'{name}' is both installed and excluded"
            yield Flaw(("packages", "install", index), what, hint)
    kernel = definition.kernel.package
    if kernel in excluded:
        what = f"'{kernel}' is kernel.package, and can not be excluded"
        location = ("packages", "exclude", packages.exclude.index(kernel))
        yield Flaw(location, what, 'for no kernel: kernel.package = "none"')
    for name, version in packages.pin.items():
        if name in excluded:
            yield Flaw(("packages", "pin", name), f"'{name}' is both pinned and excluded")
        if not _is_version(version):
            what = f"{version!r} is not a package version"
            yield Flaw(("packages", "pin", name), what, "such as '1.2-3', or '1.2*' for a prefix")


def _is_version(version: str) -> bool:
    # The characters of a version: deb-version(7). A '*' may end it.
    body = version.removesuffix("*")
    return bool(body) and all(c.isascii() and (c.isalnum() or c in ".+-~:") for c in body)


def _files(definition: Definition) -> Iterator[Flaw]:
    by_path: dict[str, int] = {}
    for index, file in enumerate(definition.file):
        here: Location = ("file", index)
        normal = posixpath.normpath(file.path)
        if normal != file.path or file.path.startswith("//"):
            yield Flaw((*here, "path"), f"is not in its shortest form, {normal.lstrip('/')!r}")
        elif normal == "/":
            yield Flaw((*here, "path"), "is the root of the tree itself")
        for place in _VOLATILE:
            if normal == place or normal.startswith(place + "/"):
                yield Flaw((*here, "path"), f"is under {place}, which is mounted over at boot")
        if normal in by_path:
            yield Flaw((*here, "path"), f"'{normal}' is there twice")
        by_path.setdefault(normal, index)
        yield from _file_kind(file, here)
    for path, index in by_path.items():
        for parent in _parents(path):
            above = by_path.get(parent)
            if above is not None and not definition.file[above].directory:
                what = f"is inside {parent}, which another entry makes something else"
                yield Flaw(("file", index, "path"), what)


def _file_kind(file: File, here: Location) -> Iterator[Flaw]:
    given = [k for k in ("content", "source", "symlink") if getattr(file, k) is not None]
    given += ["directory"] if file.directory else []
    if not given:
        what = "says nothing of what is there"
        yield Flaw(here, what, "give one of content, source, symlink, directory = true")
    elif len(given) > 1:
        yield Flaw((*here, given[1]), f"can not stand beside '{given[0]}'; give only one")
    if file.symlink is not None:
        if file.mode is not None:
            yield Flaw((*here, "mode"), "a symbolic link has no mode of its own")
        if not file.symlink.isprintable():
            yield Flaw((*here, "symlink"), "must be one line of printable characters")


def _parents(path: str) -> Iterator[str]:
    while (path := posixpath.dirname(path)) != "/":
        yield path


def _units(definition: Definition) -> Iterator[Flaw]:
    units = definition.units
    for index, name in enumerate(units.enable):
        for other in ("mask", "disable"):
            if name in getattr(units, other):
                past = {"mask": "masked", "disable": "disabled"}[other]
                yield Flaw(("units", "enable", index), f"'{name}' is both enabled and {past}")
    target = units.default_target
    if not target.endswith(".target"):
        yield Flaw(("units", "default_target"), f"'{target}' is not a target")
    elif target in units.mask:
        what = f"'{target}' is units.default_target, and can not be masked"
        yield Flaw(("units", "mask", units.mask.index(target)), what)


def _kernel(definition: Definition) -> Iterator[Flaw]:
    kernel = definition.kernel
    for index, entry in enumerate(kernel.cmdline):
        here: Location = ("kernel", "cmdline", index)
        if not entry:
            yield Flaw(here, "is empty")
        elif not entry.isprintable():
            yield Flaw(here, "has a line break or another control character in it")
        elif entry.count('"') % 2:
            yield Flaw(here, "has a double quote that is not closed")
        elif any(" " in part for part in entry.split('"')[::2]):
            what = "has a space in it outside of double quotes"
            yield Flaw(here, what, "give each parameter an entry of its own")
    length = len(" ".join(kernel.cmdline).encode())
    free = MAX_CMDLINE - (_SLOT_WORDS if definition.image.layout == "immutable" else 0)
    if length > free:
        what = f"is {length} bytes long; the kernel takes 2048, of which {free} are free"
        yield Flaw(("kernel", "cmdline"), what)
    refused = set(map(_module, kernel.blacklist))
    for key in ("load", "modules"):
        for index, name in enumerate(getattr(kernel, key)):
            if _module(name) in refused:
                yield Flaw(("kernel", key, index), f"'{name}' is in kernel.blacklist as well")
    if kernel.initrd == "none" and kernel.modules:
        yield Flaw(("kernel", "modules"), "without an initrd there is nothing to hold them")
    if kernel.package is not None:
        yield from _foreign_kernel(definition, kernel.package)


def _foreign_kernel(definition: Definition, package: str) -> Iterator[Flaw]:
    own = definition.system.architecture
    for name, facts in ARCHITECTURES.items():
        if name != own and package.endswith(f"-{facts.debian}"):
            hint = f"leave it out for {ARCHITECTURES[own].kernel}"
            what = f"'{package}' is a kernel for {name}, the system is {own}"
            yield Flaw(("kernel", "package"), what, hint)


def _module(name: str) -> str:
    return name.replace("-", "_")  # the kernel takes both for the same: modprobe(8)


def _sysctl(definition: Definition) -> Iterator[Flaw]:
    for name, value in definition.sysctl.items():
        if isinstance(value, str) and not (value.strip() and value.isprintable()):
            yield Flaw(("sysctl", name), "must be one line of printable characters")


def _image(definition: Definition) -> Iterator[Flaw]:
    image = definition.image
    architecture = definition.system.architecture
    known = ARCHITECTURES[architecture].firmware
    for index, firmware in enumerate(image.firmware):
        if firmware not in known:
            what = f"{architecture} machines have no {firmware}; they have {', '.join(known)}"
            yield Flaw(("image", "firmware", index), what)
    yield from slot_flaws(definition)
    if image.filesystem == "erofs" and image.grow and image.layout == "plain":
        what = "erofs is read-only and can not grow"
        yield Flaw(("image", "grow"), what, "set grow = false, or take another filesystem")
    esp = mebibytes(image.esp_size) or 0
    if esp < MIN_ESP_MIB:
        what = f"{image.esp_size} can not hold a boot loader and a kernel"
        yield Flaw(("image", "esp_size"), what, f"at least {MIN_ESP_MIB}M")
    size = mebibytes(image.size)
    needed = esp + MIN_ROOT_MIB[image.filesystem]
    if image.layout == "immutable":
        needed = esp + 2 * (mebibytes(image.slot_size) or 0) + MIN_ROOT_MIB["ext4"]
    if size is not None and size < needed:
        what = f"{image.size} can not hold an ESP of {image.esp_size} and a root"
        hint = f"{image.filesystem} needs a disk of at least {needed}M, or 'minimal'"
        yield Flaw(("image", "size"), what, hint)
    if size is not None and size > 64 * 1024 * 1024:
        yield Flaw(("image", "size"), "is more than 64T, the most that the image formats hold")
    disks = [f for f in image.formats if f in DISK_FORMATS]
    if disks and definition.kernel.package is None:
        what = f"is 'none', but image.formats has {disks[0]}, a disk that boots"
        yield Flaw(("kernel", "package"), what, "without a kernel: directory, tar, oci")
    if disks and not image.firmware:
        yield Flaw(("image", "firmware"), f"{disks[0]} needs at least one firmware to boot under")


def _hardening(definition: Definition) -> Iterator[Flaw]:
    for index, socket in enumerate(definition.hardening.listening):
        if int(socket.partition(":")[2]) > 65535:
            what = f"'{socket}': ports end at 65535"
            yield Flaw(("hardening", "listening", index), what)
    for index, path in enumerate(definition.hardening.setuid or ()):
        if posixpath.normpath(path) != path:
            yield Flaw(("hardening", "setuid", index), f"'{path}' is not in its shortest form")


def _trim(definition: Definition) -> Iterator[Flaw]:
    for key in ("paths", "keep"):
        for index, pattern in enumerate(getattr(definition.trim, key)):
            here: Location = ("trim", key, index)
            parts = pattern.strip("/").split("/")
            if ".." in parts:
                yield Flaw(here, f"'{pattern}' goes up with '..'")
            elif key == "paths" and not parts[0].strip("*?"):
                yield Flaw(here, f"'{pattern}' would remove the whole system")


def _paths(definition: Definition) -> Iterator[Flaw]:
    """Yield what is missing on the build machine."""
    wanted: list[tuple[Location, Path, str]] = []
    wanted += [(("overlay", i), p, "directory") for i, p in enumerate(definition.overlay)]
    wanted += [(("plan", i), p, "file") for i, p in enumerate(definition.plan)]
    local = enumerate(definition.packages.local)
    wanted += [(("packages", "local", i), p, "file") for i, p in local]
    for i, file in enumerate(definition.file):
        if file.source is not None:
            wanted.append((("file", i, "source"), file.source, "file"))
    for i, repository in enumerate(definition.repository):
        wanted.append((("repository", i, "keyring"), repository.keyring, "file"))
    for key in ("secure_boot_key", "secure_boot_certificate"):
        named = getattr(definition.image, key)
        if named is not None:
            wanted.append((("image", key), named, "file"))
    if definition.base.keyring != DEFAULT_KEYRING:  # the lock speaks up if the default is missing
        wanted.append((("base", "keyring"), definition.base.keyring, "file"))
    for location, path, kind in wanted:
        yield from _path(location, path, kind)
    for i, path in enumerate(definition.packages.local):
        if path.suffix != ".deb":
            yield Flaw(("packages", "local", i), f"'{path.name}' is not a .deb")


def _path(location: Location, path: Path, kind: str) -> Iterator[Flaw]:
    try:
        right = path.is_dir() if kind == "directory" else path.is_file()
        there = path.exists()
    except (OSError, ValueError) as e:  # a name too long, a NUL in it, no permission
        reason = e.strerror if isinstance(e, OSError) and e.strerror else str(e)
        yield Flaw(location, f"{path!s:.80} can not be looked at: {reason}")
        return
    if right:
        return
    if there:
        yield Flaw(location, f"{shown_path(path)} is not a {kind}")
    else:
        near = _near_file(path)
        hint = f"did you mean '{near}'?" if near else None
        yield Flaw(location, f"no such {kind}: {shown_path(path)}", hint)


def _near_file(path: Path) -> str | None:
    try:
        names: Sequence[str] = [p.name for p in path.parent.iterdir()]
    except (OSError, ValueError):
        return None
    return nearest(path.name, names)
