"""NRI: the codec, the frames, and the plugin beside a runtime that speaks as the real one does."""

from __future__ import annotations

import importlib.resources
import socket
import struct
import threading
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.qos.fake import Fake

from tegu.errors import QosError, TeguError
from tegu.qos import Policy
from tegu.qos.kubernetes import nri_pb2 as nri
from tegu.qos.kubernetes.plugin import ANNOTATION, pod_group, serve
from tegu.qos.kubernetes.ttrpc import (
    PLUGIN,
    RUNTIME,
    ClosedError,
    Frame,
    Link,
    ProtocolError,
    Splitter,
    pieces,
)
from tegu.qos.policy import policy_from

REQUEST, RESPONSE = 1, 2
FRAMES = st.lists(
    st.builds(
        Frame,
        st.sampled_from([PLUGIN, RUNTIME]),
        st.integers(1, 2**31),
        st.sampled_from([REQUEST, RESPONSE]),
        st.binary(max_size=9000),
    ),
    max_size=4,
)


def test_the_codec_is_that_of_the_protocol(tmp_path: Path) -> None:
    """nri_pb2.py says what nri.proto says, whichever compiler made it."""
    from google.protobuf.descriptor_pb2 import FileDescriptorProto, FileDescriptorSet
    from grpc_tools import protoc

    source = importlib.resources.files("tegu.qos.kubernetes") / "nri.proto"
    (tmp_path / "nri.proto").write_text(source.read_text())
    out = tmp_path / "set"
    argv = ["protoc", f"-I{tmp_path}", f"--descriptor_set_out={out}", str(tmp_path / "nri.proto")]
    assert protoc.main(argv) == 0
    (file,) = FileDescriptorSet.FromString(out.read_bytes()).file
    committed = FileDescriptorProto()
    nri.DESCRIPTOR.CopyToProto(committed)
    for compiled in (file, committed):  # what one compiler writes down and another does not
        for message in compiled.message_type:
            for field in message.field:
                field.ClearField("json_name")
            for entry in message.nested_type:
                for field in entry.field:
                    field.ClearField("json_name")
    assert file == committed


@given(FRAMES, st.integers(1, 5000))
def test_frames_come_as_they_went(frames: list[Frame], size: int) -> None:
    data = b"".join(pieces(f) for f in frames)
    splitter, found = Splitter(), []
    for start in range(0, len(data), size):
        found += splitter.feed(data[start : start + size])
    assert found == frames


@given(st.binary(max_size=400))
def test_any_bytes_are_taken_or_refused(data: bytes) -> None:
    splitter = Splitter()
    try:
        list(splitter.feed(data))
    except ProtocolError as e:
        assert "\n" not in e.message


def test_no_piece_is_longer_than_the_runtime_reads() -> None:
    data = pieces(Frame(PLUGIN, 1, RESPONSE, bytes(10000)))
    at = 0
    while at < len(data):
        connection, length = struct.unpack_from(">II", data, at)
        assert connection == PLUGIN and length <= 4096
        at += 8 + length
    assert at == len(data)


@pytest.mark.parametrize(
    ("parent", "group"),
    [
        ("", ""),
        ("/kubepods/besteffort/pod1/", "/kubepods/besteffort/pod1"),
        ("kubepods-pod1.slice", "/kubepods.slice/kubepods-pod1.slice"),
        ("/a.slice/kubepods-pod1.slice", "/kubepods.slice/kubepods-pod1.slice"),
        ("/../x", ""),
        ("name", ""),
    ],
)
def test_pod_groups(parent: str, group: str) -> None:
    assert pod_group(parent) == group


class Runtime:
    """The runtime's side of the connection, as containerd's: registers, asks, one at a time."""

    def __init__(self, path: Path) -> None:
        self.listener = socket.socket(socket.AF_UNIX)
        self.listener.bind(str(path))
        self.listener.listen()
        self.listener.settimeout(60)
        self.splitter = Splitter()
        self.waiting: list[Frame] = []
        self.stream = 1

    def accept(self, refusal: str = "") -> nri.RegisterPluginRequest:
        """Take the plugin's registration; `refusal` is the answer to it."""
        self.sock, _ = self.listener.accept()
        self.sock.settimeout(60)
        frame = self.next()
        assert (frame.connection, frame.kind) == (RUNTIME, REQUEST)
        request = nri.Request.FromString(frame.data)
        assert (request.service, request.method) == (
            "nri.pkg.api.v1alpha1.Runtime",
            "RegisterPlugin",
        )
        status = nri.Status(code=5, message=refusal) if refusal else None
        answer = nri.Response(status=status).SerializeToString()
        self.sock.sendall(pieces(Frame(RUNTIME, frame.stream, RESPONSE, answer)))
        return nri.RegisterPluginRequest.FromString(request.payload)

    def next(self) -> Frame:
        while not self.waiting:
            data = self.sock.recv(1 << 16)
            assert data, "the plugin hung up"
            self.waiting += self.splitter.feed(data)
        return self.waiting.pop(0)

    def ask(self, method: str, message: object) -> nri.Response:
        payload = message.SerializeToString()  # type: ignore[attr-defined]
        data = nri.Request(method=method, payload=payload).SerializeToString()
        self.sock.sendall(pieces(Frame(PLUGIN, self.stream, REQUEST, data)))
        frame = self.next()
        assert (frame.connection, frame.stream, frame.kind) == (PLUGIN, self.stream, RESPONSE)
        self.stream += 2
        return nri.Response.FromString(frame.data)

    def created(self, pod: nri.PodSandbox) -> dict[str, str]:
        request = nri.CreateContainerRequest(pod=pod, container=nri.Container(name="c"))
        answer = self.ask("CreateContainer", request)
        made = nri.CreateContainerResponse.FromString(answer.payload)
        return dict(made.adjust.linux.resources.unified)


