"""A kernel of ours that was built, and a guest of Tegu Linux that runs it, with its modules."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from tegu.kernel import last_built, load_recipe, unpack_kernel
from tegu.lab import KernelMachine, QemuOptions, Seed
from tegu.store import Store

APPEND = "root=PARTLABEL=root rw console=ttyS0,115200n8 no_timer_check"


@pytest.fixture(scope="session")
def kernel_deb(shared_store: Store) -> Path:
    """The image package of the kernel to test; its headers package lies beside it."""
    if named := os.environ.get("TEGU_KERNEL_DEB"):
        return Path(named).absolute()
    deb = last_built(shared_store, load_recipe().release)
    if deb is None:
        pytest.skip("no kernel: neither TEGU_KERNEL_DEB nor one that `tegu kernel build` has made")
    return deb


@pytest.fixture(scope="module")
def guest(
    kernel_deb: Path, tegu_image: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[KernelMachine]:
    """A machine that runs the kernel without an initrd, and has its modules; one per module."""
    files = unpack_kernel(kernel_deb, tmp_path_factory.mktemp("guest") / "kernel")
    assert files.initrd is None, "the kernel needs an initrd: virtio or ext4 is not built in"
    options = QemuOptions(
        image=tegu_image,
        kernel=files.image,
        append=APPEND,
        memory=1 << 30,
        cpus=2,
        seed=Seed(hostname="kernel"),
    )
    with KernelMachine(options, files.modules) as machine:
        machine.wait_for_ssh(900)
        yield machine
