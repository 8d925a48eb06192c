"""A container runtime asked as the kubelet asks it (CRI), and an image for it of one program."""

from __future__ import annotations

import hashlib
import io
import json
import sys
import tarfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

__all__ = ["IMAGE", "Runtime", "write_image"]

IMAGE = "tegu.invalid/box:1"
_HOST_NETWORK = 2


class Runtime:
    """A connection to a runtime's socket."""

    def __init__(self, socket: Path) -> None:
        import grpc

        here = str(Path(__file__).parent)
        sys.path.insert(0, here)  # where the compiler looks for protocols
        try:
            self.messages: Any
            self.messages, services = grpc.protos_and_services("cri.proto")
        finally:
            sys.path.remove(here)
        self.channel = grpc.insecure_channel(f"unix:{socket}")
        self.stub = services.RuntimeServiceStub(self.channel)

    def close(self) -> None:
        self.channel.close()

    def pod(self, name: str, annotations: Mapping[str, str], parent: str = "") -> tuple[str, Any]:
        """Run a pod in the machine's network; return its id and its configuration."""
        config = self.messages.PodSandboxConfig(annotations=annotations)
        config.metadata.name, config.metadata.uid = name, f"uid-{name}"
        config.metadata.namespace = "default"
        config.linux.cgroup_parent = parent
        config.linux.security_context.namespace_options.network = _HOST_NETWORK
        request = self.messages.RunPodSandboxRequest(config=config)
        return self.stub.RunPodSandbox(request, timeout=300).pod_sandbox_id, config

    def container(self, pod: tuple[str, Any], name: str) -> str:
        """Create and start a container of IMAGE in a pod; return its id."""
        config = self.messages.ContainerConfig(command=["/bin/busybox", "sleep", "100000"])
        config.metadata.name, config.image.image = name, IMAGE
        config.linux.resources.cpu_shares = 512
        request = self.messages.CreateContainerRequest(
            pod_sandbox_id=pod[0], config=config, sandbox_config=pod[1]
        )
        made = self.stub.CreateContainer(request, timeout=300).container_id
        request = self.messages.StartContainerRequest(container_id=made)
        self.stub.StartContainer(request, timeout=300)
        return str(made)

    def remove(self, pod: tuple[str, Any]) -> None:
        """Stop and remove a pod with its containers."""
        request = self.messages.PodSandboxRequest(pod_sandbox_id=pod[0])
        self.stub.StopPodSandbox(request, timeout=300)
        self.stub.RemovePodSandbox(request, timeout=300)


def write_image(path: Path, busybox: bytes) -> None:
    """Write an image archive of busybox alone, which sleeps; `ctr images import` reads it."""
    layer = _tar({"bin/busybox": (busybox, 0o755)})
    config = json.dumps(
        {
            "architecture": "amd64",
            "os": "linux",
            "config": {"Entrypoint": ["/bin/busybox", "sleep", "100000"]},
            "rootfs": {
                "type": "layers",
                "diff_ids": [f"sha256:{hashlib.sha256(layer).hexdigest()}"],
            },
        }
    ).encode()
    manifest = [{"Config": "config.json", "RepoTags": [IMAGE], "Layers": ["layer.tar"]}]
    files = {
        "layer.tar": (layer, 0o644),
        "config.json": (config, 0o644),
        "manifest.json": (json.dumps(manifest).encode(), 0o644),
    }
    path.write_bytes(_tar(files))


def _tar(files: Mapping[str, tuple[bytes, int]]) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as tar:
        for name, (data, mode) in files.items():
            info = tarfile.TarInfo(name)
            info.size, info.mode = len(data), mode
            tar.addfile(info, io.BytesIO(data))
    return buffer.getvalue()
