"""The stock Debian 13 to compare with, made by mmdebstrap as Debian makes its own cloud images.

`cloud` has the packages and the configuration of Debian's `genericcloud` image (the classes BASE,
SYSTEM_BOOT, CLOUD, GENERIC, EXTRAS and LINUX_VARIANT_CLOUD of the debian-cloud-images project).
`lean` is the same configuration with nothing but what a machine needs to boot, be provisioned and
be reached: it shows how much of the difference is choice of packages alone.
"""

from __future__ import annotations

import hashlib
import logging
import os
import shutil
import time
from dataclasses import dataclass
from pathlib import Path
from uuid import NAMESPACE_OID, uuid5

from bench.boot.guest import BootImage
from bench.build.mirror import serve
from bench.common import BenchError

from tegu.errors import UnsupportedError
from tegu.process import require, run

__all__ = ["CLOUD", "LEAN", "Recipe", "build"]

log = logging.getLogger(__name__)

SUITE = "trixie"
SIZE = 20 * 2**30
LIFE = 7 * 24 * 3600
"""Seconds after which the image is made again, from newer packages."""

# What both need; libpam-systemd is there "for any useful login session".
_NEEDED = """
    linux-image-cloud-amd64 initramfs-tools init udev systemd-resolved libnss-resolve
    libnss-myhostname netplan.io openssh-server cloud-init sudo libpam-systemd e2fsprogs netbase
    ca-certificates systemd-timesyncd
"""


_EXTRAS = """
    grub-cloud-amd64 dosfstools cloud-guest-utils cloud-initramfs-growroot ssh-import-id polkitd
    unattended-upgrades apparmor zstd apt-utils iptables iputils-ping linux-sysctl-defaults less
    nano vim-tiny whiptail apt-listchanges bash-completion bind9-host man-db manpages socat
    pciutils reportbug traceroute vim psmisc tcpdump curl ethtool uuid-runtime screen xz-utils
"""


@dataclass(frozen=True, slots=True)
class Recipe:
    """A stock system: its name and its packages (recommended ones are not installed)."""

    name: str
    packages: tuple[str, ...]


LEAN = Recipe("lean", tuple(_NEEDED.split()))
CLOUD = Recipe("cloud", (*_NEEDED.split(), *_EXTRAS.split()))

_CLOUD_CFG = """\
apt:
  generate_mirrorlists: true
system_info:
  default_user:
    name: debian
    lock_passwd: True
    gecos: Debian
    groups: [adm, audio, cdrom, dialout, dip, floppy, plugdev, sudo, video]
    sudo: ["ALL=(ALL) NOPASSWD:ALL"]
    shell: /bin/bash
"""
_FSTAB = "PARTUUID={root} / ext4 rw,discard,errors=remount-ro,x-systemd.growfs 0 1\n"
# /etc/default/grub of grub-cloud-amd64.
_CMDLINE = (
    "root=PARTUUID={root} ro console=tty0 console=ttyS0,115200 earlyprintk=ttyS0,115200 "
    "consoleblank=0"
)


def build(recipe: Recipe, cache: Path) -> BootImage:
    """Return the image of `recipe`, made at most a week ago; needs root."""
    digest = hashlib.sha256((repr(recipe) + Path(__file__).read_text()).encode()).hexdigest()[:12]
    folder = cache / f"stock-{recipe.name}-{digest}"
    if folder.is_dir() and time.time() - folder.stat().st_mtime > LIFE:
        shutil.rmtree(folder)
    if not folder.is_dir():
        if os.geteuid() != 0:
            raise UnsupportedError("the stock system can only be made by root")
        new = cache / f"{folder.name}.new"
        shutil.rmtree(new, ignore_errors=True)
        new.mkdir(parents=True)
        try:
            _make(recipe, new, cache)
            new.rename(folder)
        finally:
            shutil.rmtree(new, ignore_errors=True)
    return BootImage(
        name=f"stock {recipe.name}",
        disk=folder / "disk.raw",
        kernel=folder / "vmlinuz",
        initrd=folder / "initrd",
        cmdline=_CMDLINE.format(root=_root_uuid(recipe)),
        user="debian",
        qcow2=(folder / "disk.qcow2").stat().st_size / 2**20,
        about=f"Debian 13 with {len(recipe.packages)} packages asked for, made by mmdebstrap",
    )


