"""The definition's own part of a tree: identity, files, units, users, kernel settings."""

from __future__ import annotations

import os
import shutil
import stat
from collections.abc import Mapping
from pathlib import Path

from tegu.definition import Definition, File, os_release, overlay_entries
from tegu.errors import BuildError
from tegu.image.sandbox import Sandbox
from tegu.image.spec import MOUNT_POINT
from tegu.image.users import add_users, owner_ids
from tegu.packages.lock import Lock
from tegu.packages.sources import resolve

__all__ = ["lay"]


def lay(box: Sandbox, definition: Definition, lock: Lock, *, generated: Mapping[str, str]) -> None:
    """Apply the definition to a configured tree.

    `generated` are files that the image's layout asks for (such as etc/fstab), by relative path.
    The definition's own files come after those, so that they can replace them.
    """
    root = box.root
    _identity(box, definition, lock)
    for path, text in {
        **_first_boot(root),
        **_settings(definition, lock),
        **generated,
    }.items():
        _put(root / path, text)
    if definition.image.layout == "immutable":
        # Nothing can be made in a root that is read-only: a place to mount the ESP at.
        (root / MOUNT_POINT.lstrip("/")).mkdir(exist_ok=True)
    add_users(root, definition)
    for directory in definition.overlay:
        _overlay(root, directory)
    for file in definition.file:
        _file(root, file)
    _units(box, definition)


def _put(path: Path, text: str | bytes, mode: int = 0o644) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.is_symlink():
        path.unlink()
    path.write_bytes(text.encode() if isinstance(text, str) else text)
    path.chmod(mode)


