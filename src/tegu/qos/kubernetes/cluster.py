"""The cluster's API server, asked for a policy by a pod of its own account.

kubernetes.io/docs/tasks/run-application/access-api-from-pod: address in the environment, token and
certificate authority in a directory that is mounted into each pod.
"""

from __future__ import annotations

import json
import os
import re
import ssl
import urllib.error
import urllib.request
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tegu.errors import QosError, UnsupportedError, UsageError

__all__ = ["GROUP", "PLURAL", "VERSION", "Cluster", "in_cluster"]

GROUP, VERSION, PLURAL = "qos.tegu.io", "v1alpha1", "qospolicies"
_ACCOUNT = Path("/var/run/secrets/kubernetes.io/serviceaccount")
_TIMEOUT = 10.0
_MOST = 1 << 20


@dataclass(frozen=True)
class Cluster:
    """An API server's address, and where the account's token and the CA's certificate are."""

    address: str
    account: Path

    def policy(self, name: str) -> dict[str, Any]:
        """Return the `spec` of the QosPolicy `name`; raises QosError with the server's reason."""
        if not re.fullmatch(r"[a-z0-9]([a-z0-9.-]{0,251}[a-z0-9])?", name):
            raise UsageError(f"{name!r} is no name of a Kubernetes object")
        what = f"QosPolicy {name}"
        try:
            # Renewed while we run: read each time.
            token = (self.account / "token").read_text().strip()
            context = (
                ssl.create_default_context(cafile=str(self.account / "ca.crt"))
                if self.address.startswith("https:")
                else None
            )
            request = urllib.request.Request(
                f"{self.address}/apis/{GROUP}/{VERSION}/{PLURAL}/{name}",
                headers={"Authorization": f"Bearer {token}", "Accept": "application/json"},
            )
            with urllib.request.urlopen(request, timeout=_TIMEOUT, context=context) as answer:
                found = json.loads(answer.read(_MOST))
        except urllib.error.HTTPError as e:
            reasons = {403: "this account may not read it", 404: "there is none"}
            raise QosError(f"{what}: {reasons.get(e.code, e.reason)}") from e
        except urllib.error.URLError as e:
            raise QosError(f"{what}: {e.reason}") from e
        except OSError as e:
            raise QosError(f"{what}: {e.strerror or e}") from e
        except (ValueError, RecursionError) as e:
            raise QosError(f"{what}: the API server's answer is not JSON") from e
        spec = found.get("spec") if isinstance(found, dict) else None
        if not isinstance(spec, dict):
            raise QosError(f"{what} has no spec")
        return spec


def in_cluster(environment: Mapping[str, str] = os.environ, account: Path = _ACCOUNT) -> Cluster:
    """Return the cluster whose pod we are; raises UnsupportedError outside of one."""
    host = environment.get("KUBERNETES_SERVICE_HOST", "")
    port = environment.get("KUBERNETES_SERVICE_PORT", "443")
    if not host or not (account / "token").exists():
        raise UnsupportedError(
            "this is no pod of a cluster, or it has no service account",
            hint="give a policy file instead",
        )
    return Cluster(f"https://{f'[{host}]' if ':' in host else host}:{port}", account)
