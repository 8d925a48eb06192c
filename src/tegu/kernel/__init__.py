"""The cloud kernel: built from the distribution's source, and kept current.

`load_recipe` reads what the kernel is made of (`distro/kernel/kernel.toml`: source package, patch
queue, configuration fragments), `build_kernel` makes packages of it, `rpm_packages` the same for
RPM, `check_config` compares the fragments with what came of them. `History` indexes two histories
of a kernel's git repository, so that `find_missing` can say which fixes a tree lacks; `pick` brings
one in, `backport_request` writes the letter that asks for it, `source_status` and `patch_status`
say what is out of date.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from tegu.kernel.bootfiles import package_version, unpack_kernel
    from tegu.kernel.build import Built, build_kernel, built_sources, check_config, last_built
    from tegu.kernel.commits import CommitLine, commit_builder
    from tegu.kernel.cves import read_cves
    from tegu.kernel.gitrepo import Repo
    from tegu.kernel.hardening import check_hardening, read_accepted
    from tegu.kernel.history import History
    from tegu.kernel.mail import backport_request
    from tegu.kernel.missing import Findings, Missing, find_missing
    from tegu.kernel.objects import build_objects
    from tegu.kernel.picking import pick
    from tegu.kernel.recipe import Recipe, load_recipe
    from tegu.kernel.rpms import rpm_packages
    from tegu.kernel.status import patch_status, source_status, tree_status
    from tegu.kernel.touched import with_files

__all__ = [
    "Built",
    "CommitLine",
    "Findings",
    "History",
    "Missing",
    "Recipe",
    "Repo",
    "backport_request",
    "build_kernel",
    "build_objects",
    "built_sources",
    "check_config",
    "check_hardening",
    "commit_builder",
    "find_missing",
    "last_built",
    "load_recipe",
    "package_version",
    "patch_status",
    "pick",
    "read_accepted",
    "read_cves",
    "rpm_packages",
    "source_status",
    "tree_status",
    "unpack_kernel",
    "with_files",
]

_HOMES = {
    "package_version": "tegu.kernel.bootfiles",
    "unpack_kernel": "tegu.kernel.bootfiles",
    "commit_builder": "tegu.kernel.commits",
    "CommitLine": "tegu.kernel.commits",
    "Built": "tegu.kernel.build",
    "Findings": "tegu.kernel.missing",
    "History": "tegu.kernel.history",
    "Missing": "tegu.kernel.missing",
    "Recipe": "tegu.kernel.recipe",
    "Repo": "tegu.kernel.gitrepo",
    "backport_request": "tegu.kernel.mail",
    "build_kernel": "tegu.kernel.build",
    "build_objects": "tegu.kernel.objects",
    "built_sources": "tegu.kernel.build",
    "check_config": "tegu.kernel.build",
    "check_hardening": "tegu.kernel.hardening",
    "find_missing": "tegu.kernel.missing",
    "last_built": "tegu.kernel.build",
    "load_recipe": "tegu.kernel.recipe",
    "patch_status": "tegu.kernel.status",
    "pick": "tegu.kernel.picking",
    "read_accepted": "tegu.kernel.hardening",
    "read_cves": "tegu.kernel.cves",
    "rpm_packages": "tegu.kernel.rpms",
    "source_status": "tegu.kernel.status",
    "tree_status": "tegu.kernel.status",
    "with_files": "tegu.kernel.touched",
}


def __getattr__(name: str) -> Any:
    """Import what is heavy when it is first used."""
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    import importlib

    return getattr(importlib.import_module(_HOMES[name]), name)