class Served:
    """The plugin in a thread, and what it said."""

    def __init__(self, fake: Fake, path: Path) -> None:
        self.said: list[str] = []
        self.stop = threading.Event()
        self.sockets: list[socket.socket] = []
        self.raw: dict[str, object] = {"latency": {"memory_low": "64M"}}
        self.error: TeguError | None = None
        self.thread = threading.Thread(target=self._run, args=(fake, path))
        self.thread.start()

    def policy(self) -> Policy:
        return policy_from(self.raw, "the test", match=False)

    def _run(self, fake: Fake, path: Path) -> None:
        try:
            serve(
                self.policy,
                fake.place,
                self.stop,
                path=path,
                say=self.said.append,
                opened=self.sockets.append,
            )
        except TeguError as e:
            self.error = e

    def end(self) -> None:
        self.stop.set()
        for sock in self.sockets:
            if sock.fileno() >= 0:
                sock.shutdown(socket.SHUT_RDWR)
        self.thread.join(60)
        assert not self.thread.is_alive()


def pod(name: str, class_name: str, parent: str = "") -> nri.PodSandbox:
    made = nri.PodSandbox(id=f"id-{name}", name=name, namespace="default")
    made.annotations[ANNOTATION] = class_name
    made.linux.cgroup_parent = parent
    return made


def event(kind: int, of: nri.PodSandbox) -> nri.StateChangeEvent:
    return nri.StateChangeEvent(event=kind, pod=of)


def test_a_session(fake: Fake, tmp_path: Path) -> None:
    fake.group("/kubepods/pod1")
    fake.group("/kubepods/pod2")
    fake.group("/kubepods/pod3")
    before = fake.snapshot()
    runtime = Runtime(tmp_path / "nri.sock")
    served = Served(fake, tmp_path / "nri.sock")
    try:
        registered = runtime.accept()
        assert (registered.plugin_name, registered.plugin_idx) == ("tegu-qos", "50")
        answer = runtime.ask("Configure", nri.ConfigureRequest(runtime_name="containerd"))
        assert nri.ConfigureResponse.FromString(answer.payload).events == 0b1111
        # Pods that were there before, in two parts as a runtime of many pods tells them.
        old = nri.SynchronizeRequest(pods=[pod("old", "latency", "/kubepods/pod1")], more=True)
        answer = runtime.ask("Synchronize", old)
        assert nri.SynchronizeResponse.FromString(answer.payload).more
        runtime.ask("Synchronize", nri.SynchronizeRequest(pods=[pod("odd", "fast")]))
        batch = pod("job", "batch", "/kubepods/pod2")
        runtime.ask("StateChange", event(nri.RUN_POD_SANDBOX, batch))
        # What comes next is read when the groups are settled.
        root = fake.place.hierarchy.root / "kubepods"
        assert runtime.created(batch) == {}
        assert (root / "pod1/cpu.weight").read_text() == "10000\n"
        assert (root / "pod1/memory.low").read_text() == f"{64 << 20}\n"
        assert (root / "memory.low").read_text() == f"{64 << 20}\n"
        assert (root / "pod2/cpu.idle").read_text() == "1\n"
        # Without groups of their own, containers get what the class has.
        alone = pod("alone", "batch")
        assert runtime.created(alone)["cpu.idle"] == "1"
        found = runtime.created(pod("web", "latency"))
        assert found["cpu.weight"] == "10000" and found["memory.low"] == str(64 << 20)
        assert runtime.created(nri.PodSandbox(id="x", name="plain")) == {}
        assert runtime.created(pod("odd", "fast")) == {}
        # A newer runtime's calls.
        newer = pod("newer", "latency", "/kubepods/pod3")
        assert not runtime.ask("RunPodSandbox", nri.PodRequest(pod=newer)).status.code
        assert runtime.ask("Teleport", nri.Empty()).status.code == 12
        assert (root / "pod3/cpu.weight").read_text() == "10000\n"
        runtime.ask("RemovePodSandbox", nri.PodRequest(pod=newer))
        runtime.ask("StateChange", event(nri.STOP_POD_SANDBOX, batch))
        runtime.ask("Shutdown", nri.Empty())
        assert (root / "pod2/cpu.idle").read_text() == "0\n"
        assert (root / "pod3/cpu.weight").read_text() == "100\n"
    finally:
        served.end()
    assert served.error is None
    assert fake.snapshot() == before
    assert any("'fast' is none of latency, normal, batch" in line for line in served.said)


