"""Two releases of a small real system, prepared one after the other: the delta between them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tegu.host.delta import Description, TreeDigest
from tegu.host.upgrade.delta import apply
from tegu.image import find_image
from tegu.linux import run_isolated
from tegu.release import Number
from tegu.release.client import Client
from tegu.release.delta.trees import mounted
from tegu.release.prepare import Ingredients, prepare
from tegu.release.signing import publish, sign
from tegu.release.workshop import Workshop
from tegu.store import Store

pytest.importorskip("bsdiff4", reason="bsdiff4 is not installed: pip install 'tegu[release]'")

DEFINITION = """\
[system]
name = "tegu-test-delta"
version = "{number}"
[packages]
install = ["base-files", "dash"]
tegu = false
[kernel]
package = "none"
[image]
formats = ["tar"]
[[file]]
path = "/usr/share/tegu-test"
content = "of {number}"
"""


@pytest.mark.slow
def test_the_second_release_has_the_delta_from_the_first(
    tmp_path: Path, shop: Workshop, shared_store: Store
) -> None:
    definition = tmp_path / "tegu.toml"
    manifests = []
    for text in ("26.10", "26.11"):
        number = Number.parse(text)
        definition.write_text(DEFINITION.format(number=text))
        with shared_store.shared():
            made = prepare(shop, number, Ingredients(definition), shared_store)
        sign(shop, made)
        publish(shop, made)
        manifests.append(made)
    first, second = manifests
    assert not [f for f in first.files if f.kind.startswith("delta")]
    kinds = {f.kind: f for f in second.files}
    image = kinds["image"]
    assert second.figures["delta bytes default"] == kinds["delta"].size < image.size / 500

    client = Client(
        shop.public.as_uri(),
        tmp_path / "state",
        (shop.public / "metadata/1.root.json").read_bytes(),
    )
    got = client.fetch(f"26.11/{kinds['delta'].path}", tmp_path / "delta")
    listed = client.fetch(f"26.11/{kinds['delta-description'].path}", tmp_path / "delta.json")
    told = Description.read(listed.read_text())
    (name,) = (Path(f.path).name for f in first.files if f.kind == "image")

    def on_the_machine(_: Callable[[Any], None]) -> tuple[TreeDigest, str]:
        with mounted(find_image(shared_store, name), shared_store, tmp_path) as old:
            made = apply(old, got, tmp_path / "new")
        return made, (tmp_path / "new/usr/share/tegu-test").read_text()

    digest, text = run_isolated(on_the_machine)
    assert digest.sha256 == told.new
    assert text == "of 26.11"
