"""Results as JUnit XML, the form that continuous integration systems read.

There is no standard; these are the elements and attributes of Ant's junitreport that Jenkins,
GitLab and GitHub's readers share.
"""

from __future__ import annotations

import re
from datetime import UTC, datetime
from pathlib import Path
from typing import Final
from xml.etree import ElementTree as ET

from tegu.files import write_atomic
from tegu.lab.results import MachineReport, Report, StepResult

__all__ = ["junit_xml", "write_junit"]

# XML 1.0, production 2 (Char): everything else cannot be written, not even as a reference.
_NOT_XML: Final = re.compile("[^\t\n\r\u0020-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")


def write_junit(report: Report, path: Path) -> None:
    """Write the report as JUnit XML."""
    write_atomic(path, junit_xml(report))


def junit_xml(report: Report) -> bytes:
    """Return the report as JUnit XML: one suite for each machine, one case for each step."""
    root = ET.Element("testsuites", name=report.plan, time=_seconds(report.seconds))
    _counts(root, report)
    for machine in report.machines:
        suite = ET.SubElement(root, "testsuite", name=f"{report.plan}.{machine.name}")
        suite.set("hostname", machine.name)
        suite.set("time", _seconds(machine.seconds))
        started = datetime.fromtimestamp(machine.started, UTC)
        suite.set("timestamp", started.strftime("%Y-%m-%dT%H:%M:%S"))
        _counts(suite, machine)
        properties = ET.SubElement(suite, "properties")
        for name, value in (
            ("subject", report.subject),
            ("firmware", machine.firmware),
            ("accelerator", machine.accelerator),
        ):
            ET.SubElement(properties, "property", name=name, value=_clean(value))
        for step in machine.steps:
            _case(suite, f"{report.plan}.{machine.name}", step)
        ET.SubElement(suite, "system-out").text = _clean(machine.console)
        ET.SubElement(suite, "system-err").text = _clean(machine.journal)
    ET.indent(root)
    out: bytes = ET.tostring(root, encoding="utf-8", xml_declaration=True)
    return out + b"\n"


def _counts(element: ET.Element, part: Report | MachineReport) -> None:
    for name, status in (("failures", "failed"), ("errors", "error"), ("skipped", "skipped")):
        element.set(name, str(part.count(status)))  # type: ignore[arg-type]
    machines = part.machines if isinstance(part, Report) else (part,)
    element.set("tests", str(sum(len(m.steps) for m in machines)))


def _case(suite: ET.Element, group: str, step: StepResult) -> None:
    case = ET.SubElement(suite, "testcase", name=_clean(step.name), classname=group)
    case.set("time", _seconds(step.seconds))
    if step.status == "skipped":
        ET.SubElement(case, "skipped", message=_clean(step.message))
    elif step.status in ("failed", "error"):
        tag = "failure" if step.status == "failed" else "error"
        first = step.message.splitlines()[0] if step.message else step.status
        kind = "expectation" if step.status == "failed" else "machine"
        problem = ET.SubElement(case, tag, message=_clean(first), type=kind)
        problem.text = _clean(step.message)
    if step.stdout:
        ET.SubElement(case, "system-out").text = _clean(step.stdout)
    if step.stderr:
        ET.SubElement(case, "system-err").text = _clean(step.stderr)


def _seconds(value: float) -> str:
    return f"{value:.3f}"


def _clean(text: str) -> str:
    return _NOT_XML.sub("\N{REPLACEMENT CHARACTER}", text)
