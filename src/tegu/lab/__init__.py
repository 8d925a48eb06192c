"""Machines (QEMU, SSH hosts, this one) and what is run on them: plans, and results that last.

A `Machine` is the only way any room reaches a guest or a host. `boot` leaves one running; a `Plan`
says what to run on machines and what to expect; `run_plan` runs it and returns a `Report`.
`find_first_bad` looks for the first bad one of many candidates, each tried in a machine of its own
(`try_command`, `try_plan`).
"""

from __future__ import annotations

from tegu.lab.bisect import Found, Line, Rule, Space, Step, Trial, find_first_bad
from tegu.lab.bisect_report import bisect_page
from tegu.lab.bisect_state import BisectState, found_json
from tegu.lab.boot import (
    Booted,
    Stopped,
    boot,
    cloud_init,
    copy,
    is_definition,
    stop,
)
from tegu.lab.flags import machine_options
from tegu.lab.kernel_machine import KernelMachine
from tegu.lab.local import LocalMachine
from tegu.lab.machine import Machine, Result
from tegu.lab.options import Forward, QemuOptions
from tegu.lab.plan import MachinePlan, Plan
from tegu.lab.plan_file import load_plan
from tegu.lab.qemu import QemuMachine
from tegu.lab.registry import MachineRecord, Registry
from tegu.lab.remote import SshMachine
from tegu.lab.results import STATUSES, MachineReport, Report, StepResult, read_report
from tegu.lab.results import as_json as report_json
from tegu.lab.runner import Event, run_plan
from tegu.lab.seed import Seed
from tegu.lab.serial import attach
from tegu.lab.testing import run_tests, write_reports
from tegu.lab.trial import Bootable, TrialSettings, try_command, try_plan
from tegu.lab.variables import system_variables

__all__ = [
    "STATUSES",
    "BisectState",
    "Bootable",
    "Booted",
    "Event",
    "Forward",
    "Found",
    "KernelMachine",
    "Line",
    "LocalMachine",
    "Machine",
    "MachinePlan",
    "MachineRecord",
    "MachineReport",
    "Plan",
    "QemuMachine",
    "QemuOptions",
    "Registry",
    "Report",
    "Result",
    "Rule",
    "Seed",
    "Space",
    "SshMachine",
    "Step",
    "StepResult",
    "Stopped",
    "Trial",
    "TrialSettings",
    "attach",
    "bisect_page",
    "boot",
    "cloud_init",
    "copy",
    "find_first_bad",
    "found_json",
    "is_definition",
    "load_plan",
    "machine_options",
    "read_report",
    "report_json",
    "run_plan",
    "run_tests",
    "stop",
    "system_variables",
    "try_command",
    "try_plan",
    "write_reports",
]
