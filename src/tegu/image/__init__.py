"""A lock becomes a tree, a tree becomes images.

`lock_for` finds or makes the lock of a definition, `build_locked` builds it, `export` puts the
images where they are wanted. Everything made on the way is kept in the store under the key of what
went into it.
"""

from tegu.image.assemble import Assembled, ImageFile
from tegu.image.build import BuildOptions, Built
from tegu.image.export import export, export_image
from tegu.image.front import (
    BuiltImage,
    build_definition,
    build_locked,
    collect_isolated,
    lock_for,
    verify_build,
    verify_store,
)
from tegu.image.gc import Freed, usage
from tegu.image.images import (
    ImageDiff,
    diff_images,
    find_image,
    list_images,
    remove_image,
    tree_layers,
)

__all__ = [
    "Assembled",
    "BuildOptions",
    "Built",
    "BuiltImage",
    "Freed",
    "ImageDiff",
    "ImageFile",
    "build_definition",
    "build_locked",
    "collect_isolated",
    "diff_images",
    "export",
    "export_image",
    "find_image",
    "list_images",
    "lock_for",
    "remove_image",
    "tree_layers",
    "usage",
    "verify_build",
    "verify_store",
]
