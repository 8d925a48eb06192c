"""What a box may ask of the kernel: system calls and capabilities.

The list names what is allowed. All else fails with ENOSYS, as on a kernel without it, so that
programs fall back; what exists but is refused on purpose fails with EPERM.
"""

from __future__ import annotations

import errno
import socket

from tegu.linux.seccomp import Compare, Policy, Rule, compile_filter, refusing

__all__ = ["CAPABILITIES", "TERMINAL_REQUESTS", "box_filter", "box_policy", "process_filter"]

CAPABILITIES = (
    "chown",
    "dac_override",
    "fowner",
    "fsetid",
    "kill",
    "setgid",
    "setuid",
    "setfcap",
    "net_bind_service",
    "sys_chroot",
)
"""What root in a box keeps, over the box's own files and processes only."""

_FILES = """
access chdir chmod chown chroot close close_range copy_file_range creat dup dup2 dup3 faccessat
faccessat2 fadvise64 fallocate fchdir fchmod fchmodat fchmodat2 fchown fchownat fcntl fdatasync
fgetxattr flistxattr flock fremovexattr fsetxattr fstat fstatfs fsync ftruncate getcwd getdents
getdents64 getxattr inotify_add_watch inotify_init inotify_init1 inotify_rm_watch lchown lgetxattr
link linkat listxattr llistxattr lremovexattr lseek lsetxattr lstat mkdir mkdirat mknod mknodat
newfstatat open openat openat2 pipe pipe2 pread64 preadv preadv2 pwrite64 pwritev pwritev2 read
readahead readlink readlinkat readv removexattr rename renameat renameat2 rmdir sendfile setxattr
splice stat statfs statx symlink symlinkat sync sync_file_range syncfs tee truncate umask unlink
unlinkat utime utimensat utimes vmsplice write writev ioctl
"""
_MEMORY = """
brk madvise map_shadow_stack membarrier memfd_create mincore mlock mlock2 mlockall mmap mprotect
mremap mseal msync munlock munlockall munmap pkey_alloc pkey_free pkey_mprotect process_madvise
process_mrelease remap_file_pages get_mempolicy set_mempolicy mbind
"""
_PROCESSES = """
arch_prctl capget capset execve execveat exit exit_group fork futex futex_requeue futex_wait
futex_waitv futex_wake get_robust_list getcpu getegid geteuid getgid getgroups getpgid getpgrp
getpid getppid getpriority getresgid getresuid getrlimit getrusage getsid gettid getuid ioprio_get
ioprio_set kill pidfd_open pidfd_send_signal prctl prlimit64 restart_syscall rseq
sched_get_priority_max sched_get_priority_min sched_getaffinity sched_getattr sched_getparam
sched_getscheduler sched_rr_get_interval sched_setaffinity sched_setattr sched_setparam
sched_setscheduler sched_yield set_robust_list set_thread_area set_tid_address setfsgid setfsuid
setgid setgroups setpgid setpriority setregid setresgid setresuid setreuid setrlimit setsid setuid
tgkill time times tkill uname vfork wait4 waitid sysinfo
"""
_SIGNALS_AND_TIME = """
alarm clock_getres clock_gettime clock_nanosleep getitimer gettimeofday nanosleep pause
rt_sigaction rt_sigpending rt_sigprocmask rt_sigqueueinfo rt_sigreturn rt_sigsuspend
rt_sigtimedwait rt_tgsigqueueinfo setitimer sigaltstack signalfd signalfd4 timer_create
timer_delete timer_getoverrun timer_gettime timer_settime timerfd_create timerfd_gettime
timerfd_settime
"""
_EVENTS = """
epoll_create epoll_create1 epoll_ctl epoll_pwait epoll_pwait2 epoll_wait eventfd eventfd2 poll ppoll
pselect6 select io_setup io_submit io_cancel io_destroy io_getevents io_pgetevents
"""
_SOCKETS = """
accept accept4 bind connect getpeername getsockname getsockopt listen recvfrom recvmmsg recvmsg
sendmmsg sendmsg sendto setsockopt shutdown
"""
_IPC = """
mq_getsetattr mq_notify mq_open mq_timedreceive mq_timedsend mq_unlink msgctl msgget msgrcv msgsnd
semctl semget semop semtimedop shmat shmctl shmdt shmget
"""
_RESTRICTING_ONESELF = """
landlock_add_rule landlock_create_ruleset landlock_restrict_self seccomp getrandom
"""
# Refused with EPERM: a program that asks for these should hear "no", not "unknown".
_REFUSED = """
acct add_key bpf delete_module finit_module fsconfig fsmount fsopen fspick init_module
io_uring_enter io_uring_register io_uring_setup kexec_file_load kexec_load keyctl mount
mount_setattr move_mount name_to_handle_at open_by_handle_at open_tree perf_event_open pidfd_getfd
pivot_root process_vm_readv process_vm_writev ptrace quotactl reboot request_key setdomainname
sethostname setns settimeofday clock_settime clock_adjtime adjtimex swapoff swapon syslog umount2
unshare userfaultfd vhangup iopl ioperm kcmp lookup_dcookie fanotify_init
"""
_NEW_NAMESPACES = 0x7E020080
"""All CLONE_NEW* flags of clone(2), the one for time included."""
TERMINAL_REQUESTS = (0x5412, 0x541C)
"""TIOCSTI and TIOCLINUX, which type into a terminal."""
_FAMILIES = (socket.AF_UNIX, socket.AF_INET, socket.AF_INET6)
_PERSONALITIES = (0x0, 0x8, 0x20000, 0x20008, 0x40000, 0xFFFFFFFF)
_LOW = 0xFFFFFFFF
_TYPE_MASK = 0xF
_ROUTE = 0


