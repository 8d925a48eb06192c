/* A fork of a function's zygote, up to the moment when it may hear what it is called with.
 *
 * What tegu/sandbox/fn/invocation.py does step by step (enter), in one call: a fork of a Python
 * copies each page that it touches, and a hundred calls from Python touch two hundred pages.
 *
 * A shared object without any library, as it is loaded into the Python of whatever template.
 */
#include <asm/unistd.h>
#include <linux/capability.h>
#include <linux/fcntl.h>
#include <linux/filter.h>
#include <linux/mount.h>
#include <linux/prctl.h>
#include <linux/resource.h>
#include <linux/sched.h>
#include <linux/seccomp.h>
#include <linux/signal.h>

#ifndef __NR_landlock_restrict_self
#define __NR_landlock_restrict_self 446
#endif
#ifndef __NR_close_range
#define __NR_close_range 436
#endif

/* As tegu.sandbox.fn.native.Order has it. */
struct order {
    unsigned long flags; /* CLONE_* */
    unsigned long thread_id; /* where libc keeps the thread's id, or 0 */
    const char *options; /* of the tmpfs */
    const char *directory; /* to start in */
    struct sock_fprog filter;
    unsigned long files, processes;
    int pidfd; /* given back */
    int network, link, log, rules, user;
};

enum { CONTROL = 3, O_RDWR_ = 2, O_CLOEXEC_ = 02000000, AT_FDCWD_ = -100 };

#if defined(__x86_64__)
static long call(long n, long a, long b, long c, long d, long e)
{
    long result;
    register long r10 __asm__("r10") = d;
    register long r8 __asm__("r8") = e;
    __asm__ volatile("syscall"
                     : "=a"(result)
                     : "a"(n), "D"(a), "S"(b), "d"(c), "r"(r10), "r"(r8)
                     : "rcx", "r11", "memory");
    return result;
}
#elif defined(__aarch64__)
static long call(long n, long a, long b, long c, long d, long e)
{
    register long x8 __asm__("x8") = n;
    register long x0 __asm__("x0") = a;
    register long x1 __asm__("x1") = b;
    register long x2 __asm__("x2") = c;
    register long x3 __asm__("x3") = d;
    register long x4 __asm__("x4") = e;
    __asm__ volatile("svc 0"
                     : "+r"(x0)
                     : "r"(x8), "r"(x1), "r"(x2), "r"(x3), "r"(x4)
                     : "memory");
    return x0;
}
#else
#error "no system calls are known for this architecture"
#endif

#define CALL(name, a, b, c, d, e)                                                                  \
    call(__NR_##name, (long)(a), (long)(b), (long)(c), (long)(d), (long)(e))

static long try_mount(const char *what, const char *where, unsigned long flags, const char *options)
{
    return CALL(mount, what, where, what, flags, options);
}

static long limit(int what, unsigned long most)
{
    unsigned long both[2] = {most, most};
    return CALL(prlimit64, 0, what, both, 0, 0);
}

/* Return 0, or the errno of the step that failed, which is named; `link` is where to say so. */
static long enter(const struct order *o, const char **step, int *link)
{
    const unsigned long plain = MS_NOSUID | MS_NODEV;
    struct __user_cap_header_struct header = {_LINUX_CAPABILITY_VERSION_3, 0};
    struct __user_cap_data_struct none[2] = {{0, 0, 0}, {0, 0, 0}};
    unsigned long no_signals = 0;
    long null, done;

#define TRY(what, x)                                                                               \
    do {                                                                                           \
        *step = what;                                                                              \
        done = (x);                                                                                \
        if (done < 0)                                                                              \
            return -done;                                                                          \
    } while (0)

    TRY("signals", CALL(rt_sigprocmask, SIG_SETMASK, &no_signals, 0, 8, 0));
    TRY("network", CALL(setns, o->network, CLONE_NEWNET, 0, 0, 0));
    TRY("mounting /tmp", try_mount("tmpfs", "/tmp", plain, o->options));
    TRY("mounting /dev/shm", CALL(mount, "/tmp", "/dev/shm", 0, MS_BIND, 0));
    TRY("mounting /proc", try_mount("proc", "/proc", plain | MS_NOEXEC, 0));
    TRY("directory", CALL(chdir, o->directory, 0, 0, 0, 0));
    if (o->rules >= 0)
        TRY("landlock", CALL(landlock_restrict_self, o->rules, 0, 0, 0, 0));
    TRY("/dev/null", null = CALL(openat, AT_FDCWD_, "/dev/null", O_RDWR_ | O_CLOEXEC_, 0, 0));
    TRY("stdin", CALL(dup3, null, 0, 0, 0, 0));
    TRY("stdout", CALL(dup3, o->log, 1, 0, 0, 0));
    TRY("stderr", CALL(dup3, o->log, 2, 0, 0, 0));
    TRY("control", CALL(dup3, o->link, CONTROL, O_CLOEXEC_, 0, 0));
    *link = CONTROL;
    TRY("descriptors", CALL(close_range, CONTROL + 1, ~0U, 0, 0, 0));
    TRY("files", limit(RLIMIT_NOFILE, o->files));
    TRY("processes", limit(RLIMIT_NPROC, o->processes));
    TRY("group", CALL(setresgid, o->user, o->user, o->user, 0, 0));
    TRY("user", CALL(setresuid, o->user, o->user, o->user, 0, 0));
    TRY("capabilities", CALL(capset, &header, none, 0, 0, 0));
    TRY("dumpable", CALL(prctl, PR_SET_DUMPABLE, 1, 0, 0, 0));
    TRY("filter", CALL(seccomp, SECCOMP_SET_MODE_FILTER, 0, &o->filter, 0, 0));
    return 0;
}

static unsigned long add(char *to, unsigned long at, const char *text)
{
    while (*text)
        to[at++] = *text++;
    return at;
}

/* Say why there is no invocation, in an answer's form, and end. */
static void give_up(int link, const char *step, long error)
{
    static const char head[] = "answer\0start_failed\0text\0" "0\0" "0\0";
    char message[128], digits[8];
    unsigned long n = 0, i = sizeof digits - 1;

    while (n < sizeof head - 1) {
        message[n] = head[n];
        n++;
    }
    n = add(message, n, step);
    n = add(message, n, ": errno ");
    digits[i] = 0;
    do
        digits[--i] = (char)('0' + error % 10);
    while ((error /= 10) && i);
    n = add(message, n, digits + i);
    CALL(write, link, message, n, 0, 0);
    CALL(exit_group, 1, 0, 0, 0, 0);
}

/* Fork; returns the pid with a descriptor in o->pidfd, or -errno; 0 in the child, which has
 * given up all that the zygote may do, and has its calls' socket as descriptor 3. */
long tegu_fork(struct order *o)
{
    const char *step = "";
    int link = o->link;
    long pid, error;

#if defined(__x86_64__)
    pid = CALL(clone, o->flags, 0, &o->pidfd, o->thread_id, 0);
#else
    pid = CALL(clone, o->flags, 0, &o->pidfd, 0, o->thread_id);
#endif
    if (pid)
        return pid;
    error = enter(o, &step, &link);
    if (error)
        give_up(link, step, error);
    return 0;
}
