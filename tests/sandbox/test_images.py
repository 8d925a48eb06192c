"""Templates made of images: from layouts, archives, a registry and another builder, to boxes."""

from __future__ import annotations

import gzip
import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.sandbox.conftest import until
from tests.sandbox.image_kit import Made, entry, link, make_layout, registry, sha256, tar

from tegu.errors import (
    FetchError,
    SandboxError,
    TeguError,
    UnsupportedError,
    UsageError,
    VerifyError,
)
from tegu.sandbox import Sandbox, run
from tegu.sandbox.client import box_spec
from tegu.sandbox.images import add_image, find_image, image_names, list_images, remove_image
from tegu.sandbox.images.catalog import catalog
from tegu.sandbox.images.catalog import sweep as catalog_sweep
from tegu.sandbox.images.source import parse_source

BUSYBOX = Path("/bin/busybox")
APPLETS = ("sh", "id", "cat", "ls", "env", "pwd", "sleep", "echo")
PASSWD = b"root:x:0:0::/root:/bin/sh\napp:x:1000:1000::/home/app:/bin/sh\n"
GROUP = b"root:x:0:\napp:x:1000:\nextra:x:44:app\n"
CONFIG = {
    "Env": ["GREETING=hello there", "PATH=/bin"],
    "WorkingDir": "/srv/work",
    "User": "app",
    "Entrypoint": ["/bin/sh", "-c"],
    "Cmd": ["echo $GREETING; id; pwd"],
    "Labels": {"of": "no consequence"},
}

skopeo = pytest.mark.skipif(shutil.which("skopeo") is None, reason="skopeo is not installed")


def layers() -> list[bytes]:
    if not BUSYBOX.is_file():
        pytest.skip("there is no /bin/busybox to make an image of (package busybox-static)")
    first = tar(
        entry("bin/busybox", BUSYBOX.read_bytes(), mode=0o755),
        *(link(f"bin/{name}", "busybox") for name in APPLETS),
        entry("etc/passwd", PASSWD),
        entry("etc/group", GROUP),
        entry("data/gone", b"1"),
    )
    second = tar(
        entry("home/app", uid=1000, gid=1000),
        entry("data/mine", b"mine", uid=1000, gid=1000, mode=0o600),
        entry("data/.wh.gone", b""),
    )
    return [first, second]


@pytest.fixture
def state(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """State of a test's own, without a supervisor."""
    monkeypatch.setenv("TEGU_SANDBOX_STATE", str(tmp_path / "state"))
    yield tmp_path / "state"
    for name in image_names():
        remove_image(name)


@pytest.fixture
def app(tmp_path: Path) -> Made:
    return make_layout(tmp_path / "layout", layers(), config=CONFIG)


def tegu(*words: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "tegu", *words], capture_output=True, text=True, timeout=300
    )


def left(state: Path) -> list[str]:
    """What is there besides whole trees, names, and blobs that a name needs."""
    images = state / "images"
    found = [p.name for p in images.iterdir() if p.name.startswith(".layout")]
    found += [p.name for p in (images / "trees").iterdir()]
    found += [p.name for p in (images / "names").iterdir()]
    blobs = images / "blobs/sha256"
    return found + [p.name for p in (blobs.iterdir() if blobs.is_dir() else ())]


