"""TUF metadata of the workshop, made and signed with python-tuf.

Roles (TUF specification 1.0, section 2.1): `root` names the keys and is valid longest, `targets`
lists every file of every release, `snapshot` which version of targets belongs together, `timestamp`
which snapshot is the newest and how long that may be believed. Names carry versions and hashes
("consistent snapshots"), so that a client never mixes two publications.
"""

from __future__ import annotations

import os
from datetime import UTC, datetime, timedelta
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tegu.errors import ReleaseError, UnsupportedError
from tegu.files import atomic_copy, write_atomic
from tegu.release.numbers import Number

if TYPE_CHECKING:
    from tegu.release.manifest import Manifest
    from tegu.release.workshop import Workshop

__all__ = ["make_root", "publish", "published_numbers", "refresh", "renew_root", "sign", "tuf"]

ROLES = ("root", "targets", "snapshot", "timestamp")
_DAYS = {"root": 365, "targets": 180, "snapshot": 30, "timestamp": 7}


def tuf(name: str) -> Any:
    """Return a module of python-tuf; UnsupportedError where it is missing."""
    try:
        return import_module(name)
    except ImportError as e:
        raise UnsupportedError(
            "release metadata needs the Python modules tuf and cryptography",
            hint="pip install 'tegu[works,repo,release]'",
        ) from e


def _metadata() -> Any:
    return tuf("tuf.api.metadata")


def make_root(shop: Workshop) -> None:
    """Make a key for each role and the first root metadata."""
    signers = {role: _new_key(shop, role) for role in ROLES}
    api = _metadata()
    root = api.Root(expires=_expiry("root"), consistent_snapshot=True)
    for role, signer in signers.items():
        root.add_key(signer.public_key, role)
    signed = api.Metadata(root)
    signed.sign(signers["root"])
    _write(shop.public / "metadata", "1.root.json", signed)
    for role in ("targets", "snapshot", "timestamp"):
        fresh = {"targets": api.Targets, "snapshot": api.Snapshot, "timestamp": api.Timestamp}
        body = api.Metadata(fresh[role](expires=_expiry(role)))
        body.sign(signers[role])
        name = "timestamp.json" if role == "timestamp" else f"1.{role}.json"
        _write(shop.public / "metadata", name, body)


def _new_key(shop: Workshop, role: str) -> Any:
    signer = tuf("securesystemslib.signer").CryptoSigner.generate_ed25519()
    path = shop.keys / f"{role}.pem"
    if path.exists():
        raise ReleaseError(f"{path} is there already: a key is never overwritten")
    write_atomic(path, signer.private_bytes, mode=0o600)
    return signer


def _signer(shop: Workshop, role: str) -> Any:
    """Return the signer of `role`; ReleaseError when its key is lost or is not root's."""
    path = shop.keys / f"{role}.pem"
    try:
        data = path.read_bytes()
    except OSError as e:
        raise ReleaseError(
            f"the key {path} cannot be read: {e.strerror}",
            hint="put it back, or name another in new root metadata: tegu release key; what is "
            "published stays as it is",
        ) from e
    serialization = tuf("cryptography.hazmat.primitives.serialization")
    try:
        private = serialization.load_pem_private_key(data, None)
        signer = tuf("securesystemslib.signer").CryptoSigner(private)
    except (ValueError, TypeError) as e:
        raise ReleaseError(f"{path}: no private key: {e}") from e
    root = _newest(shop, "root").signed
    if signer.public_key.keyid not in root.roles[role].keyids:
        raise ReleaseError(
            f"{path} is not a key of the role {role}", hint="root metadata names the keys"
        )
    return signer


def renew_root(shop: Workshop, role: str) -> None:
    """Give `role` a new key (its file must be out of the way) and sign new root metadata.

    Root's own change is signed by the old key and the new one (TUF specification, section 6.1).
    """
    api = _metadata()
    signed = _newest(shop, "root")
    old_root = _signer(shop, "root") if role != "root" else _kept(shop, "root")
    new = _new_key(shop, role)
    for keyid in list(signed.signed.roles[role].keyids):
        signed.signed.revoke_key(keyid, role)
    signed.signed.add_key(new.public_key, role)
    signed.signed.version += 1
    signed.signed.expires = _expiry("root")
    signed.signatures.clear()
    signed.sign(old_root)
    if role == "root":
        signed.sign(new, append=True)
    _write(shop.public / "metadata", f"{signed.signed.version}.root.json", signed)
    del api


def _kept(shop: Workshop, role: str) -> Any:
    """Return the signer of the old key, renamed to ROLE.old.pem by its owner."""
    path = shop.keys / f"{role}.old.pem"
    if not path.is_file():
        raise ReleaseError(
            f"the old key of {role} must sign the new one",
            hint=f"rename {shop.keys / f'{role}.pem'} to {path.name} first",
        )
    serialization = tuf("cryptography.hazmat.primitives.serialization")
    private = serialization.load_pem_private_key(path.read_bytes(), None)
    return tuf("securesystemslib.signer").CryptoSigner(private)


def _expiry(role: str) -> datetime:
    return datetime.now(UTC).replace(microsecond=0) + timedelta(days=_DAYS[role])


