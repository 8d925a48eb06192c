"""What a kernel commit's message says about other commits.

The forms are those of Documentation/process/submitting-patches.rst (`Fixes:`, reverts) and
stable-kernel-rules.rst (`commit X upstream.`, `[ Upstream commit X ]`), and what people make of
them: short ids, missing dots, missing subjects, several on one line.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
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
_NAMED = re.compile(rf"(?:commit\s+)?<?({_ID})>?(?![0-9A-Za-z])[\s:]*", re.IGNORECASE)
_NEXT = re.compile(r"\s*(?:,|;|\band\b)\s*")
# "This partially reverts" leaves the other commit standing.
_REVERTS = re.compile(
    r"(?:\bThis (?:(?:also|change|commit|patch|effectively|basically|essentially|simply|just|"
    r"completely|fully) )*reverts?|^Reverts?)"
    rf":?\s+(?:the\s+)?(?:upstream\s+)?(?:(?:following\s+)?(?:commits?|patch)(?:\s+id)?\s*:?\s*)?"
    rf"(?=({_ID})\b)",
    re.IGNORECASE,
)
_LIST = re.compile(r"\breverts? the following (?:commits|patches)[^:]*:$", re.IGNORECASE)
_ITEM = re.compile(rf"(?:[-*\u2022]\s*|\d+[.)]\s*)?(?:commit\s+)?({_ID})\b\s*:?\s*(.*)", re.I)
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
    """What a message says: which commit it is a backport of, and what it fixes or reverts.

    `upstream` has every id that the message gives for the same change, the nearest first: what the
    head of it says, then the trailers of `git cherry-pick -x`, of which the last is the newest.
    """

    subject: str
    upstream: tuple[str, ...]
    fixes: tuple[Reference, ...]
    reverts: tuple[Reference, ...]
    cves: tuple[str, ...]


def first_line(text: str) -> str:
    """Return the subject of a message, or words for its lack."""
    lines = text.splitlines()
    return (lines[0].strip() if lines else "") or "(no subject)"


def parse_message(text: str, footers: Sequence[str] = ()) -> Facts:
    """Parse a commit message, subject first; any text has a meaning, if an empty one.

    `footers` are words beside `Fixes:` that name what a commit mends, for projects that have their
    own: "Follow-up for".
    """
    lines = text.splitlines()
    subject = lines[0].strip() if lines else ""
    body = [line.strip() for line in lines[1:]]
    return Facts(
        subject=subject,
        upstream=tuple(dict.fromkeys(_upstream(body))),
        fixes=tuple(dict.fromkeys(_fixes(body, footers))),
        reverts=tuple(dict.fromkeys(_reverts(subject, body))),
        cves=tuple(dict.fromkeys(_CVE.findall(text))),
    )


def _upstream(body: list[str]) -> list[str]:
    head = backport_of(body)
    trailers = [m[1].lower() for line in reversed(body) if (m := _PICKED.fullmatch(line))]
    return ([head] if head else []) + trailers


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


def _fixes(body: list[str], footers: Sequence[str]) -> list[Reference]:
    # "Fixes 1234567" without the colon is prose, and so are the numbers of reports.
    words = "|".join(["Fixes:", *(rf"{re.escape(f.rstrip(':'))}:?(?=\s)" for f in footers)])
    footer = re.compile(rf"(?:{words})\s*", re.IGNORECASE)
    found = []
    for number, line in enumerate(body):
        match = footer.match(line)
        if match is None:
            continue
        rest = line[match.end() :]
        wrapped = rest.count("(") > rest.count(")") and not rest.endswith(")")
        if wrapped and number + 1 < len(body):
            rest = f"{rest} {body[number + 1]}"
        found += _references(rest)
    return found


def _references(text: str) -> list[Reference]:
    """Return the commits that `text` begins with: ids, each perhaps with its subject."""
    found: list[Reference] = []
    match = _NAMED.match(text)
    while match is not None:
        subject, text = _quoted(text[match.end() :])
        found.append(Reference(match[1].lower(), subject))
        more = _NEXT.match(text)
        match = _NAMED.match(text, more.end()) if more else None
    return found


def _quoted(text: str) -> tuple[str, str]:
    """Split off the subject in `("...")`, which mailers and people have left in many shapes."""
    text = text.strip()
    if text.startswith("("):
        depth = 0
        for position, letter in enumerate(text):
            depth += (letter == "(") - (letter == ")")
            if depth == 0:
                return _bare(text[1:position]), text[position + 1 :]
        return _bare(text[1:].removesuffix(")")), ""
    if text[:1] in ('"', "\u201c"):
        end = max(text.rfind('"'), text.rfind("\u201d"))
        if end > 0:
            return _bare(text[:end]), text[end + 1 :]
    if not text or text[0] in ",;#" or re.match(r"and\b", text):
        return "", text
    return _bare(text), ""


def _bare(text: str) -> str:
    return text.strip().strip('"\u201c\u201d').strip()


def _reverts(subject: str, body: list[str]) -> list[Reference]:
    match = _REVERT_SUBJECT.fullmatch(subject)
    title = match[1] if match else ""
    found: list[Reference] = []
    for number, line in enumerate(body):
        if _LIST.search(line):
            found += _listed(body[number + 1 :])
            continue
        text = line
        if number + 1 < len(body) and body[number + 1]:
            text = f"{line} {body[number + 1]}"  # an id may come on the next line
        match = _REVERTS.search(text)
        if match is None or match.start() >= len(line):
            continue
        named = _undone(text[match.end() :], many=match[0].lower().rstrip(": ").endswith("s"))
        if not found and named and not named[0].subject:
            named[0] = Reference(named[0].id, title)
        found += named
        if upstream := _UPSTREAM_OF_REVERTED.search(text, match.end()):
            found.append(Reference(upstream[1].lower(), title))
    if not found and title:
        found.append(Reference("", title))
    return found


def _undone(text: str, *, many: bool) -> list[Reference]:
    """Return the commits that a sentence reverts: "A and B", but not "A, commit B is better".

    `many` says that it announced several ("commits").
    """
    found: list[Reference] = []
    position = 0
    while match := _NAMED.match(text, position):
        rest = text[match.end() :]
        subject, after = _quoted(rest) if rest.startswith(("(", '"', "\u201c")) else ("", rest)
        end = len(text) - len(after)
        more = _NEXT.match(text, end)
        if found and not many and not more and after.strip() and after.lstrip()[0].isalnum():
            break  # the subject of a sentence
        found.append(Reference(match[1].lower(), subject))
        if more is None:
            break
        position = more.end()
    return found


def _listed(lines: Sequence[str]) -> list[Reference]:
    """Return the commits that the lines of a list begin with."""
    found: list[Reference] = []
    for line in lines:
        match = _ITEM.fullmatch(line)
        if match is None:
            if not line and not found:
                continue
            break
        found.append(Reference(match[1].lower(), _quoted(match[2])[0]))
    return found
