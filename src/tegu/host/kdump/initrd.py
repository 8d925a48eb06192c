"""The capture initrd: busybox, makedumpfile with its libraries, drivers, one script."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path

from tegu.boot import (
    Archive,
    ModuleTree,
    arch_of,
    compress,
    load_script,
    static_program,
)
from tegu.errors import TeguError, UnsupportedError
from tegu.host.kdump.config import Settings, Target
from tegu.host.kdump.network import Route
from tegu.host.kdump.place import DiskPlace
from tegu.host.kdump.programs import add_program
from tegu.process import run

__all__ = ["CaptureInitrd", "build_capture_initrd", "capture_conf", "require_known"]

# Before /proc is mounted busybox's shell finds its own commands by path only.
_APPLETS = ("sh", "mount", "mkdir", "insmod")
_DIRECTORIES = ("dev", "proc", "sys", "run", "target", "root", "etc", "lib/tegu/modules", "tmp")
# Without compression an ELF core is written, which every reader knows.
_COMPRESSION = {"zstd": "-z", "zlib": "-c", "lzo": "-l", "snappy": "-p", "none": "-E"}
_MOUNT = {"ext4": "rw,data=ordered", "xfs": "rw", "btrfs": "rw"}
_CERTIFICATES = Path("/etc/ssl/certs/ca-certificates.crt")


@dataclass(frozen=True, slots=True)
class CaptureInitrd:
    """The initrd as it is loaded, and the bytes of memory that it takes unpacked."""

    data: bytes
    unpacked: int


def capture_conf(
    settings: Settings, place: DiskPlace | None, route: Route | None, host_name: str
) -> str:
    """Return the shell assignments that the capture's script reads; every value in quotes."""
    target = settings.target
    values: dict[str, str | int] = {
        "kind": "disk" if target.kind == "local" else target.kind,
        "level": settings.level,
        "compression": _COMPRESSION[settings.compression],
        "blocks": settings.max_size // 512,
        "limit": settings.max_size,
        "after": settings.after,
        "timeout": settings.timeout,
        "host_name": host_name,
    }
    if place is not None:
        options = _MOUNT[place.fstype]
        values |= {
            "uuid": place.uuid,
            "fstype": place.fstype,
            "path": place.path,
            "options": options,
        }
    if route is not None:
        values |= {
            "mac": route.mac,
            "addresses": " ".join(route.addresses),
            "gateway": route.gateway,
            "peer": route.peer,
            "port": target.port or (443 if target.path.startswith("https:") else 80),
            "host": target.host,
        }
    if target.kind == "ssh":
        values |= {
            "user": target.user,
            "alias_name": known_as(target),
            "path": target.path.rstrip("/"),
        }
    if target.kind == "http":
        values |= {"url": target.path, "log_url": settings.log_url}
    for key, value in values.items():
        if "'" in str(value):
            raise TeguError(
                f"the capture kernel cannot be told a {key} with a quote in it: {value}"
            )
    return "".join(f"{key}='{value}'\n" for key, value in values.items())


def build_capture_initrd(
    settings: Settings,
    kernel_version: str,
    *,
    architecture: str,
    conf: str,
    fstype: str | None,
    drivers: Iterable[str] = (),
) -> CaptureInitrd:
    """Make the capture initrd from this machine's own files.

    `drivers` are modules of the devices in use; `fstype` is the target's file system. Raises
    UnsupportedError for a program that is not installed, BuildError for a damaged module.
    """
    tree = ModuleTree(Path("/"), kernel_version)
    wanted = [name for name in drivers if tree.has(name)]
    systems = [name for name in (fstype,) if name is not None and tree.has(name)]
    closure = tree.closure([*wanted, *systems], optional=arch_of(architecture).modules)
    archive = Archive(0)
    for directory in _DIRECTORIES:
        archive.directory(directory)
    archive.file("bin/busybox", static_program(Path("/usr/bin/busybox")), 0o755)
    for link in _APPLETS:
        archive.symlink(f"bin/{link}", "busybox")
    script = files("tegu.host.kdump").joinpath("capture.sh")
    archive.file("init", script.read_bytes(), 0o755)
    archive.file("etc/kdump.conf", conf.encode(), 0o600)
    archive.file("lib/tegu/load", load_script(tree, closure, wanted, systems).encode())
    for module in closure:
        archive.file(f"lib/tegu/modules/{module.name}.ko", tree.read(module))
    add_program(archive, "makedumpfile", package="makedumpfile")
    check_compression(settings.compression, run(["makedumpfile", "-v"], check=False).stdout)
    if settings.target.kind == "ssh":
        _add_ssh(archive, settings)
    elif settings.target.kind == "http":
        add_program(archive, "curl", package="curl")
        if settings.target.path.startswith("https:"):
            archive.file(str(_CERTIFICATES).lstrip("/"), _read(_CERTIFICATES, "ca-certificates"))
    packed = archive.pack()
    return CaptureInitrd(compress(packed), len(packed))


def check_compression(name: str, version: str) -> None:
    """Refuse a compression that this makedumpfile was built without (the text of `-v` says it)."""
    if re.search(rf"^{name}\s+disabled", version, re.MULTILINE):
        raise UnsupportedError(
            f"this makedumpfile was built without {name}",
            hint="set another compression in /etc/tegu/kdump.toml",
        )


def known_as(target: Target) -> str:
    """Return what known_hosts calls the host (sshd(8), SSH_KNOWN_HOSTS FILE FORMAT)."""
    return target.host if target.port == 22 else f"[{target.host}]:{target.port}"


def _add_ssh(archive: Archive, settings: Settings) -> None:
    add_program(archive, "ssh", package="openssh-client")
    archive.file("root/key", _read(Path(settings.ssh_key), None), 0o600)
    archive.file("root/known_hosts", _read(Path(settings.ssh_known_hosts), None), 0o600)
    # ssh asks who it is.
    archive.file("etc/passwd", b"root:x:0:0:root:/root:/bin/sh\n")
    archive.file("etc/nsswitch.conf", b"passwd: files\n")


def require_known(settings: Settings) -> None:
    """Raise TeguError when the host's key is not known: after a crash nobody could confirm it."""
    target, known = settings.target, settings.ssh_known_hosts
    done = run(["ssh-keygen", "-F", known_as(target), "-f", known], check=False)
    if done.returncode != 0 or not done.stdout:
        port = "" if target.port == 22 else f"-p {target.port} "
        raise TeguError(
            f"the key of {target.host} is not in {known}",
            hint=f"log in once as root: ssh {port}-i {settings.ssh_key}"
            f" -o UserKnownHostsFile={known} {target.user}@{target.host}",
        )


def _read(path: Path, package: str | None) -> bytes:
    try:
        return path.read_bytes()
    except OSError as e:
        hint = (
            f"apt-get install {package}"
            if package
            else "see ssh_key, ssh_known_hosts in kdump.toml"
        )
        raise TeguError(f"cannot read {path}: {e.strerror}", hint=hint) from e
