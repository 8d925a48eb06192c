"""The NRI plugin: pods whose annotation names a class get it.

A pod's own group (the kubelet makes one) gets the static layer, as groups of a policy do: written
by us, noted, undone. A container gets its parameters from the runtime when it is created. Between
containers of one pod the kubelet's shares decide; so a container gets a processor share only where
its pod has no group of its own. NRI: containerd/nri, README and pkg/api/api.proto (v1alpha1).
"""

from __future__ import annotations

import socket
import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING

from tegu.errors import TeguError, UnsupportedError
from tegu.qos.kubernetes.ttrpc import ClosedError, Link
from tegu.qos.layer import Place, apply_locked
from tegu.qos.policy import CLASSES, ClassName, ClassPolicy, Match, Policy
from tegu.qos.static import bfq_weight

if TYPE_CHECKING:
    from tegu.qos.kubernetes.nri_pb2 import CreateContainerResponse, PodSandbox

__all__ = ["ANNOTATION", "SOCKET", "Plugin", "parameters", "pod_group", "serve"]

ANNOTATION = "qos.tegu.io/class"
SOCKET = Path("/var/run/nri/nri.sock")
_SERVICE = "nri.pkg.api.v1alpha1.Runtime"
_NAME, _INDEX = "tegu-qos", "50"
_LOOK_AGAIN = 30.0
"""Seconds of quiet after which the policy is read again."""
_EVENTS = 0b1111
"""Bit N-1 for event N: pods run, stop, are removed; containers are created."""


def pod_group(parent: str) -> str:
    """Return the path of a pod's group from what the kubelet calls it; "" when it has none.

    Under systemd the name of a slice stands for its whole path (systemd.slice(5)).
    """
    if not parent.endswith(".slice"):
        return parent.rstrip("/") if parent.startswith("/") and ".." not in parent else ""
    parts = parent.rpartition("/")[2].removesuffix(".slice").split("-")
    return "".join(f"/{'-'.join(parts[: i + 1])}.slice" for i in range(len(parts)))


def parameters(policy: ClassPolicy, place: Place, *, in_pod_group: bool) -> dict[str, str]:
    """Return the files of a new container's group and what goes into them (OCI's `unified`)."""
    found = {}
    if policy.memory_low is not None:
        found["memory.low"] = str(policy.memory_low)
        if place.generations():
            found["memory.min"] = str(policy.memory_low)
    if in_pod_group:
        return found
    if policy.idle:
        found["cpu.idle"] = "1"
    elif policy.weight is not None:
        found["cpu.weight"] = str(policy.weight)
    if policy.io_weight is not None:
        # A file that is not there would fail the container.
        for name, value in (
            ("io.weight", policy.io_weight),
            ("io.bfq.weight", bfq_weight(policy.io_weight)),
        ):
            if any(place.hierarchy.root.glob(f"*/{name}")):
                found[name] = str(value)
    return found