def _newest(shop: Workshop, role: str) -> Any:
    """Return the newest metadata of `role` that is published."""
    directory = shop.public / "metadata"
    if role == "timestamp":
        path = directory / "timestamp.json"
    else:
        found = sorted(directory.glob(f"*.{role}.json"), key=lambda p: int(p.name.split(".")[0]))
        if not found:
            raise ReleaseError(f"{directory} has no {role} metadata")
        path = found[-1]
    try:
        return _metadata().Metadata.from_file(str(path))
    except (tuf("tuf.api.exceptions").RepositoryError, OSError) as e:
        raise ReleaseError(f"{path} cannot be read: {e}") from e


def published_numbers(shop: Workshop) -> list[Number]:
    """Return the releases that the newest targets metadata lists, oldest first."""
    names = _newest(shop, "targets").signed.targets
    return sorted({Number.parse(n.partition("/")[0]) for n in names})


def sign(shop: Workshop, manifest: Manifest) -> Path:
    """Sign the release: targets metadata that has its files; returns where it lies.

    Nothing is public yet. Raises ReleaseError when a file is not what the manifest says.
    """
    api = _metadata()
    number = Number.parse(manifest.number)
    work = shop.work(number)
    signed = _newest(shop, "targets")
    prefix = f"{number}/"
    if any(name.startswith(prefix) for name in signed.signed.targets):
        raise ReleaseError(f"{number} is published: a release never changes its content")
    there = published_numbers(shop)
    if there and number < there[-1] and number.series == there[-1].series:
        raise ReleaseError(f"{number} would go backwards: {there[-1]} is published")
    for file in manifest.files:
        path = work / "files" / file.path
        target = api.TargetFile.from_file(prefix + file.path, str(path), ["sha256"])
        if target.length != file.size or target.hashes["sha256"] != file.sha256:
            raise ReleaseError(f"{path} is not what the manifest says: prepare the release anew")
        signed.signed.targets[target.path] = target
    listed = api.TargetFile.from_file(
        f"{prefix}manifest.json", str(work / "manifest.json"), ["sha256"]
    )
    signed.signed.targets[listed.path] = listed
    signed.signed.version += 1
    signed.signed.expires = _expiry("targets")
    signed.sign(_signer(shop, "targets"))
    _write(work, "targets.json", signed)
    return work / "targets.json"


def publish(shop: Workshop, manifest: Manifest) -> int:
    """Put a signed release where clients see it; returns the version of targets that they get.

    Files come first, then metadata, `timestamp.json` last and by rename: before that no client sees
    anything of the release, after it all.
    """
    number = Number.parse(manifest.number)
    work = shop.work(number)
    try:
        signed = _metadata().Metadata.from_file(str(work / "targets.json"))
    except (tuf("tuf.api.exceptions").RepositoryError, OSError) as e:
        raise ReleaseError(f"{number} is not signed", hint="tegu release sign") from e
    now = _newest(shop, "targets").signed.version
    if signed.signed.version != now + 1:
        raise ReleaseError(
            f"{number} was signed before another release was published",
            hint=f"sign it again: tegu release sign {number}",
        )
    places = {f"{number}/{f.path}": work / "files" / f.path for f in manifest.files}
    places[f"{number}/manifest.json"] = work / "manifest.json"
    for name, source in places.items():
        target = signed.signed.targets.get(name)
        if target is None:
            raise ReleaseError(f"{name} is not signed: sign the release again")
        path = Path(name)
        public = shop.public / "targets" / path.parent / f"{target.hashes['sha256']}.{path.name}"
        if not public.exists():
            atomic_copy(source, public)
        with public.open("rb") as f:
            target.verify_length_and_hashes(f)
    _write(shop.public / "metadata", f"{signed.signed.version}.targets.json", signed)
    _point(shop, signed.signed.version)
    return int(signed.signed.version)


def refresh(shop: Workshop) -> None:
    """Sign snapshot and timestamp anew, so that they are believed for longer."""
    _point(shop, _newest(shop, "targets").signed.version)


def _point(shop: Workshop, targets: int) -> None:
    """Make `targets` (a version) what snapshot and timestamp point to."""
    api = _metadata()
    snapshot_signer, timestamp_signer = _signer(shop, "snapshot"), _signer(shop, "timestamp")
    snapshot = _newest(shop, "snapshot")
    snapshot.signed.meta["targets.json"] = api.MetaFile(version=targets)
    snapshot.signed.version += 1
    snapshot.signed.expires = _expiry("snapshot")
    snapshot.sign(snapshot_signer)
    stamp = _newest(shop, "timestamp")
    stamp.signed.snapshot_meta = api.MetaFile(version=snapshot.signed.version)
    stamp.signed.version += 1
    stamp.signed.expires = _expiry("timestamp")
    stamp.sign(timestamp_signer)
    _write(shop.public / "metadata", f"{snapshot.signed.version}.snapshot.json", snapshot)
    _write(shop.public / "metadata", "timestamp.json", stamp)


def _write(directory: Path, name: str, metadata: Any) -> None:
    serializer = tuf("tuf.api.serialization.json").JSONSerializer(compact=False)
    write_atomic(directory / name, metadata.to_bytes(serializer))
    handle = os.open(directory, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
