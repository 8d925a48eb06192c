"""What a kernel commit's message says about other commits.

The forms are those of Documentation/process/submitting-patches.rst (`Fixes:`, reverts) and
stable-kernel-rules.rst (`commit X upstream.`, `[ Upstream commit X ]`), and what people make of
them: short ids, missing dots, missing subjects, several on one line.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

__all__ = ["Facts", "Reference", "backport_of", "first_line", "parse_message"]

_ID = r"[0-9a-fA-F]{7,40}"
_FULL = r"[0-9a-fA-F]{12,40}"
# Only at the start of a line, and only in the head of the body: elsewhere it is prose.
_UPSTREAM = (
    re.compile(rf"\[?\s*commit\s+({_FULL})\s+upstream\.?\s*\]?\s*", re.IGNORECASE),
    re.compile(rf"\[?\s*upstream\s+commit:?\s+({_FULL})\s*\]?\.?\s*", re.IGNORECASE),
)
_PICKED = re.compile(rf"\(cherry[ -]picked from commit ({_FULL})(?:[ ,].*)?\)", re.IGNORECASE)
_HEAD_LINES = 6
_FIXES = re.compile(rf"Fixes:\s*(?:commit\s+)?<?({_ID})>?\b[\s:,]*(.*)", re.IGNORECASE)
# "This partially reverts" leaves the other commit standing.
_REVERTS = re.compile(
    rf"\bThis (?:(?:also|change|commit|patch) )?reverts? (?:upstream )?(?:commits?|patch)\s+"
    rf"({_ID})\b(.*)",
    re.IGNORECASE,
)
_MORE = re.compile(rf"(?:,| and)\s*(?:commit\s+)?({_ID})\b")
_REVERT_SUBJECT = re.compile(r'Revert "(.*)"')
_UPSTREAM_OF_REVERTED = re.compile(rf"which is commit ({_FULL}) upstream", re.IGNORECASE)
_CVE = re.compile(r"\bCVE-\d{4}-\d{4,7}\b")


@dataclass(frozen=True, slots=True)
class Reference:
    """A commit as another one names it: its id, perhaps short or empty, and its subject."""

    id: str
    subject: str = ""


@dataclass(frozen=True, slots=True)
class Facts:
    """What a message says: the commit that it is a backport of, and what it fixes or reverts."""

    subject: str
    upstream: str | None
    fixes: tuple[Reference, ...]
    reverts: tuple[Reference, ...]
    cves: tuple[str, ...]


def first_line(text: str) -> str:
    """Return the subject of a message, or words for its lack."""
    lines = text.splitlines()
    return (lines[0].strip() if lines else "") or "(no subject)"


def parse_message(text: str) -> Facts:
    """Parse a commit message, subject first; any text has a meaning, if an empty one."""
    lines = text.splitlines()
    subject = lines[0].strip() if lines else ""
    body = [line.strip() for line in lines[1:]]
    return Facts(
        subject=subject,
        upstream=_upstream(body),
        fixes=tuple(dict.fromkeys(_fixes(body))),
        reverts=tuple(dict.fromkeys(_reverts(subject, body))),
        cves=tuple(dict.fromkeys(_CVE.findall(text))),
    )


def _upstream(body: list[str]) -> str | None:
    said = backport_of(body)
    if said is not None:
        return said
    # `git cherry-pick -x` appends: the last one is where it was taken from.
    for line in reversed(body):
        if match := _PICKED.fullmatch(line):
            return match[1].lower()
    return None


def backport_of(body: list[str]) -> str | None:
    """Return the commit that the head of a message says it is a backport of."""
    head = [line.strip() for line in body if line.strip()][:_HEAD_LINES]
    before = ""
    for line in head:
        # "This reverts commit A which is" may be broken before "commit B upstream."
        if not before.lower().endswith("which is"):
            for pattern in _UPSTREAM:
                if match := pattern.fullmatch(line):
                    return match[1].lower()
        before = line
    return None


def _fixes(body: list[str]) -> list[Reference]:
    found = []
    for number, line in enumerate(body):
        match = _FIXES.match(line)
        if match is None:
            continue
        rest = match[2].strip()
        if rest.startswith("(") and not rest.endswith(")") and number + 1 < len(body):
            rest = f"{rest} {body[number + 1]}"  # a long subject that was wrapped
        found.append(Reference(match[1].lower(), _quoted(rest)))
    return found


def _quoted(text: str) -> str:
    """Return the subject in `("...")`, which mailers and people have left in many shapes."""
    text = text.strip()
    if text.startswith("("):
        text = text[1:].removesuffix(")")
    return text.strip().strip('"\u201c\u201d').strip()


def _reverts(subject: str, body: list[str]) -> list[Reference]:
    match = _REVERT_SUBJECT.fullmatch(subject)
    title = match[1] if match else ""
    found: list[Reference] = []
    for number, line in enumerate(body):
        text = line
        if number + 1 < len(body) and body[number + 1]:
            text = f"{line} {body[number + 1]}"  # an id may come on the next line
        match = _REVERTS.search(text)
        if match is None or match.start() >= len(line):
            continue
        found.append(Reference(match[1].lower(), title if not found else ""))
        found += [Reference(more.lower()) for more in _MORE.findall(match[2])]
        if upstream := _UPSTREAM_OF_REVERTED.search(match[2]):
            found.append(Reference(upstream[1].lower(), title))
    if not found and title:
        found.append(Reference("", title))
    return found
