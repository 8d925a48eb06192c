"""`tegu qos nri` and `tegu qos manifests`: classes for the pods of a cluster."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from tegu.qos import Policy

__all__ = ["add_to"]


def add_to(app: typer.Typer) -> None:
    """Give `tegu qos` the verbs of this module."""
    app.command(epilog="Example: tegu qos nri /etc/tegu/qos.toml")(nri)
    example = "tegu qos manifests --image registry.example/tegu:26.11 | kubectl apply -f -"
    app.command(epilog=f"Example: {example}")(manifests)


def nri(
    policy: Annotated[
        Path | None, typer.Argument(metavar="[POLICY]", help="What the classes get; else ours.")
    ] = None,
    resource: str = typer.Option(
        "", "--resource", metavar="NAME", help="The policy is this QosPolicy of the cluster."
    ),
    socket: Annotated[
        Path, typer.Option("--socket", help="Where the container runtime listens.")
    ] = Path("/var/run/nri/nri.sock"),
) -> None:
    """Give pods the class that their annotation qos.tegu.io/class names; a plugin of containerd.

    Everything that was written to the pods' groups is restored when it ends.
    """
    import signal
    import socket as sockets
    import threading
    from contextlib import suppress

    from tegu.errors import UsageError
    from tegu.qos import Place
    from tegu.qos.kubernetes.cluster import in_cluster
    from tegu.qos.kubernetes.plugin import serve
    from tegu.qos.policy import load_policy, policy_from

    if policy is not None and resource:
        raise UsageError("a policy is a file or a --resource, not both")
    if resource:
        cluster = in_cluster()
    stop, open_now = threading.Event(), list[sockets.socket]()

    def end(*_: object) -> None:
        stop.set()
        for sock in open_now:
            with suppress(OSError):  # closed meanwhile
                sock.shutdown(sockets.SHUT_RDWR)

    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, end)

    def opened(sock: sockets.socket) -> None:
        open_now[:] = [sock]
        if stop.is_set():
            end()

    def read() -> Policy:
        if resource:
            return policy_from(cluster.policy(resource), f"QosPolicy {resource}", match=False)
        if policy is None:
            return policy_from({}, "the defaults", match=False)
        return load_policy(policy, match=False)

    serve(read, Place.here(), stop, path=socket, say=lambda t: print(t, flush=True), opened=opened)


def manifests(
    image: str = typer.Option(..., "--image", help="The image with `tegu` in it."),
    policy: Annotated[
        Path | None, typer.Option("--policy", help="A QosPolicy of this file, too.")
    ] = None,
    namespace: str = typer.Option("tegu-qos", "--namespace", help="Where the plugin runs."),
    as_json: bool = typer.Option(False, "--json", help="A list as JSON, not YAML documents."),
) -> None:
    """Print what a cluster needs: the custom resource, the plugin's DaemonSet, its account."""
    from tegu.qos.kubernetes.manifests import make, to_json, to_yaml

    objects = make(image, namespace, policy)
    print(to_json(objects) if as_json else to_yaml(objects), end="")
