"""The published E2B client for JavaScript, unchanged, against the service."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import pytest
from tests.sandbox.web.conftest import Service

import tegu.process

pytestmark = pytest.mark.slow


def test_javascript_client(e2b_settings: Service) -> None:
    where = os.environ.get("TEGU_E2B_JS")
    if where is None:
        pytest.skip("TEGU_E2B_JS names no directory in which `npm install e2b` was run")
    if shutil.which("node") is None:
        pytest.skip("there is no node here")
    script = Path(__file__).with_name("e2b_client.cjs")
    done = tegu.process.run(["node", str(script)], timeout=300)
    assert done.stdout.strip() == "all is well"
