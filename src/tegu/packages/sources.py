"""Which mirror to use when the definition names none: the build machine's own.

A lock made from such a mirror does not name it: it says `machine:mirror` or `machine:security`, so
that another machine fetches the same packages from the mirror near it.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING
from urllib.parse import quote, urlsplit, urlunsplit

from tegu.errors import FetchError
from tegu.packages.aptconfig import AptSource, read_settings, read_sources

if TYPE_CHECKING:
    from tegu.definition.models import Definition

__all__ = [
    "MACHINE_MIRROR",
    "MACHINE_SECURITY",
    "Mirror",
    "Source",
    "resolve",
    "sources_of",
    "without_credentials",
]

MACHINE_MIRROR = "machine:mirror"
MACHINE_SECURITY = "machine:security"
BASE_PRIORITY = 500

_CODENAMES = frozenset({"buster", "bullseye", "bookworm", "trixie", "forky", "duke", "sid"})
_ALIASES = frozenset({"oldoldstable", "oldstable", "stable", "testing", "unstable"})
_POCKETS = frozenset({"", "updates", "backports", "proposed-updates"})


@dataclass(frozen=True, slots=True)
class Mirror:
    """A mirror: its base `url`, and whether the age of its indexes is to be judged.

    `lenient` says that the machine's apt itself was told not to judge Valid-Until and Date.
    """

    url: str
    lenient: bool = False


@dataclass(frozen=True, slots=True)
class Source:
    """One suite to read. `uri` is what the lock will say, `mirror` where it really is.

    `base` says that it is a suite of the distribution underneath.
    `snapshot` (seconds since the epoch) is the moment at which validity is judged, None for now.
    """

    id: str
    uri: str
    mirror: Mirror
    suite: str
    components: tuple[str, ...]
    keyrings: tuple[str, ...]
    priority: int = BASE_PRIORITY
    base: bool = False
    snapshot: int | None = None

    @property
    def base_url(self) -> str:
        """Where the suite's InRelease is; a suite that ends in `/` is a flat repository."""
        root = self.mirror.url.rstrip("/")
        if self.suite.endswith("/"):
            return f"{root}/{self.suite}".rstrip("/")
        return f"{root}/dists/{self.suite}"


def resolve(uri: str) -> Mirror:
    """Return the mirror behind the `uri` of a locked repository.

    Raises FetchError when it is the machine's own and the machine has none.
    """
    if uri == MACHINE_MIRROR:
        return _machine("TEGU_MIRROR", "base.mirror", security=False)
    if uri == MACHINE_SECURITY:
        return _machine("TEGU_SECURITY_MIRROR", "base.security_mirror", security=True)
    return Mirror(uri)


def sources_of(definition: Definition) -> list[Source]:
    """Return what a definition reads: its base suites, then its further repositories."""
    base = definition.base
    moment = _moment(base.snapshot) if base.snapshot else None
    found = []
    for suite in base.suites:
        security = suite.endswith("-security")
        named = base.security_mirror if security else base.mirror
        uri = named or (MACHINE_SECURITY if security else MACHINE_MIRROR)
        found.append(
            Source(
                id=suite.strip("/").replace("/", "-"),
                uri=without_credentials(uri),
                mirror=resolve(uri),
                suite=suite,
                components=tuple(base.components),
                keyrings=(str(base.keyring),),
                base=True,
                snapshot=moment if named is not None else None,
            )
        )
    for number, repository in enumerate(definition.repository, 1):
        found.append(
            Source(
                id=f"repository-{number}-{repository.suite.strip('/').replace('/', '-')}",
                uri=without_credentials(repository.uri),
                mirror=Mirror(repository.uri),
                suite=repository.suite,
                components=tuple(repository.components),
                keyrings=(str(repository.keyring),),
                priority=repository.priority,
            )
        )
    return found


def without_credentials(uri: str) -> str:
    """Return `uri` without user and password, as it may be written and shown."""
    parts = urlsplit(uri)
    if "@" not in parts.netloc:
        return uri
    return urlunsplit(parts._replace(netloc=parts.netloc.rpartition("@")[2]))


def join(url: str, path: str) -> str:
    """Return the URL of `path` below `url`; characters such as `~` and `+` are kept."""
    return f"{url.rstrip('/')}/{quote(path, safe='/~+:=@,%-._')}"


def _machine(variable: str, key: str, *, security: bool) -> Mirror:
    if named := os.environ.get(variable):
        return Mirror(named if ":/" in named else f"file://{os.path.abspath(named)}")  # noqa: PTH100
    source = _pick(read_sources(), security=security)
    if source is None:
        what = "Debian security mirror" if security else "Debian mirror"
        raise FetchError(
            f"this machine's apt sources name no {what}",
            hint=f"set {key} in the definition, or {variable} in the environment",
        )
    settings = read_settings()
    lenient = not (
        settings.check_valid_until
        and settings.check_date
        and source.allows("check-valid-until")
        and source.allows("check-date")
    )
    return Mirror(source.uri.rstrip("/"), lenient=lenient)


def _pick(sources: Sequence[AptSource], *, security: bool) -> AptSource | None:
    """Return the source that most looks like a Debian mirror (or its security updates)."""
    scored = [(score, s) for s in sources if (score := _score(s, security=security))]
    # The first of the best, in the order in which apt reads them.
    return max(scored, key=lambda pair: pair[0])[1] if scored else None


def _score(source: AptSource, *, security: bool) -> int:
    """Return how sure it is that a source is Debian's own; 0 when it is not, or not for us.

    Others use Debian's suite names too ("stable" above all), so that alone is not enough.
    """
    if "main" not in source.components or not source.uri.startswith(_SCHEMES):
        return 0  # cdrom:, mirror+file: and the like
    suite = source.suite.strip("/")
    name, _, pocket = suite.replace("/", "-", 1).partition("-")
    if name not in _CODENAMES | _ALIASES:
        return 0
    if security != (suite.endswith(("-security", "/updates"))):
        return 0
    if not security and pocket not in _POCKETS:
        return 0
    path = urlsplit(source.uri).path.rstrip("/").rpartition("/")[2]
    return (
        4 * (path == ("debian-security" if security else "debian"))
        + 2 * ("debian-archive" in source.options.get("signed-by", ""))
        + (name in _CODENAMES)
    )


_SCHEMES = ("http://", "https://", "file:/")


def _moment(snapshot: str) -> int:
    from datetime import UTC, datetime

    return int(datetime.strptime(snapshot, "%Y%m%dT%H%M%SZ").replace(tzinfo=UTC).timestamp())
