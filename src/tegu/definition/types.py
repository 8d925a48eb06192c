"""The scalar types of a definition, each a pattern and the words that explain it to a person."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Annotated, Final, Literal

from pydantic import Field

__all__ = [
    "WORDS",
    "DataSource",
    "DottedName",
    "EspSize",
    "FileSystem",
    "Format",
    "GroupName",
    "HostPath",
    "Hostname",
    "LocaleName",
    "Mode",
    "ModuleName",
    "ModulePath",
    "PackageName",
    "Size",
    "Snapshot",
    "Socket",
    "SystemName",
    "TreePath",
    "UnitName",
    "Uri",
    "UserName",
    "Version",
    "Word",
]

FileSystem = Literal["ext4", "xfs", "btrfs", "erofs"]
Format = Literal["directory", "tar", "oci", "raw", "qcow2", "vhd", "vhd-fixed", "slot"]
DataSource = Literal["NoCloud", "ConfigDrive", "AliYun", "Ec2", "Azure", "GCE", "OpenStack"]

_SYSTEM = r"^[a-z0-9][a-z0-9._-]*$"
_VERSION = r"^[0-9A-Za-z][0-9A-Za-z.+~-]*$"
_PACKAGE = r"^[a-z0-9][a-z0-9+.-]+$"
_UNIT = r"^[A-Za-z0-9:_.@\\-]+\.(service|socket|timer|mount|target|path|slice|automount|swap)$"
_SIZE = r"^([1-9][0-9]*[MGT]|minimal)$"
_ESP = r"^[1-9][0-9]*M$"
_MODE = r"^[0-7]{3,4}$"
_TREE_PATH = r"^/[^\x00-\x1f]+$"
_LABEL = r"[A-Za-z0-9]([A-Za-z0-9-]{0,61}[A-Za-z0-9])?"
_HOSTNAME = rf"^{_LABEL}(\.{_LABEL})*$"
_LOCALE = r"^[A-Za-z][A-Za-z0-9_.@-]*$"
_USER = r"^[a-z_][a-z0-9_-]{0,31}$"
_MODULE = r"^[A-Za-z0-9_-]+$"
_MODULE_PATH = r"^[A-Za-z0-9_][A-Za-z0-9_/.+-]*$"
_DOTTED = r"^[A-Za-z0-9_*][A-Za-z0-9_*-]*([./][A-Za-z0-9_:@*-]+)+$"
_SOCKET = r"^(tcp|udp):[1-9][0-9]{0,4}$"
_SNAPSHOT = r"^[0-9]{8}T[0-9]{6}Z$"
_URI = r"^(https?://[^\s/]+|file:/)[^\s]*$"
_WORD = r"^[A-Za-z0-9][A-Za-z0-9+._/-]*$"

WORDS: Final[Mapping[str, str]] = MappingProxyType(
    {
        _SYSTEM: "a short name: lower case letters, digits, and after the first '.', '_', '-'",
        _VERSION: "a version: letters, digits, and after the first '.', '+', '~', '-'",
        _PACKAGE: "a package name: two or more of lower case letters, digits, '+', '-' and '.'",
        _UNIT: "a systemd unit with its suffix, such as 'ssh.service' or 'fstrim.timer'",
        _SIZE: "a size such as '20G' (M, G or T, binary) or 'minimal'",
        _ESP: "a size in MiB such as '64M'",
        _MODE: "a mode: three or four octal digits in quotes, such as '0644'",
        _TREE_PATH: "an absolute path in the image, such as '/etc/motd'",
        _HOSTNAME: "a host name (RFC 1123): letters, digits and '-', labels of at most 63",
        _LOCALE: "a locale such as 'C.UTF-8' or 'de_DE.UTF-8'",
        _USER: "a user or group name: lower case letters, digits, '_' and '-', at most 32",
        _MODULE: "a kernel module name, such as 'br_netfilter'",
        _MODULE_PATH: "a module name or a directory of modules, such as 'kernel/net/sched'",
        _DOTTED: "a sysctl name such as 'net.core.somaxconn'",
        _SOCKET: "a socket such as 'tcp:22' or 'udp:68'",
        _SNAPSHOT: "a UTC time such as '20261120T000000Z'",
        _URI: "a URI that starts with http://, https:// or file:/",
        _WORD: "a single word of letters, digits, '+', '.', '_', '/' and '-'",
    }
)
"""What each pattern asks for, in words, for error messages and the reference."""

SystemName = Annotated[str, Field(pattern=_SYSTEM, max_length=64)]
Version = Annotated[str, Field(pattern=_VERSION, max_length=64)]
PackageName = Annotated[str, Field(pattern=_PACKAGE)]
UnitName = Annotated[str, Field(pattern=_UNIT, max_length=255)]
Size = Annotated[str, Field(pattern=_SIZE)]
EspSize = Annotated[str, Field(pattern=_ESP)]
Mode = Annotated[str, Field(pattern=_MODE)]
TreePath = Annotated[str, Field(pattern=_TREE_PATH)]
Hostname = Annotated[str, Field(pattern=_HOSTNAME, max_length=64)]
LocaleName = Annotated[str, Field(pattern=_LOCALE)]
UserName = Annotated[str, Field(pattern=_USER)]
GroupName = Annotated[str, Field(pattern=_USER)]
ModuleName = Annotated[str, Field(pattern=_MODULE)]
ModulePath = Annotated[str, Field(pattern=_MODULE_PATH)]
DottedName = Annotated[str, Field(pattern=_DOTTED)]
Socket = Annotated[str, Field(pattern=_SOCKET)]
Snapshot = Annotated[str, Field(pattern=_SNAPSHOT)]
Uri = Annotated[str, Field(pattern=_URI)]
Word = Annotated[str, Field(pattern=_WORD)]
HostPath = Annotated[Path, Field(strict=False)]
"""A path on the build machine; strings are taken although the models are strict."""