def _identity(box: Sandbox, definition: Definition, lock: Lock) -> None:
    system = definition.system
    root = box.root
    # VERSION_CODENAME stays the base's: third-party repositories are chosen by it.
    base = _os_release(root / "usr/lib/os-release")
    text = os_release(system, codename=base.get("VERSION_CODENAME"), day=lock.timestamp // 86400)
    if _diverted(root):
        pass  # a package of the image (tegu-release) does that, and moves it with each release
    elif (root / "usr/bin/dpkg-divert").exists() and (root / "usr/lib/os-release").exists():
        # A diversion keeps the base's package from putting its own back on upgrade.
        box.run(
            [
                "/usr/bin/dpkg-divert",
                "--local",
                "--rename",
                "--divert",
                "/usr/lib/os-release.base",
                "--add",
                "/usr/lib/os-release",
            ]
        )
    _put(root / "usr/lib/os-release", text)
    _put(root / "etc/hostname", f"{system.hostname}\n")
    hosts = "127.0.0.1 localhost\n::1 localhost ip6-localhost ip6-loopback\n"
    _put(root / "etc/hosts", hosts)
    if (root / "etc/default").is_dir():
        locale = root / "etc/default/locale"
        if locale.is_symlink():  # to ../locale.conf, which systemd reads
            _put(root / "etc/locale.conf", f"LANG={system.locale}\n")
        else:
            _put(locale, f"LANG={system.locale}\n")
            _put(root / "etc/locale.conf", f"LANG={system.locale}\n")
    zone = root / "usr/share/zoneinfo" / system.timezone
    if system.timezone != "UTC" and not zone.exists():
        raise BuildError(f"system.timezone: {system.timezone} is not in the image (tzdata?)")
    localtime = root / "etc/localtime"
    localtime.unlink(missing_ok=True)
    localtime.symlink_to(f"/usr/share/zoneinfo/{system.timezone}")


def _diverted(root: Path) -> bool:
    """Whether a package diverts os-release: it is in /var/lib/dpkg/diversions, by three lines."""
    try:
        lines = (root / "var/lib/dpkg/diversions").read_text().splitlines()
    except FileNotFoundError:
        return False
    found = zip(lines[::3], lines[2::3], strict=False)
    return any(path == "/usr/lib/os-release" and owner != ":" for path, owner in found)


def _os_release(path: Path) -> dict[str, str]:
    if not path.is_file():
        return {}
    pairs = (line.split("=", 1) for line in path.read_text().splitlines() if "=" in line)
    return {key: value.strip("\"'") for key, value in pairs}


def _first_boot(root: Path) -> dict[str, str | bytes]:
    """Return what lets a machine make its own identity.

    Images have no host keys and an empty machine-id, which systemd does not take for a first boot:
    the keys are made whenever they are missing.
    """
    if not (root / "usr/lib/systemd/system/sshd-keygen.service").is_file():
        return {}
    return {
        "etc/systemd/system/sshd-keygen.service.d/10-image.conf": (
            "[Unit]\n"
            "# An empty machine-id is not a first boot (machine-id(5)): missing keys tell.\n"
            "ConditionFirstBoot=\n"
            "ConditionPathExists=!/etc/ssh/ssh_host_ed25519_key\n"
        )
    }


def _settings(definition: Definition, lock: Lock) -> dict[str, str | bytes]:
    """Return the configuration files that tables of the definition stand for."""
    files: dict[str, str | bytes] = {}
    if definition.sysctl:
        lines = (f"{name} = {value}\n" for name, value in sorted(definition.sysctl.items()))
        files["etc/sysctl.d/90-definition.conf"] = "".join(lines)
    if definition.kernel.load:
        files["etc/modules-load.d/definition.conf"] = "".join(
            f"{name}\n" for name in definition.kernel.load
        )
    if definition.kernel.blacklist:
        files["etc/modprobe.d/definition.conf"] = "".join(
            f"blacklist {name}\ninstall {name} /bin/false\n" for name in definition.kernel.blacklist
        )
    if definition.cloud.datasources:
        sources = ", ".join([*definition.cloud.datasources, "None"])
        files["etc/cloud/cloud.cfg.d/90_definition.cfg"] = (
            f"datasource_list: [ {sources} ]\n"
            f"system_info:\n  default_user:\n    name: {definition.cloud.default_user}\n"
        )
    files.update(_apt_sources(definition, lock))
    return files


def _apt_sources(definition: Definition, lock: Lock) -> dict[str, str | bytes]:
    """Return apt's sources and the keyrings that they name, where packages do not bring them."""
    files: dict[str, str | bytes] = {}
    stanzas: dict[str, list[str]] = {"base": [], "further": []}

    def add(kind: str, uri: str, suite: str, components: list[str], keyring: Path) -> None:
        inside = Path("/usr/share/keyrings") / keyring.name
        if keyring != inside:
            inside = Path("/etc/apt/keyrings") / keyring.name
            files[str(inside).lstrip("/")] = keyring.read_bytes()
        stanzas[kind].append(
            f"Types: deb\nURIs: {uri}\nSuites: {suite}\nComponents: {' '.join(components)}\n"
            f"Signed-By: {inside}\n"
        )

    base = definition.base
    for suite in base.suites if definition.apt.sources == "base" else ():
        security = suite.endswith("-security")
        chosen = definition.apt.security_mirror if security else definition.apt.mirror
        locked = [resolve(r.uri).url for r in lock.repositories if r.suite == suite]
        uri = str(chosen or (locked[0] if locked else ""))
        if not uri:
            raise BuildError(f"apt.sources: no mirror is known for {suite}")
        add("base", uri, suite, base.components, base.keyring)
    for repository in definition.repository:
        if repository.in_image:
            add(
                "further",
                str(repository.uri),
                repository.suite,
                repository.components,
                repository.keyring,
            )
    for kind, found in stanzas.items():
        if found:
            files[f"etc/apt/sources.list.d/{kind}.sources"] = "\n".join(found)
    return files


def _overlay(root: Path, directory: Path) -> None:
    """Copy a directory over the tree, links among its directories followed."""
    for entry in overlay_entries(directory):
        relative = Path(entry.path)
        target = _inside(root, relative.parent) / relative.name
        if entry.kind == "directory":
            target = _inside(root, relative)
            if not target.exists():
                target.mkdir(parents=True)
                target.chmod(entry.mode)
            continue
        if target.is_dir() and not target.is_symlink():
            raise BuildError(f"{entry.source} would replace the directory /{relative}")
        target.unlink(missing_ok=True)
        if entry.target is not None:
            target.symlink_to(entry.target)
        else:
            _put(target, entry.source.read_bytes(), entry.mode)


def _inside(root: Path, below: Path) -> Path:
    """Return root/below with symbolic links of the tree followed inside the tree."""
    current = root
    for part in below.parts:
        step = current / part
        hops = 0
        while step.is_symlink():
            link = step.readlink()
            step = root / link.relative_to("/") if link.is_absolute() else step.parent / link
            hops += 1
            if hops > 40:
                raise BuildError(f"too many levels of symbolic links at /{below}")
        current = step
    return current


def _file(root: Path, file: File) -> None:
    relative = Path(file.path.lstrip("/"))
    path = _inside(root, relative.parent) / relative.name
    path.parent.mkdir(parents=True, exist_ok=True)
    default = 0o644
    if file.symlink is not None:
        if path.is_symlink() or path.is_file():
            path.unlink()
        path.symlink_to(file.symlink)
    elif file.directory:
        path.mkdir(exist_ok=True)
        default = 0o755
    else:
        if path.is_dir() and not path.is_symlink():
            raise BuildError(f"file {file.path}: it is a directory in the image")
        if path.is_symlink():
            path.unlink()
        if file.source is not None:
            shutil.copyfile(file.source, path)
            default = 0o755 if file.source.stat().st_mode & stat.S_IXUSR else 0o644
        else:
            path.write_text(file.content or "")
    uid, gid = owner_ids(root, file.owner, file.group, path=file.path)
    os.chown(path, uid, gid, follow_symlinks=False)
    if file.symlink is None:
        path.chmod(int(file.mode, 8) if file.mode else default)


def _units(box: Sandbox, definition: Definition) -> None:
    units = definition.units
    for verb, names in (("disable", units.disable), ("enable", units.enable)):
        if names:
            done = box.run(["/usr/bin/systemctl", "--root=/", verb, *names], check=False)
            if done.returncode != 0:
                reason = " / ".join(done.stderr.strip().splitlines()[-3:])
                raise BuildError(f"units.{verb}: {reason}")
    system = box.root / "etc/systemd/system"
    if not (box.root / "usr/lib/systemd/systemd").exists():
        return
    system.mkdir(parents=True, exist_ok=True)
    grow = "tegu-grow.service"
    unwanted = [grow] if not definition.image.grow and _has_unit(box.root, grow) else []
    for name in [*units.mask, *unwanted]:
        path = system / name
        if path.is_symlink() or path.is_file():
            path.unlink()
        path.symlink_to("/dev/null")
    default = system / "default.target"
    default.unlink(missing_ok=True)
    target = box.root / "usr/lib/systemd/system" / units.default_target
    if not target.exists() and not (system / units.default_target).exists():
        raise BuildError(f"units.default_target: there is no {units.default_target} in the image")
    where = "/etc" if (system / units.default_target).exists() else "/usr/lib"
    default.symlink_to(f"{where}/systemd/system/{units.default_target}")


def _has_unit(root: Path, name: str) -> bool:
    return (root / "usr/lib/systemd/system" / name).exists()
