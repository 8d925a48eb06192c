"""Runs in a guest: waits in clone(2) until it is killed, as a task named `holder`.

The parent of CLONE_VFORK sleeps where only a fatal signal reaches it, until the child has ended or
executed something; this child does neither.
"""

import ctypes
import signal
import time

PR_SET_NAME = 15
CLONE = 56  # x86-64
CLONE_VFORK = 0x4000

libc = ctypes.CDLL(None, use_errno=True)
libc.prctl(PR_SET_NAME, b"holder", 0, 0, 0)
libc.syscall(CLONE, CLONE_VFORK | signal.SIGCHLD, None, None, None, 0)
while True:
    time.sleep(1000)
