"""The compiled probes that this installation has."""

from __future__ import annotations

from pathlib import Path

from tegu.errors import UnsupportedError

__all__ = ["OBJECTS", "object_data"]

OBJECTS = Path(__file__).parent / "bpf"


def object_data(name: str, directory: Path = OBJECTS) -> bytes:
    """Return the object `name`; raises UnsupportedError when this installation lacks it."""
    try:
        return (directory / f"{name}.bpf.o").read_bytes()
    except OSError as e:
        raise UnsupportedError(
            f"this installation of tegu was made without the compiled probe {name}",
            hint="in a source tree: `./dev setup` compiles them",
        ) from e
