"""Advisories of our own (TEGU-2026:0001), and the forms in which other tools read them.

OSV JSON (https://ossf.github.io/osv-schema/), updateinfo.xml (what dnf reads of an RPM repository),
OVAL 5.11 definitions (https://oval.mitre.org/), with dpkg tests.
"""

from __future__ import annotations

import json
import xml.etree.ElementTree as ET
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import TYPE_CHECKING

from tegu.packages.version import compare
from tegu.release.cve.data import Severity
from tegu.release.cve.match import Examination, Finding, weight

if TYPE_CHECKING:
    from tegu.packages import Lock

__all__ = ["Advisory", "make_advisories", "to_osv", "to_oval", "to_updateinfo"]


@dataclass(frozen=True, slots=True)
class Advisory:
    """What a release mends in one source: `packages` name to fixed version."""

    id: str
    date: int
    source: str
    severity: Severity
    cves: tuple[str, ...]
    packages: dict[str, str]
    summary: str


def make_advisories(
    before: Examination, lock: Lock, *, year: int, first: int, date: int
) -> list[Advisory]:
    """Return an advisory for each source whose findings `before` are mended in `lock`.

    `before` examined the release before; numbers of `year` begin with `first`; `date` is in seconds
    since the epoch.
    """
    now = {p.source: p.source_version for p in lock.system}
    mended: dict[str, list[Finding]] = {}
    for finding in before.findings:
        version = now.get(finding.source)
        if finding.fixed is None or finding.status == "not_affected" or version is None:
            continue
        if compare(version, finding.fixed) >= 0:
            mended.setdefault(finding.source, []).append(finding)
    made = []
    for number, (source, findings) in enumerate(sorted(mended.items()), first):
        cves = tuple(sorted(f.id for f in findings))
        made.append(
            Advisory(
                id=f"TEGU-{year}:{number:04}",
                date=date,
                source=source,
                severity=max((f.severity for f in findings), key=weight),
                cves=cves,
                packages={p.name: p.version for p in lock.system if p.source == source},
                summary=f"{source}: {len(cves)} "
                f"{'vulnerability' if len(cves) == 1 else 'vulnerabilities'} mended",
            )
        )
    return made


def to_osv(advisory: Advisory) -> str:
    """Return one OSV record."""
    moment = f"{datetime.fromtimestamp(advisory.date, UTC):%Y-%m-%dT%H:%M:%SZ}"
    record = {
        "schema_version": "1.6.0",
        "id": advisory.id.replace(":", "-"),
        "published": moment,
        "modified": moment,
        "related": list(advisory.cves),
        "summary": advisory.summary,
        "affected": [
            {
                "package": {"ecosystem": "Tegu", "name": name, "purl": f"pkg:deb/tegu/{name}"},
                "ranges": [
                    {"type": "ECOSYSTEM", "events": [{"introduced": "0"}, {"fixed": version}]}
                ],
                "ecosystem_specific": {"severity": advisory.severity},
            }
            for name, version in sorted(advisory.packages.items())
        ],
    }
    return json.dumps(record, indent=1, sort_keys=True) + "\n"


_DNF = {"unknown": "Moderate", "unimportant": "Low", "low": "Low", "medium": "Moderate",
        "high": "Important", "critical": "Critical"}  # fmt: skip


