"""The cloud kernel: built from the distribution's source, and kept current.

`load_recipe` reads what the kernel is made of (`distro/kernel/kernel.toml`: source package, patch
queue, configuration fragments), `build_kernel` makes packages of it, `rpm_packages` the same for
RPM, `check_config` compares the fragments with what came of them. `History` indexes two histories
of a kernel's git repository, so that `find_missing` can say which fixes a tree lacks; `pick` brings
one in, `backport_request` writes the letter that asks for it, `source_status` and `patch_status`
say what is out of date.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from tegu.lazy import lazily

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

__getattr__ = lazily(
    __name__,
    {
        "package_version": "bootfiles",
        "unpack_kernel": "bootfiles",
        "commit_builder": "commits",
        "CommitLine": "commits",
        "Built": "build",
        "Findings": "missing",
        "History": "history",
        "Missing": "missing",
        "Recipe": "recipe",
        "Repo": "gitrepo",
        "backport_request": "mail",
        "build_kernel": "build",
        "build_objects": "objects",
        "built_sources": "build",
        "check_config": "build",
        "check_hardening": "hardening",
        "find_missing": "missing",
        "last_built": "build",
        "load_recipe": "recipe",
        "patch_status": "status",
        "pick": "picking",
        "read_accepted": "hardening",
        "read_cves": "cves",
        "rpm_packages": "rpms",
        "source_status": "status",
        "tree_status": "status",
        "with_files": "touched",
    },
)
