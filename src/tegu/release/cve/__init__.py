"""Known vulnerabilities of a lock, an image or a machine, by source package and version.

The data comes from files: the distribution's security tracker (its JSON), OSV records, a catalogue
of what is known to be exploited, and VEX statements of our own for what does not apply. Nothing is
fetched: what a mirrored snapshot says is said with its age.
"""

from tegu.release.cve.advisory import Advisory, make_advisories, to_osv, to_oval, to_updateinfo
from tegu.release.cve.data import SecurityData, Vulnerability, read_security_data
from tegu.release.cve.match import Examination, Finding, Package, examine
from tegu.release.cve.sources import packages_of_lock, packages_of_sbom, packages_of_status
from tegu.release.cve.vex import Statement, read_statements

__all__ = [
    "Advisory",
    "Examination",
    "Finding",
    "Package",
    "SecurityData",
    "Statement",
    "Vulnerability",
    "examine",
    "make_advisories",
    "packages_of_lock",
    "packages_of_sbom",
    "packages_of_status",
    "read_security_data",
    "read_statements",
    "to_osv",
    "to_oval",
    "to_updateinfo",
]