@dataclass
class Plugin:
    """Answers the runtime. `answer` and `settle` are for `Link`; `say` gets lines for the log."""

    policy: Policy
    place: Place
    reload: Callable[[], Policy]
    say: Callable[[str], None] = print
    _pods: dict[str, tuple[ClassName, str]] = field(default_factory=dict)
    """Class and group by the pod's id, of pods that have both."""
    _changed: bool = False
    _said: str = ""

    def answer(self, method: str, payload: bytes) -> bytes:
        """Return the response to a call; NotImplementedError for one we do not know."""
        from tegu.qos.kubernetes import nri_pb2 as nri

        if method == "Configure":
            self._pods.clear()  # a list of all there are comes next
            return nri.ConfigureResponse(events=_EVENTS).SerializeToString()
        if method == "Synchronize":
            known = nri.SynchronizeRequest.FromString(payload)
            for pod in known.pods:
                self._pod(pod)
            self._changed = True
            return nri.SynchronizeResponse(more=known.more).SerializeToString()
        if method == "CreateContainer":
            created = nri.CreateContainerRequest.FromString(payload)
            return self._create(created.pod, created.container.name).SerializeToString()
        if method == "StateChange":
            event = nri.StateChangeEvent.FromString(payload)
            if event.event == nri.RUN_POD_SANDBOX:
                self._pod(event.pod)
            elif event.event in (nri.STOP_POD_SANDBOX, nri.REMOVE_POD_SANDBOX):
                self._gone(event.pod)
            return nri.Empty().SerializeToString()
        if method in ("RunPodSandbox", "StopPodSandbox", "RemovePodSandbox"):
            pod = nri.PodRequest.FromString(payload).pod
            (self._pod if method == "RunPodSandbox" else self._gone)(pod)
            return nri.Empty().SerializeToString()
        if method == "Shutdown":
            return nri.Empty().SerializeToString()
        raise NotImplementedError(method)

    def settle(self, quiet: bool) -> None:
        """Bring the pods' groups to what they should be; `quiet`: nothing was asked for a while."""
        if quiet:
            self._reread()
        if not self._changed:
            return
        self._changed = False
        try:
            done = apply_locked(self._whole(), self.place)
        except TeguError as e:
            if self._pods:
                self._tell(e.message)
            else:
                self.place.journal.undo()
            return
        for refusal in done.refused:
            self._tell(f"{refusal.what}: unsupported: {refusal.why}")

    def _whole(self) -> Policy:
        """Return the policy with the pods' groups among its matches."""
        classes: Mapping[ClassName, ClassPolicy] = {
            name: replace(
                policy,
                match=(
                    *policy.match,
                    *(Match("cgroup", g) for n, g in self._pods.values() if n == name),
                ),
            )
            for name, policy in self.policy.classes.items()
        }
        return replace(self.policy, classes=classes)

    def _reread(self) -> None:
        try:
            policy = self.reload()
        except TeguError as e:
            self._tell(f"the policy stays as it was: {e.message}")
            return
        if policy != self.policy:
            self.policy, self._changed = policy, True

    def _class(self, pod: PodSandbox) -> ClassName | None:
        named = pod.annotations.get(ANNOTATION)
        if named is None:
            return None
        for name in CLASSES:
            if name == named:
                return name
        self._tell(f"pod {_words(pod)}: {ANNOTATION}: {named!r} is none of {', '.join(CLASSES)}")
        return None

    def _pod(self, pod: PodSandbox) -> None:
        name, group = self._class(pod), pod_group(pod.linux.cgroup_parent)
        if name is not None and group and self.place.hierarchy.directory(group).is_dir():
            self._pods[pod.id] = name, group
            self._changed = True
            self._tell(f"pod {_words(pod)}: {name} ({group})")

    def _gone(self, pod: PodSandbox) -> None:
        if self._pods.pop(pod.id, None) is not None:
            self._changed = True

    def _create(self, pod: PodSandbox, container: str) -> CreateContainerResponse:
        from tegu.qos.kubernetes import nri_pb2 as nri

        name = self._class(pod)
        response = nri.CreateContainerResponse()
        if name is None:
            return response
        found = parameters(self.policy.classes[name], self.place, in_pod_group=pod.id in self._pods)
        if found:
            response.adjust.linux.resources.unified.update(found)
        words = ", ".join(f"{k}={v}" for k, v in found.items()) or "nothing of its own"
        self._tell(f"container {_words(pod)}/{container}: {name}: {words}")
        return response

    def _tell(self, text: str) -> None:
        if text != self._said:  # the same line over and over says nothing new
            self._said = text
            self.say(text)


def _words(pod: PodSandbox) -> str:
    return f"{pod.namespace}/{pod.name}"


def serve(
    reload: Callable[[], Policy],
    place: Place,
    stop: threading.Event,
    *,
    path: Path = SOCKET,
    say: Callable[[str], None] = print,
    opened: Callable[[socket.socket], None] = lambda _: None,
) -> None:
    """Give pods their classes until `stop` is set, then restore the groups.

    Waits for the runtime and for its return. `opened` gets each connected socket: shutting it down
    ends the wait for the runtime's next call. Raises TeguError when the policy is wrong, when
    another tegu is at work, or when the runtime refuses the plugin.
    """
    try:
        import google.protobuf  # noqa: F401
    except ImportError:
        raise UnsupportedError(
            "NRI needs protobuf's Python package",
            hint="apt install python3-protobuf, or pip install 'tegu[kubernetes]'",
        ) from None
    place.hierarchy.require("cpu")
    with place.journal.locked():
        plugin = Plugin(reload(), place, reload, say)
        try:
            waiting = False
            while not stop.is_set():
                try:
                    _session(plugin, path, opened)
                except (ClosedError, OSError) as e:
                    if not waiting and not stop.is_set():
                        say(f"waiting for the container runtime at {path}: {_reason(e)}")
                    waiting = isinstance(e, OSError)
                stop.wait(1)
        finally:
            left = place.journal.undo()
            for words in (*left.conflicts, *left.failed):
                say(f"not restored: {words}")


def _reason(error: Exception) -> str:
    if isinstance(error, TeguError):
        return error.message
    hint = " (is NRI on in the runtime's configuration?)"
    missing = isinstance(error, FileNotFoundError | ConnectionRefusedError)
    return f"{getattr(error, 'strerror', None) or error}{hint if missing else ''}"


def _session(plugin: Plugin, path: Path, opened: Callable[[socket.socket], None]) -> None:
    from tegu.qos.kubernetes.nri_pb2 import RegisterPluginRequest

    with socket.socket(socket.AF_UNIX) as sock:
        sock.connect(str(path))
        opened(sock)
        sock.settimeout(_LOOK_AGAIN)
        link = Link(sock, plugin.answer, plugin.settle)
        request = RegisterPluginRequest(plugin_name=_NAME, plugin_idx=_INDEX)
        link.call(_SERVICE, "RegisterPlugin", request.SerializeToString())
        link.run()
