"""Bills of material of a lock, SPDX 2.3 and CycloneDX 1.6, written and checked by their libraries.

The same lock gives the same bytes: times are the lock's, numbers follow from its digest. Each
package is named by its package URL (https://github.com/package-url/purl-spec), with the checksum
of its file and the source package that advisories speak of.
"""

from __future__ import annotations

import json
import uuid
from datetime import UTC, datetime
from importlib import import_module
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

from tegu.errors import ReleaseError, UnsupportedError

if TYPE_CHECKING:
    from tegu.packages import Lock, LockedPackage

__all__ = ["cyclonedx", "purl", "spdx"]

_SPACE = uuid.UUID("8d2e9f8c-6a35-4a46-9d1b-0f6f3c1b2a77")


def purl(package: LockedPackage) -> str:
    """Return the package URL of a package, with its source where that is named otherwise."""
    vendor = "tegu" if package.repository == "local" else "debian"
    qualifiers = [f"arch={package.architecture}"]
    if (package.source, package.source_version) != (package.name, package.version):
        qualifiers.append(
            f"upstream={quote(f'{package.source}@{package.source_version}', safe='')}"
        )
    name, version = quote(package.name, safe=""), quote(package.version, safe="")
    return f"pkg:deb/{vendor}/{name}@{version}?{'&'.join(qualifiers)}"


def _library(name: str) -> Any:
    try:
        return import_module(name)
    except ImportError as e:
        raise UnsupportedError(
            f"bills of material need the Python module {name.partition('.')[0]}",
            hint="pip install 'tegu[works,repo,release]'",
        ) from e


def cyclonedx(lock: Lock, name: str, version: str) -> str:
    """Return the CycloneDX document of `lock`, validated against its schema."""
    bom_of = _library("cyclonedx.model.bom")
    component = _library("cyclonedx.model.component")
    model = _library("cyclonedx.model")
    output = _library("cyclonedx.output")
    schema = _library("cyclonedx.schema")
    validation = _library("cyclonedx.validation.json")
    url = _library("packageurl").PackageURL
    system = component.Component(
        name=name,
        version=version,
        type=component.ComponentType.OPERATING_SYSTEM,
        bom_ref=f"{name}@{version}",
    )
    parts = [
        component.Component(
            name=p.name,
            version=p.version,
            type=component.ComponentType.LIBRARY,
            purl=url.from_string(purl(p)),
            bom_ref=f"{p.name}:{p.architecture}",
            hashes=[model.HashType(alg=model.HashAlgorithm.SHA_256, content=p.sha256)],
            properties=[
                model.Property(name="debian:source", value=p.source),
                model.Property(name="debian:source-version", value=p.source_version),
            ],
        )
        for p in lock.system
    ]
    bom = bom_of.Bom(
        serial_number=uuid.uuid5(_SPACE, f"{lock.digest()} {name} {version}"),
        components=parts,
        metadata=bom_of.BomMetaData(
            component=system, timestamp=datetime.fromtimestamp(lock.timestamp, UTC)
        ),
    )
    bom.register_dependency(system, parts)
    edition = schema.SchemaVersion.V1_6
    text: str = output.make_outputter(bom, schema.OutputFormat.JSON, edition).output_as_string(
        indent=1
    )
    wrong = validation.JsonStrictValidator(edition).validate_str(text)
    if wrong is not None:
        raise ReleaseError(f"the CycloneDX document is not valid: {wrong.data}")
    return text + "\n"


def spdx(lock: Lock, name: str, version: str) -> str:
    """Return the SPDX document of `lock`, validated by the SPDX project's own library."""
    model = _library("spdx_tools.spdx.model")
    validate = _library("spdx_tools.spdx.validation.document_validator").validate_full_spdx_document
    convert = _library("spdx_tools.spdx.jsonschema.document_converter").DocumentConverter
    nothing = _library("spdx_tools.spdx.model.spdx_no_assertion").SpdxNoAssertion()
    moment = datetime.fromtimestamp(lock.timestamp, UTC).replace(tzinfo=None)
    number = uuid.uuid5(_SPACE, f"{lock.digest()} {name} {version} spdx")
    root = model.Package(
        "SPDXRef-System", name, nothing, version=version, files_analyzed=False,
        primary_package_purpose=model.PackagePurpose.OPERATING_SYSTEM,
    )  # fmt: skip
    packages, relations = [root], []
    relations.append(
        model.Relationship("SPDXRef-DOCUMENT", model.RelationshipType.DESCRIBES, root.spdx_id)
    )
    for p in lock.system:
        ident = f"SPDXRef-{_plain(p.name)}-{_plain(p.architecture)}"
        packages.append(
            model.Package(
                ident,
                p.name,
                nothing,
                version=p.version,
                files_analyzed=False,
                checksums=[model.Checksum(model.ChecksumAlgorithm.SHA256, p.sha256)],
                source_info=f"built from the source package {p.source} {p.source_version}",
                external_references=[
                    model.ExternalPackageRef(
                        model.ExternalPackageRefCategory.PACKAGE_MANAGER, "purl", purl(p)
                    )
                ],
            )
        )
        relations.append(model.Relationship(root.spdx_id, model.RelationshipType.CONTAINS, ident))
    document = model.Document(
        model.CreationInfo(
            "SPDX-2.3",
            "SPDXRef-DOCUMENT",
            f"{name}-{version}",
            f"https://spdx.tegu.invalid/{name}-{version}-{number}",
            [model.Actor(model.ActorType.TOOL, "tegu")],
            moment,
        ),
        packages=packages,
        relationships=relations,
    )
    wrong = validate(document)
    if wrong:
        raise ReleaseError(f"the SPDX document is not valid: {wrong[0].validation_message}")
    return json.dumps(convert().convert(document), indent=1, sort_keys=True) + "\n"


def _plain(text: str) -> str:
    """Return `text` as an SPDX identifier has it: letters, digits, dots and dashes."""
    return "".join(
        c if c.isascii() and (c.isalnum() or c in ".-") else f"-{ord(c):x}-" for c in text
    )
