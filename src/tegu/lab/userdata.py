"""Whether cloud-init will take a file as user-data, said before a machine spends minutes on it.

The formats are those of cloud-init's documentation, "User-data formats".
"""

from __future__ import annotations

import email
import email.policy
import gzip
import io
import zlib
from typing import Any, Final

import yaml

from tegu.errors import UsageError

__all__ = ["LIMIT", "check_meta_data", "check_network_config", "check_user_data", "cloud_config"]

LIMIT: Final = 256 * 1024
"""Bytes of user-data: the most that any of our clouds passes on (GCE); EC2 stops at 16 KiB."""

_LINES: Final = (
    ("#!", "script"),
    ("#cloud-config-archive", "archive"),
    ("#cloud-config-jsonp", "jsonp"),
    ("#cloud-config", "cloud-config"),
    ("#cloud-boothook", "boothook"),
    ("#include-once", "include"),
    ("#include", "include"),
    ("#part-handler", "part-handler"),
    ("## template: jinja", "template"),
)


def check_user_data(data: bytes, name: str = "user-data") -> str:
    """Return the kind of `data`: "cloud-config", "script", "mime", "include" ...

    Raises UsageError, with `name` in front, for what cloud-init would refuse or silently ignore.
    """
    if len(data) > LIMIT:
        raise UsageError(
            f"{name}: {len(data)} bytes are more than the {LIMIT} that clouds pass on",
            hint="fetch large files from the machine instead (#include, write_files with a source)",
        )
    if data.startswith(b"\x1f\x8b"):
        return check_user_data(_unpack(data, name), name)
    try:
        text = data.decode("utf-8")
    except UnicodeDecodeError as e:
        raise UsageError(f"{name}: neither text nor gzip (byte {e.start} is not UTF-8)") from e
    if not text.strip():
        raise UsageError(f"{name}: is empty")
    kind = _kind(text)
    if kind is None:
        first = text.splitlines()[0][:60]
        raise UsageError(
            f"{name}:1: cloud-init would ignore this: it starts with {first!r}",
            hint="the first line must be '#cloud-config', '#!...', or a MIME header",
        )
    if kind == "cloud-config":
        _mapping(text, name)
    elif kind == "archive" and not isinstance(_yaml(text, name), list):
        raise UsageError(f"{name}: a cloud-config archive must be a list")
    elif kind == "mime":
        _check_mime(text, name)
    return kind


def check_meta_data(data: bytes, name: str = "meta-data") -> dict[str, Any]:
    """Return the parsed meta-data, a YAML or JSON mapping; UsageError when it is not one."""
    return _mapping(_text(data, name), name)


def check_network_config(data: bytes, name: str = "network-config") -> None:
    """Raise UsageError unless `data` is network configuration of version 1 or 2."""
    body = _mapping(_text(data, name), name)
    inner = body.get("network", body)
    if not isinstance(inner, dict) or inner.get("version") not in (1, 2):
        raise UsageError(f"{name}: needs `version: 1` or `version: 2`")


def cloud_config(data: bytes) -> dict[str, Any]:
    """Return the mapping of a plain #cloud-config, and an empty one for any other kind."""
    if not data.startswith(b"#cloud-config\n") and not data.startswith(b"#cloud-config\r\n"):
        return {}
    return _mapping(_text(data, "user-data"), "user-data")


def _kind(text: str) -> str | None:
    head = text.split("\n\n", 1)[0].lower()
    if head.startswith(("mime-version:", "content-type:", "from ")) and "content-type:" in head:
        return "mime"
    return next((kind for start, kind in _LINES if text.startswith(start)), None)


def _check_mime(text: str, name: str) -> None:
    message = email.message_from_string(text, policy=email.policy.default)
    parts = [p for p in message.walk() if not p.is_multipart()]
    if message.is_multipart() and not parts:
        raise UsageError(f"{name}: a MIME message without parts")
    if message.get_content_maintype() == "multipart" and not message.is_multipart():
        raise UsageError(f"{name}: the MIME boundary that the header names does not occur")
    for number, part in enumerate(parts, start=1):
        if part.get_content_type() == "text/cloud-config":
            body = part.get_payload(decode=True)
            _mapping(_text(body if isinstance(body, bytes) else b"", name), f"{name} part {number}")


def _unpack(data: bytes, name: str) -> bytes:
    """Return what a gzip file holds, refusing bombs: no more than the limit is ever unpacked."""
    try:
        with gzip.GzipFile(fileobj=io.BytesIO(data)) as f:
            plain = f.read(LIMIT + 1)
    except (OSError, EOFError, zlib.error) as e:
        raise UsageError(f"{name}: damaged gzip: {e}") from e
    if plain.startswith(b"\x1f\x8b"):
        raise UsageError(f"{name}: gzip within gzip")
    return plain


def _text(data: bytes, name: str) -> str:
    try:
        return data.decode("utf-8")
    except UnicodeDecodeError as e:
        raise UsageError(f"{name}: byte {e.start} is not UTF-8") from e


def _yaml(text: str, name: str) -> Any:
    try:
        return yaml.safe_load(text)
    except yaml.MarkedYAMLError as e:
        line = e.problem_mark.line + 1 if e.problem_mark else 1
        raise UsageError(f"{name}:{line}: not YAML: {e.problem or e.context}") from e
    except (yaml.YAMLError, ValueError, RecursionError) as e:
        # Tags such as !!timestamp raise ValueError for impossible dates.
        raise UsageError(f"{name}: not YAML: {str(e).splitlines()[0]}") from e


def _mapping(text: str, name: str) -> dict[str, Any]:
    body = _yaml(text, name)
    if body is None:
        return {}
    if not isinstance(body, dict):
        raise UsageError(f"{name}: must hold `key: value` lines, not a {type(body).__name__}")
    return body