@skopeo
def test_an_image_runs_as_it_says(app: Made, path: Path) -> None:
    add_image("app", f"oci:{app.path}:v1")
    try:
        done = tegu("run", "-t", "app")
        assert done.stdout.splitlines() == [
            "hello there",
            "uid=1000(app) gid=1000(app) groups=44(extra)",
            "/srv/work",
        ], done.stderr
        assert tegu("run", "-t", "app", "--", "cat /data/mine; ls /data").stdout == "minemine\n"
        assert "Permission denied" in tegu("run", "-t", "app", "--", "echo x > /etc/x").stderr
        words = ("-t", "app", "-u", "0", "-w", "/data", "-e", "GREETING=new")
        done = tegu("run", *words, "--", "id -u; pwd; echo $GREETING > f; cat f")
        assert done.stdout == "0\n/data\nnew\n"
        done = tegu("run", "-t", "app", "--entrypoint", "", "id", "-G")
        assert done.stdout == "1000 44\n"
        assert run(["pwd"], box=box_spec("app")).text == "/srv/work\n"
        with Sandbox.create("app", timeout=120) as box:
            assert box.run("echo $HOME; id -u").text == "/home/app\n1000\n"
            assert box.run("id -G", user="7:8,9").text == "8 9\n"
            assert box.run(["pwd"], cwd="/").text == "/\n"
            found = Sandbox.attach(box.name)
            assert found.run("echo $GREETING").text == "hello there\n"
            found.close()
        done = tegu("run", "-t", "app", "--no-init", "--", "id -u")
        assert done.stdout == "1000\n"
        done = tegu("run", "-t", "app", "--read-only", "--", "echo x > /tmp/f; cat /tmp/f")
        assert done.stdout == "x\n"
    finally:
        remove_image("app")


@skopeo
def test_run_by_reference(app: Made, path: Path) -> None:
    source = f"oci:{app.path}:v1"
    for _ in range(2):
        done = tegu("run", "--image", source, "--", "pwd")
        assert done.stdout == "/srv/work\n", done.stderr
        names = [i.name for i in list_images() if i.source == source]
        assert len(names) == 1
    assert names[0].startswith("image-")
    remove_image(names[0])


@skopeo
def test_content_is_kept_once(app: Made, state: Path, tmp_path: Path) -> None:
    one = add_image("one", f"oci:{app.path}:v1")
    made = one.root.stat().st_ino
    two = add_image("two", f"oci:{app.path}")
    assert (two.root, two.root.stat().st_ino) == (one.root, made)
    # The same layers with another configuration: another image, the same tree.
    again = make_layout(tmp_path / "again", layers(), config={"Cmd": ["/bin/id"]})
    three = add_image("three", f"oci:{again.path}")
    assert (three.root, three.user, three.cwd) == (one.root, "0:0", "/")
    assert three.digest != one.digest
    assert three.command([]) == ["/bin/id"]
    assert sorted(image_names()) == ["one", "three", "two"]
    remove_image("one")
    remove_image("three")
    assert two.root.is_dir()
    remove_image("two")
    assert left(state) == []
    with pytest.raises(UsageError, match="there is no template two"):
        remove_image("two")


@skopeo
def test_a_name_is_renewed(app: Made, state: Path, tmp_path: Path) -> None:
    first = add_image("app", f"oci:{app.path}:v1")
    other = make_layout(tmp_path / "other", [tar(entry("bin/only", b""))])
    second = add_image("app", f"oci:{other.path}:v1")
    assert second.chain != first.chain
    assert not first.root.exists()
    assert find_image("app") == second
    assert second.left_out == {}
    with pytest.raises(UsageError, match="names no program"):
        second.command([])


@skopeo
def test_a_box_keeps_its_tree(app: Made, path: Path, tmp_path: Path) -> None:
    image = add_image("short", f"oci:{app.path}:v1")
    with Sandbox.create("short", timeout=300) as box:
        remove_image("short")
        assert image_names() == []
        assert box.run("cat /data/mine; ls -d /bin/cat").text == "mine/bin/cat\n"
        # Somebody's adding and removing of others does not take it either.
        other = make_layout(tmp_path / "other", [tar(entry("bin/only", b""))])
        add_image("other", f"oci:{other.path}")
        assert box.run(["ls", "/bin/cat"]).text == "/bin/cat\n"
    remove_image("other")
    assert until(lambda: _gone(image.root))


def _gone(root: Path) -> bool:
    catalog_sweep()
    return not root.exists()


