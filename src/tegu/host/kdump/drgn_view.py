"""Run by drgn inside of a dump: the crashed task's stack, and which tasks wait without a way out.

`prog` is drgn's program; the helpers are those of drgn.helpers.linux.
"""

# mypy: ignore-errors

from __future__ import annotations


def view(prog) -> None:
    from drgn.helpers.linux.pid import for_each_task

    try:
        thread = prog.crashed_thread()
    except LookupError:
        # drgn passes over a file whose build ID is not the core's.
        raise SystemExit("the debug symbols are not of the kernel that crashed") from None
    task = thread.object
    print(f"crashed: {task.comm.string_().decode(errors='replace')} (pid {task.pid.value_()})")
    print(thread.stack_trace())
    # TASK_UNINTERRUPTIBLE without TASK_NOLOAD (include/linux/sched.h).
    waiting = [
        f"  {task.comm.string_().decode(errors='replace')} (pid {task.pid.value_()})"
        for task in for_each_task(prog)
        if task.member_("__state").value_() & 0x402 == 0x2
    ]
    print("\ntasks that wait without a way out:")
    print("\n".join(waiting) or "  none")


if "prog" in globals():
    view(globals()["prog"])