def to_updateinfo(advisories: Sequence[Advisory], release: str) -> str:
    """Return updateinfo.xml, as dnf's `updateinfo` reads it (libsolv's repo_updateinfoxml.c)."""
    root = ET.Element("updates")
    for a in advisories:
        update = ET.SubElement(
            root, "update", {"from": "tegu", "status": "final", "type": "security", "version": "1"}
        )
        for name, text in (
            ("id", a.id), ("title", a.summary), ("release", release),
            ("severity", _DNF[a.severity]), ("description", f"Mends {', '.join(a.cves)}."),
        ):  # fmt: skip
            ET.SubElement(update, name).text = text
        ET.SubElement(
            update, "issued", {"date": f"{datetime.fromtimestamp(a.date, UTC):%Y-%m-%d %H:%M:%S}"}
        )
        references = ET.SubElement(update, "references")
        for cve in a.cves:
            ET.SubElement(references, "reference", {"id": cve, "title": cve, "type": "cve"})
        collection = ET.SubElement(ET.SubElement(update, "pkglist"), "collection")
        for name, version in sorted(a.packages.items()):
            head, _, revision = version.rpartition("-")
            epoch, colon, upstream = (head or version).partition(":")
            where = {
                "name": name,
                "epoch": epoch if colon else "0",
                "version": upstream if colon else (head or version),
                "release": revision if head else "1",
                "arch": "x86_64",
            }
            ET.SubElement(collection, "package", where)
    return _xml(root)


_OVAL = "http://oval.mitre.org/XMLSchema/oval-definitions-5"
_COMMON = "http://oval.mitre.org/XMLSchema/oval-common-5"
_LINUX = f"{_OVAL}#linux"


def to_oval(advisories: Sequence[Advisory], *, date: int) -> str:
    """Return OVAL definitions: one a package and advisory, true where the old version is there."""
    root = ET.Element("oval_definitions", {"xmlns": _OVAL})
    generator = ET.SubElement(root, "generator")
    for name, text in (
        ("product_name", "tegu"),
        ("schema_version", "5.11.2"),
        ("timestamp", f"{datetime.fromtimestamp(date, UTC):%Y-%m-%dT%H:%M:%S}"),
    ):
        ET.SubElement(generator, f"{{{_COMMON}}}{name}").text = text
    parts = {k: ET.SubElement(root, k) for k in ("definitions", "tests", "objects", "states")}
    serial = 0
    for a in advisories:
        definition = ET.SubElement(
            parts["definitions"],
            "definition",
            {"id": f"oval:tegu:def:{_digits(a.id)}", "version": "1", "class": "patch"},
        )
        about = ET.SubElement(definition, "metadata")
        ET.SubElement(about, "title").text = f"{a.id}: {a.summary}"
        for cve in a.cves:
            ET.SubElement(about, "reference", {"source": "CVE", "ref_id": cve})
        ET.SubElement(about, "description").text = f"Mends {', '.join(a.cves)}."
        criteria = ET.SubElement(definition, "criteria", {"operator": "OR"})
        for name, version in sorted(a.packages.items()):
            serial += 1
            test, thing, state = (f"oval:tegu:{kind}:{serial}" for kind in ("tst", "obj", "ste"))
            ET.SubElement(
                criteria,
                "criterion",
                {"test_ref": test, "comment": f"{name} is earlier than {version}"},
            )
            node = ET.SubElement(
                parts["tests"],
                f"{{{_LINUX}}}dpkginfo_test",
                {"id": test, "version": "1", "check": "all", "comment": f"{name} < {version}"},
            )
            ET.SubElement(node, f"{{{_LINUX}}}object", {"object_ref": thing})
            ET.SubElement(node, f"{{{_LINUX}}}state", {"state_ref": state})
            node = ET.SubElement(
                parts["objects"], f"{{{_LINUX}}}dpkginfo_object", {"id": thing, "version": "1"}
            )
            ET.SubElement(node, f"{{{_LINUX}}}name").text = name
            node = ET.SubElement(
                parts["states"], f"{{{_LINUX}}}dpkginfo_state", {"id": state, "version": "1"}
            )
            full = version if ":" in version else f"0:{version}"
            ET.SubElement(
                node,
                f"{{{_LINUX}}}evr",
                {"datatype": "debian_evr_string", "operation": "less than"},
            ).text = full
    return _xml(root)


def _digits(name: str) -> str:
    return "".join(c for c in name if c.isdigit())


def _xml(root: ET.Element) -> str:
    ET.indent(root)
    return ET.tostring(root, encoding="unicode", xml_declaration=True) + "\n"
