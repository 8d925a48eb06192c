"""The letter that asks the stable maintainers for a backport: written, never sent.

What it says follows Documentation/process/stable-kernel-rules.rst, option 2: the subject of the
patch, the commit id, why it should be applied, and which kernels it is for. Format: RFC 5322.
"""

from __future__ import annotations

import hashlib
import re
from datetime import UTC, datetime
from email.headerregistry import Address
from email.message import EmailMessage
from email.policy import SMTP
from email.utils import format_datetime, parseaddr
from pathlib import Path

from tegu.errors import UsageError
from tegu.kernel.gitrepo import RawCommit, Repo
from tegu.kernel.messages import first_line
from tegu.kernel.picking import refuse_strangers
from tegu.process import CommandError, run

__all__ = ["backport_request"]

_STABLE = "stable@vger.kernel.org"
_SERIES = re.compile(r"\d+\.\d+")
_PEOPLE = re.compile(
    r"^(?:Signed-off-by|Reviewed-by|Acked-by|Reported-by|Cc):\s*(.+)$", re.IGNORECASE | re.MULTILINE
)


def backport_request(
    repo: Repo,
    commit: str,
    *,
    series: list[str],
    why: str,
    sender: str,
    source: Path | None = None,
    mainline: str | None = None,
    moment: datetime | None = None,
) -> bytes:
    """Return the message that asks for `commit` in the stable `series` ("6.12").

    `sender` is "Name <address>". With `mainline` (a branch, a tag or an id), the commit must be in
    it: stable trees take nothing else. With `source`, a kernel tree, its get_maintainer.pl says who
    is to hear of it; else the people whom the commit names. Raises UsageError for what is
    malformed.
    """
    for name in series:
        if not _SERIES.fullmatch(name):
            raise UsageError(f"{name!r} is no series of kernels", hint="write it as 6.12")
    if not series:
        raise UsageError("a request needs the series of kernels it is for")
    if not why.strip():
        raise UsageError("a request needs the reason", hint="what goes wrong without the commit?")
    if not _speaks(why) or not _speaks(sender):
        raise UsageError("the letter's words are not valid UTF-8")
    full = repo.commit(commit)
    if mainline is not None:
        refuse_strangers(repo, [full], mainline)
    (raw,) = repo.read([full])
    subject = first_line(raw.message)
    message = EmailMessage(policy=SMTP)
    message["From"] = _address(sender)
    message["To"] = _STABLE
    people = _people(repo, raw, source)
    own = parseaddr(sender)[1].lower()
    cc = [p for p in people if p.addr_spec.lower() not in (own, _STABLE)]
    if cc:
        message["Cc"] = cc
    message["Subject"] = f"Please apply to {', '.join(series)}: {subject}"
    message["Date"] = format_datetime(moment or datetime.now(UTC))
    # A letter that says something else is another letter.
    digest = hashlib.sha256(f"{full} {series} {sender} {why}".encode()).hexdigest()[:24]
    message["Message-ID"] = f"<{digest}@{own.partition('@')[2]}>"
    trees = " and ".join(f"{name}.y" for name in series)
    message.set_content(
        f"Hello,\n\nplease apply this commit of Linus's tree to {trees}:\n\n"
        f"  commit {full}\n  {subject}\n\n{why.strip()}\n",
        cte="8bit" if not (why + subject).isascii() else "7bit",
    )
    return message.as_bytes()


def _address(text: str) -> Address:
    name, address = parseaddr(text)
    local, at, domain = address.rpartition("@")
    if not at or not local or not domain or any(c in address for c in " <>,;\r\n"):
        raise UsageError(f"{text!r} is no sender", hint="write it as Name <you@example.org>")
    if not address.isascii():
        raise UsageError(
            f"{address!r}: an address must be ASCII", hint="write the domain as xn--..."
        )
    return Address(name, local, domain)


def _speaks(text: str) -> bool:
    """Say whether `text` can be written: arguments that are not UTF-8 have surrogates."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def _people(repo: Repo, raw: RawCommit, source: Path | None) -> list[Address]:
    texts = [f"{raw.author} <{raw.email}>", *_PEOPLE.findall(raw.message)]
    if source is not None:
        texts += _maintainers(repo, raw.id, source)
    found: dict[str, Address] = {}
    for text in texts:
        name, address = parseaddr(text.partition("#")[0])
        local, at, domain = address.rpartition("@")
        if at and local and domain and address.isascii():
            found.setdefault(address.lower(), Address(name, local, domain))
    return list(found.values())


def _maintainers(repo: Repo, commit: str, source: Path) -> list[str]:
    """Ask the tree's own script; it needs perl and the file MAINTAINERS."""
    script = source / "scripts" / "get_maintainer.pl"
    if not script.is_file():
        raise UsageError(f"{source} is no kernel tree: it has no scripts/get_maintainer.pl")
    patch = repo.git("format-patch", "-1", "--stdout", commit).stdout
    try:
        done = run(
            [
                "perl",
                "scripts/get_maintainer.pl",
                "--no-rolestats",
                "--no-git",
                "--no-git-fallback",
            ],
            cwd=source,
            stdin=patch,
            timeout=300,
        )
    except CommandError as e:
        raise UsageError(f"get_maintainer.pl: {e.message}") from e
    return [line for line in done.stdout.splitlines() if "@" in line]
