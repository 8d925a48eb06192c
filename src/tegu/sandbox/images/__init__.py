"""Templates made of container images: fetched by skopeo, checked, their layers applied once.

An image comes from an OCI layout, an archive or a registry (`source`), is read and checked
(`layout`), unpacked into a tree that is named by its content (`layers`, `unpack`), and kept under a
name with what its configuration says of programs (`catalog`).
"""

from tegu.sandbox.images.add import add_image, obtain
from tegu.sandbox.images.catalog import (
    ImageTemplate,
    find_image,
    image_names,
    list_images,
    remove_image,
)

__all__ = [
    "ImageTemplate",
    "add_image",
    "find_image",
    "image_names",
    "list_images",
    "obtain",
    "remove_image",
]