@skopeo
def test_archives(app: Made, state: Path, tmp_path: Path) -> None:
    layout = f"oci:{app.path}:v1"
    chain = add_image("layout", layout).chain
    for kind, name in (("oci-archive", "a.tar:v1"), ("docker-archive", "d.tar:app:v1")):
        subprocess.run(["skopeo", "copy", "-q", layout, f"{kind}:{tmp_path}/{name}"], check=True)
        archive = tmp_path / name.partition(":")[0]
        image = add_image(kind, f"{kind}:{archive}")
        assert (image.chain, image.user) == (chain, "1000:1000,44")
        archive.write_bytes(archive.read_bytes()[: archive.stat().st_size // 2])
        with pytest.raises(SandboxError) as e:
            add_image("half", f"{kind}:{archive}")
        assert "\n" not in e.value.message


@skopeo
def test_a_registry(app: Made, state: Path) -> None:
    with registry(app) as (reference, asked):
        source = f"docker://{reference}"
        with pytest.raises(FetchError, match=r"HTTPS client|TLS handshake") as e:
            add_image("app", source)
        assert e.value.hint
        assert "--no-tls-verify" in e.value.hint
        first = add_image("app", source, tls_verify=False)
        blobs = [p for p in asked if p.rpartition("/")[2] in app.layers]
        assert len(blobs) == 2
        again = add_image("again", source, tls_verify=False)
        assert again.root == first.root
        assert len([p for p in asked if p.rpartition("/")[2] in app.layers]) == 2
        with pytest.raises(FetchError, match=r"no such thing|manifest unknown"):
            add_image("none", source.replace("v1", "v2"), tls_verify=False)
    remove_image("app")
    remove_image("again")
    with registry(app) as (reference, _):
        blob = app.blob(app.layers[0])
        data = bytearray(blob.read_bytes())
        data[len(data) // 2] ^= 1
        blob.write_bytes(data)
        with pytest.raises(TeguError) as e:
            add_image("bad", f"docker://{reference}", tls_verify=False)
        assert "\n" not in e.value.message
    assert left(state) == []


@skopeo
def test_a_registry_that_is_not_there(state: Path) -> None:
    with pytest.raises(FetchError, match=r"image docker://127.0.0.1:1/app: .*refused"):
        add_image("app", "docker://127.0.0.1:1/app")


@pytest.mark.skipif(
    not shutil.which("docker-registry") or not shutil.which("skopeo"),
    reason="docker-registry or skopeo is not installed",
)
def test_the_distributions_registry(app: Made, state: Path, tmp_path: Path) -> None:
    settings = tmp_path / "registry.yml"
    settings.write_text(
        "version: 0.1\nlog: {level: info}\n"
        f"storage: {{filesystem: {{rootdirectory: {tmp_path}/registry}}}}\n"
        "http: {addr: '127.0.0.1:0'}\n"
    )
    with subprocess.Popen(
        ["docker-registry", "serve", str(settings)], stderr=subprocess.PIPE, text=True
    ) as server:
        try:
            assert server.stderr is not None
            line = next(line for line in server.stderr if "listening on" in line)
            address = line.split("listening on ")[1].split('"')[0].split(" ")[0]
            words = ["skopeo", "copy", "-q", "--dest-tls-verify=false", f"oci:{app.path}:v1"]
            subprocess.run([*words, f"docker://{address}/team/app:v1"], check=True)
            image = add_image("app", f"docker://{address}/team/app:v1", tls_verify=False)
            assert image.user == "1000:1000,44"
        finally:
            server.terminate()


@skopeo
def test_damage(state: Path, tmp_path: Path) -> None:
    good = tar(entry("f", os.urandom(100_000)))

    def refused(kind: type[TeguError], match: str, **about: object) -> None:
        where = tmp_path / str(len(list(tmp_path.iterdir())))
        made = make_layout(where, [good], **about)  # type: ignore[arg-type]
        with pytest.raises(kind, match=match) as e:
            add_image("bad", f"oci:{made.path}:v1")
        assert "\n" not in e.value.message
        assert left(state) == []

    refused(VerifyError, "layer 1 of 1 .*damaged: its content", diff_ids=[sha256(b"")])
    refused(VerifyError, "damaged: it ends too early", packed=[gzip.compress(good)[:-4]])
    refused(VerifyError, "damaged", packed=[b"nonsense" * 100])
    refused(SandboxError, "1 layers, and 2 digests", diff_ids=[sha256(good)] * 2)
    refused(SandboxError, "is no SHA-256", diff_ids=["md5:0"])
    refused(SandboxError, "Env: 'word' is not NAME=VALUE", config={"Env": ["word"]})
    refused(SandboxError, "'a-b' is not the name", config={"Env": ["a-b=1"]})
    refused(SandboxError, "'work' is not an absolute path", config={"WorkingDir": "work"})
    refused(SandboxError, "WorkingDir /f/x: Not a directory", config={"WorkingDir": "/f/x"})
    refused(SandboxError, "'who' is not in the image's /etc/passwd", config={"User": "who"})
    refused(SandboxError, "Cmd is no list", config={"Cmd": "sh"})
    there = "arm64" if os.uname().machine != "aarch64" else "amd64"
    refused(UnsupportedError, f"is for '{there}', and this machine", architecture=there)


@skopeo
def test_escapes_are_refused(state: Path, tmp_path: Path) -> None:
    for n, bad in enumerate(
        (entry("../f", b"x"), link("f", "../../etc/passwd", hard=True), entry("a/../../b", b"x"))
    ):
        made = make_layout(tmp_path / str(n), [tar(bad)])
        with pytest.raises(SandboxError, match="leads out of the image"):
            add_image("bad", f"oci:{made.path}:v1")
    assert left(state) == []


@skopeo
def test_too_big(state: Path, tmp_path: Path) -> None:
    bomb = make_layout(tmp_path / "bomb", [tar(entry("f", bytes(30_000_000)))])
    with pytest.raises(SandboxError, match="too big: more than 8 MiB unpacked") as e:
        add_image("bomb", f"oci:{bomb.path}:v1", max_size="8M")
    assert e.value.hint == "--max-size allows more"
    packed = make_layout(tmp_path / "packed", [tar(entry("f", os.urandom(3_000_000)))])
    with pytest.raises(SandboxError, match="too big"):
        add_image("packed", f"oci:{packed.path}:v1", max_size="1M")
    assert left(state) == []


def test_a_damaged_blob_here_is_fetched_anew(app: Made, state: Path, tmp_path: Path) -> None:
    if shutil.which("skopeo") is None:
        pytest.skip("skopeo is not installed")
    add_image("keeps-the-blobs", f"oci:{app.path}:v1")
    more = make_layout(tmp_path / "more", [*layers(), tar(entry("new", b"1"))])
    blob = catalog() / "blobs/sha256" / app.layers[0].removeprefix("sha256:")
    blob.write_bytes(blob.read_bytes()[:-1])
    with pytest.raises(VerifyError, match=r"layer 1 of 3 .*damaged"):
        add_image("more", f"oci:{more.path}:v1")
    assert add_image("more", f"oci:{more.path}:v1").name == "more"


def test_without_skopeo(app: Made, state: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "/nowhere")
    with pytest.raises(UnsupportedError, match="unsupported: the program skopeo") as e:
        add_image("app", f"oci:{app.path}:v1")
    assert e.value.hint == "install the package skopeo"
    monkeypatch.undo()


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("template", "add", "Big", "oci:/x"), "'Big' is no name"),
        (("template", "add", "host", "oci:/x"), "'host' is no name"),
        (("template", "add", "a", "debian"), "'debian' is no image"),
        (("template", "add", "a", "dir:/x"), "'dir:/x' is no image"),
        (("template", "add", "a", "oci:/no/such"), "/no/such is not a directory"),
        (("template", "add", "a", "oci:/etc"), "it has no index.json"),
        (("template", "add", "a", "oci-archive:/etc"), "/etc is not a file"),
        (("template", "add", "a", "docker://"), "write docker://NAME"),
        (("template", "add", "a", "docker:x"), "write docker://NAME"),
        (("template", "add", "a", "oci:/etc", "--max-size", "x"), "it has no index.json"),
        (("template", "show", "nothing"), "there is no template nothing"),
        (("template", "remove", "nothing"), "there is no template nothing"),
    ],
)
def test_bad_words(state: Path, words: tuple[str, ...], said: str) -> None:
    done = tegu("sandbox", *words)
    assert done.returncode == 2
    assert said in done.stderr.splitlines()[0]
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("--image", "oci:/x", "-t", "app", "id"), "two names of one thing"),
        (("--entrypoint", "x", "id"), "--entrypoint is for images"),
        (("--image", "nonsense"), "'nonsense' is no image"),
        (("-u", "root", "id"), "user: 'root' is no user of a box"),
        (("-u", "0:70000", "id"), "user: '0:70000' is no user of a box"),
    ],
)
def test_bad_words_of_run(path: Path, words: tuple[str, ...], said: str) -> None:
    done = tegu("run", *words)
    assert done.returncode == 2, done.stderr
    assert said in done.stderr
    assert "Traceback" not in done.stderr


