"""What the immutable layout, slot images and Secure Boot ask of a definition."""

from __future__ import annotations

from collections.abc import Iterator

from tegu.definition.models import Definition
from tegu.definition.problems import Flaw

__all__ = ["slot_flaws"]


def slot_flaws(definition: Definition) -> Iterator[Flaw]:
    """Yield what is wrong with the layout of slots, and with what only that layout can."""
    image = definition.image
    if image.layout == "immutable":
        yield from _slots(definition)
    elif "slot" in image.formats:
        what = "a slot image is of the immutable layout"
        yield Flaw(("image", "formats"), what, 'set layout = "immutable"')
    keys = (image.secure_boot_key, image.secure_boot_certificate)
    if keys[0] is not None and image.layout == "plain":
        what = "machines of the plain layout make boot files themselves, and have no key"
        yield Flaw(("image", "secure_boot_key"), what, 'set layout = "immutable"')
    if (keys[0] is None) != (keys[1] is None):
        names = ("secure_boot_key", "secure_boot_certificate")
        there, missing = names if keys[1] is None else names[::-1]
        yield Flaw(("image", there), f"needs {missing} beside it")


def _slots(definition: Definition) -> Iterator[Flaw]:
    image = definition.image
    if image.filesystem != "erofs":
        what = f"a slot of the immutable layout is erofs, not {image.filesystem}"
        yield Flaw(("image", "filesystem"), what, "leave it out")
    if image.firmware != ["uefi"]:
        what = "the immutable layout boots under UEFI only: its boot loader counts tries"
        yield Flaw(("image", "firmware"), what, 'set firmware = ["uefi"]')
    if image.slot_size == "minimal":
        what = "later versions must fit in a slot: it needs a size"
        yield Flaw(("image", "slot_size"), what, "such as 2G")
    if definition.kernel.initrd != "minimal":
        what = "the immutable layout needs an initrd: it opens the slot"
        yield Flaw(("kernel", "initrd"), what, 'set initrd = "minimal"')
    if definition.kernel.package is None:
        what = "is 'none', but the immutable layout boots"
        yield Flaw(("kernel", "package"), what)
