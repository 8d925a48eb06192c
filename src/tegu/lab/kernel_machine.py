"""A machine that starts a kernel of its own choice, and gets that kernel's modules."""

from __future__ import annotations

from pathlib import Path
from typing import Final

from tegu.errors import MachineError
from tegu.lab.options import QemuOptions
from tegu.lab.qemu import QemuMachine
from tegu.process import run

__all__ = ["KernelMachine"]

_COPY: Final = 900.0  # seconds; an emulated machine under load takes some megabytes a second


class KernelMachine(QemuMachine):
    """A machine that gets the modules of the kernel that it is started with (`options.kernel`).

    `modules` is a directory `lib/modules/RELEASE` of ours, None when there are none. They are put
    where modprobe(8) looks, in place of what the image has there, the first time that the machine
    answers; what needs one before that has to be built in or in an initrd.
    """

    def __init__(self, options: QemuOptions, modules: Path | None) -> None:
        super().__init__(options)
        self._modules = modules

    def wait_for_ssh(self, timeout: float = 300) -> float:
        """Wait until commands can be run, and the modules are there; return the seconds."""
        seconds = super().wait_for_ssh(timeout)
        if self._modules is not None:
            modules, self._modules = self._modules, None
            self._give(modules)
        return seconds

    def _give(self, modules: Path) -> None:
        # One file is copied far quicker than thousands, and links stay what they are.
        archive = self.record.directory / "modules.tar"
        tar: list[str | Path] = ["tar", "--owner=0", "--group=0", "-C", modules.parent]
        run([*tar, "-cf", archive, modules.name], timeout=300)
        self.copy_in(archive, "/tmp/tegu-modules.tar", timeout=_COPY)
        archive.unlink()
        done = self.run(
            f"rm -rf /usr/lib/modules/{modules.name} && mkdir -p /usr/lib/modules && "
            "tar -C /usr/lib/modules -xf /tmp/tegu-modules.tar && rm /tmp/tegu-modules.tar",
            root=True,
            timeout=_COPY,
        )
        if done.exit_code != 0:
            raise MachineError(
                f"cannot put the modules into the machine: {done.stderr.strip()[-200:]}"
            )