def test_a_runtime_that_comes_back(fake: Fake, tmp_path: Path) -> None:
    """The groups stay as they are while the runtime is away."""
    fake.group("/kubepods/pod1")
    weight = fake.place.hierarchy.root / "kubepods/pod1/cpu.weight"
    runtime = Runtime(tmp_path / "nri.sock")
    served = Served(fake, tmp_path / "nri.sock")
    try:
        runtime.accept()
        known = nri.SynchronizeRequest(pods=[pod("old", "latency", "/kubepods/pod1")])
        runtime.ask("Synchronize", known)
        runtime.ask("Shutdown", nri.Empty())
        assert weight.read_text() == "10000\n"
        runtime.sock.close()
        runtime.accept()
        assert weight.read_text() == "10000\n"
    finally:
        served.end()
    assert weight.read_text() == "100\n"


def test_a_refusal_is_told(fake: Fake, tmp_path: Path) -> None:
    runtime = Runtime(tmp_path / "nri.sock")
    served = Served(fake, tmp_path / "nri.sock")
    try:
        runtime.accept(refusal="no plugins here")
        served.thread.join(60)
        assert served.error is not None
        assert served.error.message == "the container runtime refuses: no plugins here"
    finally:
        served.end()


def test_no_runtime(fake: Fake, tmp_path: Path) -> None:
    served = Served(fake, tmp_path / "nothing")
    while not served.said and served.thread.is_alive():
        served.thread.join(0.05)
    served.end()
    assert served.error is None
    assert "waiting for the container runtime" in served.said[0]
    assert "is NRI on" in served.said[0]


@pytest.mark.parametrize(
    "data",
    [
        pieces(Frame(RUNTIME, 1, RESPONSE, b"\xff\xff\xff")),
        pieces(Frame(PLUGIN, 1, REQUEST, b"\x0a\xff")),
        struct.pack(">II", 1, 1 << 31),
        struct.pack(">IIIIBB", 1, 10, 1 << 31, 1, 1, 0),
    ],
)
def test_a_peer_that_lies(data: bytes) -> None:
    ours, theirs = socket.socketpair()
    with ours, theirs:
        theirs.sendall(data)
        theirs.shutdown(socket.SHUT_WR)
        link = Link(ours, lambda method, payload: b"", lambda quiet: None)
        with pytest.raises(ProtocolError, match=r"NRI|ttrpc") as e:
            link.run()
        assert "\n" not in e.value.message


def test_a_quiet_time_settles(fake: Fake, tmp_path: Path) -> None:
    """A policy that changed is taken up when nothing is asked for a while; a wrong one is not."""
    from tegu.qos.kubernetes.plugin import Plugin

    fake.group("/kubepods/pod1")
    weight = fake.place.hierarchy.root / "kubepods/pod1/cpu.weight"
    raw: dict[str, object] = {}
    said: list[str] = []

    def read() -> Policy:
        return policy_from(raw, "the test", match=False)

    plugin = Plugin(read(), fake.place, read, said.append)
    known = nri.SynchronizeRequest(pods=[pod("old", "latency", "/kubepods/pod1")])
    plugin.answer("Synchronize", known.SerializeToString())
    plugin.settle(False)
    assert weight.read_text() == "10000\n"
    raw["latency"] = {"weight": 500}
    plugin.settle(True)
    assert weight.read_text() == "500\n"
    raw["latency"] = {"weight": "much"}
    plugin.settle(True)
    assert weight.read_text() == "500\n"
    assert "the policy stays as it was: the test: latency.weight" in said[-1]


def test_pods_that_come_and_go_leave_no_notes(fake: Fake) -> None:
    from tegu.qos.kubernetes.plugin import Plugin

    def read() -> Policy:
        return policy_from({}, "the test", match=False)

    fake.group("/kubepods")
    plugin = Plugin(read(), fake.place, read, lambda line: None)
    kept = fake.group("/kubepods/kept")
    sizes = set()
    plugin.answer(
        "Synchronize",
        nri.SynchronizeRequest(pods=[pod("k", "latency", "/kubepods/kept")]).SerializeToString(),
    )
    for number in range(5):
        group = fake.group(f"/kubepods/pod{number}")
        come = pod(f"p{number}", "batch", f"/kubepods/pod{number}")
        plugin.answer("RunPodSandbox", nri.PodRequest(pod=come).SerializeToString())
        plugin.settle(False)
        assert (group / "cpu.idle").read_text() == "1\n"
        for file in group.iterdir():
            file.unlink()
        group.rmdir()
        plugin.answer("RemovePodSandbox", nri.PodRequest(pod=come).SerializeToString())
        plugin.settle(False)
        sizes.add(len(fake.place.journal.entries()))
    assert len(sizes) == 1
    assert (kept / "cpu.weight").read_text() == "10000\n"


def test_closing_ends(fake: Fake) -> None:
    ours, theirs = socket.socketpair()
    theirs.close()
    with ours, pytest.raises(ClosedError):
        Link(ours, lambda method, payload: b"", lambda quiet: None).run()
    assert issubclass(ClosedError, QosError)
