"""What a cluster needs for the classes: a custom resource, and a DaemonSet that runs the plugin."""

from __future__ import annotations

import json
import re
import tomllib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tegu.errors import UnsupportedError, UsageError
from tegu.qos.kubernetes.cluster import GROUP, PLURAL, VERSION
from tegu.qos.kubernetes.schema import policy_schema
from tegu.qos.policy import load_policy

__all__ = ["custom_resource", "make", "to_json", "to_yaml"]

_NAME = "tegu-qos"
_POLICY = "default"
"""The QosPolicy that the plugin follows."""
# What the plugin needs of the node: the groups, the runtime's socket, its notes, systemd.
_MOUNTS = {
    "cgroup": "/sys/fs/cgroup",
    "nri": "/var/run/nri",
    "notes": "/run/tegu",
    "systemd": "/run/systemd",
}

Manifest = dict[str, Any]


def make(image: str, namespace: str, policy: Path | None) -> list[Manifest]:
    """Return the objects in the order in which they can be created.

    `policy` is a TOML file whose content becomes the QosPolicy that the plugin follows; without
    one the plugin has its own defaults. Raises UsageError, and DefinitionError for the file.
    """
    if not re.fullmatch(r"[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?", namespace):
        raise UsageError(f"{namespace!r} is no name of a namespace")
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._/:@-]*", image):
        raise UsageError(f"{image!r} is no name of an image")
    found = [
        _object("v1", "Namespace", namespace),
        custom_resource(),
        _object("v1", "ServiceAccount", _NAME, namespace),
        {
            **_object("rbac.authorization.k8s.io/v1", "ClusterRole", _NAME),
            "rules": [{"apiGroups": [GROUP], "resources": [PLURAL], "verbs": ["get"]}],
        },
        {
            **_object("rbac.authorization.k8s.io/v1", "ClusterRoleBinding", _NAME),
            "roleRef": {
                "apiGroup": "rbac.authorization.k8s.io",
                "kind": "ClusterRole",
                "name": _NAME,
            },
            "subjects": [{"kind": "ServiceAccount", "name": _NAME, "namespace": namespace}],
        },
    ]
    if policy is not None:
        load_policy(policy, match=False)  # refuse here what the plugin would refuse
        spec = tomllib.loads(policy.read_text())
        found.append({**_object(f"{GROUP}/{VERSION}", "QosPolicy", _POLICY), "spec": spec})
    found.append(_daemon_set(image, namespace, resource=policy is not None))
    return found


def custom_resource() -> Manifest:
    """Return the definition of QosPolicy; its `spec` has the keys of a policy's file."""
    return {
        **_object("apiextensions.k8s.io/v1", "CustomResourceDefinition", f"{PLURAL}.{GROUP}"),
        "spec": {
            "group": GROUP,
            "scope": "Cluster",
            "names": {
                "kind": "QosPolicy",
                "listKind": "QosPolicyList",
                "plural": PLURAL,
                "singular": "qospolicy",
            },
            "versions": [
                {
                    "name": VERSION,
                    "served": True,
                    "storage": True,
                    "schema": {
                        "openAPIV3Schema": {
                            "type": "object",
                            "required": ["spec"],
                            "properties": {"spec": policy_schema()},
                        }
                    },
                }
            ],
        },
    }


def _daemon_set(image: str, namespace: str, *, resource: bool) -> Manifest:
    labels = {"app.kubernetes.io/name": _NAME}
    command = ["tegu", "qos", "nri", *(["--resource", _POLICY] if resource else [])]
    container = {
        "name": "nri",
        "image": image,
        "command": command,
        # Writing to the groups of others takes that.
        "securityContext": {"privileged": True},
        "resources": {
            "requests": {"cpu": "10m", "memory": "48Mi"},
            "limits": {"memory": "128Mi"},
        },
        "volumeMounts": [{"name": n, "mountPath": p} for n, p in _MOUNTS.items()],
    }
    return {
        **_object("apps/v1", "DaemonSet", _NAME, namespace, labels),
        "spec": {
            "selector": {"matchLabels": labels},
            "template": {
                "metadata": {"labels": labels},
                "spec": {
                    "serviceAccountName": _NAME,
                    "priorityClassName": "system-node-critical",
                    "tolerations": [{"operator": "Exists"}],
                    "nodeSelector": {"kubernetes.io/os": "linux"},
                    "containers": [container],
                    "volumes": [
                        {"name": n, "hostPath": {"path": p, "type": _type(n)}}
                        for n, p in _MOUNTS.items()
                    ],
                },
            },
        },
    }


def _type(volume: str) -> str:
    # Without NRI, or without systemd, the directory is made, and the plugin waits or does without.
    return "Directory" if volume == "cgroup" else "DirectoryOrCreate"


def _object(
    version: str, kind: str, name: str, namespace: str = "", labels: dict[str, str] | None = None
) -> Manifest:
    metadata: Manifest = {"name": name}
    if namespace:
        metadata["namespace"] = namespace
    if labels:
        metadata["labels"] = labels
    return {"apiVersion": version, "kind": kind, "metadata": metadata}


def to_json(objects: Sequence[Manifest]) -> str:
    """Return the objects as one List."""
    return json.dumps({"apiVersion": "v1", "kind": "List", "items": list(objects)}, indent=2) + "\n"


def to_yaml(objects: Sequence[Manifest]) -> str:
    """Return the objects as YAML documents; raises UnsupportedError without PyYAML."""
    try:
        import yaml
    except ImportError:
        raise UnsupportedError(
            "there is no YAML library here", hint="--json prints what kubectl reads as well"
        ) from None
    return str(yaml.safe_dump_all(objects, sort_keys=False, explicit_start=True))
