"""The objects for a cluster, by Kubernetes' own schemas; a policy read from an API server."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any

import kubernetes_validate
import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st
from openapi_schema_validator import OAS30Validator

from tegu.cli import main
from tegu.errors import DefinitionError, QosError, UnsupportedError, UsageError
from tegu.qos.kubernetes.cluster import Cluster, in_cluster
from tegu.qos.kubernetes.manifests import make
from tegu.qos.kubernetes.schema import policy_schema
from tegu.qos.policy import policy_from

POLICY = """
[latency]
match = ["unit:web"]
memory_low = "64M"
[batch]
match = ["pod:*"]
[devices]
vda = "bfq"
[slo]
p99 = "2ms"
feed = "file:/run/p99"
[loop]
knobs = ["cpu", "memory"]
ceiling = { cpu = 2, memory = 1073741824 }
"""


def test_every_object_is_what_kubernetes_takes(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "qos.toml").write_text(POLICY)
    policy = str(tmp_path / "qos.toml")
    assert main(["qos", "manifests", "--image", "r.example/tegu:1", "--policy", policy]) == 0
    objects = list(yaml.safe_load_all(capsys.readouterr().out))
    kinds = [o["kind"] for o in objects]
    assert kinds == [
        "Namespace",
        "CustomResourceDefinition",
        "ServiceAccount",
        "ClusterRole",
        "ClusterRoleBinding",
        "QosPolicy",
        "DaemonSet",
    ]
    for thing in objects:
        if thing["kind"] != "QosPolicy":  # ours: by its own schema, below
            kubernetes_validate.validate(thing, kubernetes_validate.latest_version(), strict=True)
    ours = objects[kinds.index("QosPolicy")]
    definition = objects[kinds.index("CustomResourceDefinition")]["spec"]
    version = definition["versions"][0]
    assert ours["apiVersion"] == f"{definition['group']}/{version['name']}"
    OAS30Validator(version["schema"]["openAPIV3Schema"]).validate(ours)
    assert policy_from(ours["spec"], "x") == policy_from(ours["spec"], "x", match=False)
    assert "--resource" in objects[-1]["spec"]["template"]["spec"]["containers"][0]["command"]


def test_the_validator_sees_mistakes() -> None:
    daemon_set = make("tegu:1", "ns", None)[-1]
    daemon_set["spec"]["template"]["spec"]["containers"][0]["volumeMounts"][0]["mountpath"] = "/x"
    with pytest.raises(kubernetes_validate.ValidationError):
        kubernetes_validate.validate(daemon_set, kubernetes_validate.latest_version(), strict=True)


def test_the_schema_is_structural() -> None:
    """As the API server asks: each level has a type, and no keyword of another kind."""

    def look(node: dict[str, Any]) -> None:
        if node.get("x-kubernetes-int-or-string"):
            assert node["anyOf"] == [{"type": "integer"}, {"type": "string"}]
            assert "type" not in node
            return
        assert node["type"] in ("object", "array", "string", "integer", "number", "boolean")
        assert not {"$ref", "oneOf", "anyOf", "allOf", "not", "uniqueItems"} & set(node)
        assert not ("properties" in node and "additionalProperties" in node)
        for child in node.get("properties", {}).values():
            look(child)
        for key in ("items", "additionalProperties"):
            if key in node:
                look(node[key])

    look(policy_schema())


@pytest.mark.parametrize(
    "path",
    [
        ("latency", "weight", 0),
        ("latency", "weight", 10001),
        ("latency", "weight", "much"),
        ("batch", "idle", "yes"),
        ("batch", "io_weight", 0),
        ("latency", "memory_low", "lots"),
        ("latency", "match", "unit:a"),
        ("latency", "match", ["a"]),
        ("latency", "match", ["planet:a"]),
        ("slo", "p99", "2 ms"),
        ("slo", "feed", "carrier:pigeon"),
        ("devices", "vda", "cfq"),
        ("loop", "knobs", ["gpu"]),
        ("loop", "floor", 0),
        ("loop", "safe", 2),
        ("loop", "samples", 0),
    ],
)
def test_schema_and_reader_refuse_the_same(path: tuple[str, str, object]) -> None:
    table, key, value = path
    spec: dict[str, Any] = {"slo": {"p99": "2ms"}}
    spec.setdefault(table, {})[key] = value
    assert list(OAS30Validator(policy_schema()).iter_errors(spec))
    with pytest.raises(DefinitionError):
        policy_from(spec, "x", match=False)


VALUES = st.one_of(
    st.integers(-5, 20000),
    st.booleans(),
    st.sampled_from(["64M", "2ms", "x", "unit:a", "file:/a", "bfq", "", "1.5G", "0s", "runq"]),
    st.lists(st.sampled_from(["unit:a", "cpu", "x"]), max_size=2),
)


@given(
    st.dictionaries(
        st.sampled_from(["latency", "normal", "batch", "devices"]),
        st.dictionaries(
            st.sampled_from(["match", "weight", "idle", "io_weight", "memory_low", "vda"]),
            VALUES,
            max_size=3,
        ),
        max_size=2,
    )
)
def test_what_the_reader_takes_the_schema_takes(spec: dict[str, Any]) -> None:
    try:
        policy_from(spec, "x", match=False)
    except DefinitionError:
        return
    assert list(OAS30Validator(policy_schema()).iter_errors(spec)) == []


@pytest.mark.parametrize(
    ("image", "namespace"), [("", "a"), ("-x", "a"), ("tegu", "A b"), ("t", "")]
)
def test_names_that_are_none(image: str, namespace: str) -> None:
    with pytest.raises(UsageError):
        make(image, namespace, None)


def test_a_wrong_policy_makes_no_object(tmp_path: Path) -> None:
    (tmp_path / "p.toml").write_text("[latency]\nweight = 0\n")
    with pytest.raises(DefinitionError, match=r"latency\.weight"):
        make("tegu:1", "ns", tmp_path / "p.toml")


class Server(BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        assert self.headers["Authorization"] == "Bearer secret"
        name = self.path.removeprefix("/apis/qos.tegu.io/v1alpha1/qospolicies/")
        answers = {
            "good": (200, json.dumps({"spec": {"latency": {"weight": 7}}})),
            "empty": (200, "{}"),
            "odd": (200, "no JSON"),
            "secret": (403, "{}"),
        }
        code, text = answers.get(name, (404, "{}"))
        self.send_response(code)
        self.end_headers()
        self.wfile.write(text.encode())

    def log_message(self, *args: object) -> None:
        pass


@pytest.fixture
def cluster(tmp_path: Path) -> Iterator[Cluster]:
    (tmp_path / "token").write_text("secret\n")
    server = HTTPServer(("127.0.0.1", 0), Server)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        yield Cluster(f"http://127.0.0.1:{server.server_port}", tmp_path)
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


def test_a_policy_of_the_cluster(cluster: Cluster) -> None:
    policy = policy_from(cluster.policy("good"), "x", match=False)
    assert policy.classes["latency"].weight == 7
    for name, words in {
        "empty": "QosPolicy empty has no spec",
        "odd": "QosPolicy odd: the API server's answer is not JSON",
        "secret": "QosPolicy secret: this account may not read it",
        "none": "QosPolicy none: there is none",
    }.items():
        with pytest.raises(QosError) as e:
            cluster.policy(name)
        assert e.value.message == words
    with pytest.raises(UsageError):
        cluster.policy("../../secrets")


def test_no_cluster(tmp_path: Path) -> None:
    with pytest.raises(UnsupportedError, match="no pod of a cluster"):
        in_cluster({}, tmp_path)
    (tmp_path / "token").write_text("x")
    found = in_cluster({"KUBERNETES_SERVICE_HOST": "fd00::1"}, tmp_path)
    assert found.address == "https://[fd00::1]:443"
    with pytest.raises(QosError, match="QosPolicy a: "):  # no certificate authority there
        found.policy("a")


def test_where_the_policy_is(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    assert main(["qos", "nri", str(tmp_path / "p.toml"), "--resource", "default"]) == 2
    assert "not both" in capsys.readouterr().err
    assert main(["qos", "nri", "--resource", "default"]) == UnsupportedError.exit_code
    assert "no pod of a cluster" in capsys.readouterr().err