def box_filter() -> bytes:
    """Return the compiled filter of a box.

    One filter, as each costs every start some thirty microseconds, and every system call a few
    nanoseconds. Typing into a terminal is refused: its reader may be a shell of the host
    (CVE-2016-2568).
    """
    return refusing(compile_filter(box_policy()), "ioctl", 1, TERMINAL_REQUESTS, errno.EPERM)


def box_policy() -> Policy:
    """Return what a box may ask for, but for its terminal.

    Conditions look at the low 32 bits where the kernel does, so that nothing slips by above them.
    Sockets are UNIX, IPv4 and IPv6 (stream and datagram), and netlink for routes; so vsock, which
    no network namespace holds, is out, and so are raw and packet sockets.
    """
    allowed = (
        _FILES
        + _MEMORY
        + _PROCESSES
        + _SIGNALS_AND_TIME
        + _EVENTS
        + _SOCKETS
        + _IPC
        + _RESTRICTING_ONESELF
    )
    rules = [
        Rule(allowed.split()),
        Rule(_REFUSED.split(), error=errno.EPERM),
        Rule(["clone"], when=[Compare(0, "&", 0, mask=_NEW_NAMESPACES)]),
    ]
    for kind in (socket.SOCK_STREAM, socket.SOCK_DGRAM, socket.SOCK_SEQPACKET):
        rules += [
            Rule(
                ["socket", "socketpair"],
                when=[
                    Compare(0, "&", family, mask=_LOW),
                    Compare(1, "&", kind, mask=_TYPE_MASK),
                ],
            )
            for family in _FAMILIES
        ]
    rules.append(
        Rule(
            ["socket"],
            when=[
                Compare(0, "&", socket.AF_NETLINK, mask=_LOW),
                Compare(2, "&", _ROUTE, mask=_LOW),
            ],
        )
    )
    rules += [
        Rule(["personality"], when=[Compare(0, "&", value, mask=_LOW)]) for value in _PERSONALITIES
    ]
    return Policy(rules)


def process_filter() -> bytes:
    """Return the compiled filter of the class `process`, which has no namespaces of its own.

    As `box_filter`, without any socket but a pair, and without System V and POSIX message objects:
    those would be the host's. What ids and groups a program has it keeps.
    """
    shared = {*_IPC.split(), "socket", "socketpair"}
    ids = {"setgid", "setgroups", "setregid", "setresgid", "setresuid", "setreuid", "setuid"}
    rules = [
        Rule([n for n in rule.names if n not in shared | ids | {"chroot"}], rule.error, rule.when)
        for rule in box_policy().rules
        if not set(rule.names) & {"socket"}
    ]
    rules.append(Rule(["socketpair"], when=[Compare(0, "&", socket.AF_UNIX, mask=_LOW)]))
    rules.append(Rule([*sorted(shared - {"socketpair"}), "chroot"], error=errno.EACCES))
    rules.append(Rule(sorted(ids), error=errno.EPERM))
    program = compile_filter(Policy(rules))
    return refusing(program, "ioctl", 1, TERMINAL_REQUESTS, errno.EPERM)