def _root_uuid(recipe: Recipe) -> str:
    return str(uuid5(NAMESPACE_OID, f"stock {recipe.name}"))


def _make(recipe: Recipe, folder: Path, cache: Path) -> None:
    mmdebstrap = require("mmdebstrap", package="mmdebstrap")
    tree = folder / "tree"
    log.info("building the stock system %s with mmdebstrap", recipe.name)
    with serve(cache / "mirror") as mirror:
        sources = [
            f"deb {mirror.uri()} {SUITE} main",
            f"deb {mirror.uri()} {SUITE}-updates main",
            f"deb {mirror.uri('debian-security')} {SUITE}-security main",
        ]
        run(
            [
                *(mmdebstrap, "--quiet", "--mode=root", "--format=directory", "--variant=minbase"),
                f"--include={','.join(recipe.packages)}",
                SUITE,
                tree,
                *sources,
            ],
            timeout=3600,
        )
    _configure(tree, _root_uuid(recipe))
    for name, pattern in (("vmlinuz", "boot/vmlinuz-*"), ("initrd", "boot/initrd.img-*")):
        found = sorted(tree.glob(pattern))
        if not found:
            raise BenchError(f"the stock system has no {pattern}")
        shutil.copy(found[-1], folder / name)
    _disk(tree, folder / "disk.raw", _root_uuid(recipe))
    shutil.rmtree(tree)
    options = ["-o", "compression_type=zstd"]
    qcow2 = ["qemu-img", "convert", "-c", "-O", "qcow2", *options]
    run([*qcow2, folder / "disk.raw", folder / "disk.qcow2"], timeout=1200)


def _configure(tree: Path, root: str) -> None:
    """Do what the image's configuration and clean-up scripts do."""
    _write(tree / "etc/fstab", _FSTAB.format(root=root))
    _write(tree / "etc/default/locale", "LANG=C.UTF-8\n")
    _write(tree / "etc/modprobe.d/blacklist.conf", "blacklist pcspkr\nblacklist floppy\n")
    _write(tree / "etc/cloud/cloud.cfg.d/01_debian_cloud.cfg", _CLOUD_CFG)
    sshd = tree / "etc/ssh/sshd_config"
    text = sshd.read_text().replace("#PasswordAuthentication yes", "PasswordAuthentication no")
    _write(sshd, f"{text}ClientAliveInterval 120\n")
    enable = ["systemctl", "enable", "systemd-networkd.service", "systemd-resolved.service"]
    run(["chroot", tree, *enable])
    for name in ("etc/machine-id", "etc/hostname"):
        _write(tree / name, "")
    for pattern in (
        "etc/ssh/ssh_host_*",
        "var/lib/dbus/machine-id",
        "var/log/*.log",
        "var/log/apt/*",
        "var/cache/apt/*.bin",
        "var/lib/apt/lists/*_*",
    ):
        for path in tree.glob(pattern):
            path.unlink()


def _write(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)


def _disk(tree: Path, disk: Path, root: str) -> None:
    """Write a GPT disk with one ext4 partition that holds `tree`."""
    offset = 2**20
    with disk.open("wb") as file:
        file.truncate(SIZE)
    table = f"label: gpt\nstart=2048, type=linux, uuid={root}\n"
    run(["sfdisk", "--quiet", disk], stdin=table)
    mkfs = require("mkfs.ext4", package="e2fsprogs")
    blocks = f"{(SIZE - 2 * offset) // 1024}k"
    run([mkfs, "-q", "-F", "-E", f"offset={offset}", "-d", tree, disk, blocks], timeout=1200)