def test_a_class_that_cannot_change_its_user(path: Path) -> None:
    if os.geteuid() != 0:
        pytest.skip("the class process is for root's supervisor")
    done = tegu("run", "--class", "process", "-u", "5", "id")
    assert done.returncode == 2
    assert "runs as its box's own user id" in done.stderr


def test_a_damaged_record(app: Made, state: Path) -> None:
    catalog(make=True)
    (state / "images/names/odd.json").write_text("{")
    with pytest.raises(SandboxError, match=r"template odd: .*odd.json"):
        find_image("odd")
    done = tegu("sandbox", "template", "list")
    assert done.returncode == 20
    assert "remove odd" in done.stderr
    assert tegu("sandbox", "template", "remove", "odd").returncode == 0
    assert json.loads(tegu("sandbox", "template", "list", "--json").stdout) == []


@given(st.text(max_size=60) | st.from_regex(r"(oci|docker|oci-archive|docker-archive):[^\n]{0,40}"))
def test_sources_are_read_or_refused(text: str) -> None:
    try:
        source = parse_source(text)
    except UsageError as e:
        assert e.message
    else:
        assert not source.path.startswith("-")


@pytest.mark.slow
@skopeo
def test_an_image_of_another_builder(path: Path, tmp_path: Path) -> None:
    """Built by podman, copied by skopeo, run here."""
    if shutil.which("podman") is None or os.geteuid() != 0:
        pytest.skip("podman is not installed, or this is not root")
    layers()
    shutil.copy(BUSYBOX, tmp_path / "busybox")
    (tmp_path / "Containerfile").write_text(
        'FROM scratch\nCOPY busybox /bin/busybox\nRUN ["/bin/busybox", "--install", "-s", "/bin"]\n'
        "RUN mkdir /etc /data; echo app:x:1000:1000::/home/app:/bin/sh > /etc/passwd; "
        "echo 1 > /data/gone; echo 2 > /data/kept; adduser -D -H x 2>/dev/null; true\n"
        "RUN rm /data/gone; chown 1000:1000 /data\n"
        'ENV WORD="of the image"\nWORKDIR /data\nUSER app\n'
        'CMD ["/bin/sh", "-c", "ls; id -u; echo $WORD; echo 3 > new; cat new"]\n'
    )
    # Its run root must have a short path.
    short = Path(tempfile.mkdtemp(prefix="tegu-p", dir="/tmp"))
    storage = [
        *("--storage-driver", "vfs", "--root", str(short / "root")),
        *("--runroot", str(short / "run")),
    ]
    built = subprocess.run(
        ["podman", *storage, "build", "--isolation", "chroot", "-q", "-t", "app", str(tmp_path)],
        capture_output=True,
        text=True,
    )
    if built.returncode:
        shutil.rmtree(short, ignore_errors=True)
        pytest.skip(f"podman cannot build here: {built.stderr.strip()}")
    archive = f"oci-archive:{tmp_path}/app.tar"
    subprocess.run(["podman", *storage, "push", "-q", "app", archive], check=True)
    try:
        add_image("built", archive)
        done = tegu("run", "-t", "built")
        assert done.stdout == "kept\n1000\nof the image\n3\n", done.stderr
    finally:
        if find_image("built"):
            remove_image("built")
        subprocess.run(["podman", *storage, "rmi", "-af"], capture_output=True)
        shutil.rmtree(short, ignore_errors=True)
