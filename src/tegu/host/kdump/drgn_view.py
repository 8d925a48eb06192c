"""Run by drgn inside of a dump: the crashed task's stack with arguments, and what waits.

`prog` is drgn's program; the helpers are those of drgn.helpers.linux.
"""

# ruff: noqa: BLE001
# mypy: ignore-errors

import drgn
from drgn.helpers.linux.pid import for_each_task


def view(prog: drgn.Program) -> None:
    try:
        thread = prog.crashed_thread()
        task = thread.object
        print(f"crashed: {task.comm.string_().decode()} (pid {task.pid.value_()})")
        print(thread.stack_trace())
    except Exception as e:
        print(f"the crashed thread cannot be read: {e}")
    print("\ntasks that wait without a way out:")
    found = 0
    for task in for_each_task(prog):
        # TASK_UNINTERRUPTIBLE without TASK_NOLOAD (include/linux/sched.h).
        if task.member_("__state").value_() & 0x402 == 0x2:
            found += 1
            print(f"  {task.comm.string_().decode(errors='replace')} (pid {task.pid.value_()})")
    if not found:
        print("  none")


view(prog)  # noqa: F821 - given by drgn
