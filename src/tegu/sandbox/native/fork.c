/* A function's zygote from the moment when its imports are loaded, and its forks up to the moment
 * when they may hear what they are called with.
 *
 * What tegu/sandbox/fn/runtime.py (_serve) and invocation.py (enter) do step by step: after a fork
 * each page that either side touches is copied or at least faulted in, and a Python touches some
 * hundred to get around its loop. Here the zygote stays in C for good; Python goes on in its forks.
 *
 * A shared object without any library, as it is loaded into the Python of whatever template.
 */
#define _GNU_SOURCE
#include <fcntl.h>
#include <linux/capability.h>
#include <linux/filter.h>
#include <linux/seccomp.h>
#include <net/if.h>
#include <poll.h>
#include <sched.h>
#include <signal.h>
#include <sys/ioctl.h>
#include <sys/mount.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <sys/wait.h>

#ifndef __NR_landlock_restrict_self
#define __NR_landlock_restrict_self 446
#endif
#ifndef __NR_close_range
#define __NR_close_range 436
#endif

/* As tegu.sandbox.fn.native has it. */
struct order {
    unsigned long flags; /* CLONE_* */
    unsigned long thread_id; /* where libc keeps the thread's id, or 0 */
    const char *options; /* of the tmpfs */
    const char *directory; /* to start in */
    struct sock_fprog filter;
    unsigned long files, processes;
    int control, ended; /* the supervisor's socket, and what SIGCHLD is read from */
    int wanted; /* network namespaces to have ready */
    int first_user;
    int rules;
};

/* What a fork is made with. */
struct parts {
    int network, link, log, user;
};

enum { CONTROL = 3, MOST_SPARE = 16, MOST_RUNNING = 4096, MOST_NUMBER = 24, PAUSE = 8 /* ms */ };

static struct {
    int pid;
    char number[MOST_NUMBER];
} running[MOST_RUNNING];
static unsigned n_running;
static int spare[MOST_SPARE], n_spare;

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
static long enter(const struct order *o, const struct parts *p, const char **step, int *link)
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
    TRY("network", CALL(setns, p->network, CLONE_NEWNET, 0, 0, 0));
    TRY("mounting /tmp", try_mount("tmpfs", "/tmp", plain, o->options));
    TRY("mounting /dev/shm", CALL(mount, "/tmp", "/dev/shm", 0, MS_BIND, 0));
    TRY("mounting /proc", try_mount("proc", "/proc", plain | MS_NOEXEC, 0));
    TRY("directory", CALL(chdir, o->directory, 0, 0, 0, 0));
    if (o->rules >= 0)
        TRY("landlock", CALL(landlock_restrict_self, o->rules, 0, 0, 0, 0));
    TRY("/dev/null", null = CALL(openat, AT_FDCWD, "/dev/null", O_RDWR | O_CLOEXEC, 0, 0));
    TRY("stdin", CALL(dup3, null, 0, 0, 0, 0));
    TRY("stdout", CALL(dup3, p->log, 1, 0, 0, 0));
    TRY("stderr", CALL(dup3, p->log, 2, 0, 0, 0));
    TRY("control", CALL(dup3, p->link, CONTROL, O_CLOEXEC, 0, 0));
    *link = CONTROL;
    TRY("descriptors", CALL(close_range, CONTROL + 1, ~0U, 0, 0, 0));
    TRY("files", limit(RLIMIT_NOFILE, o->files));
    TRY("processes", limit(RLIMIT_NPROC, o->processes));
    TRY("group", CALL(setresgid, p->user, p->user, p->user, 0, 0));
    TRY("user", CALL(setresuid, p->user, p->user, p->user, 0, 0));
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

/* End a field of a message. */
static unsigned long part_with(char *to, unsigned long at)
{
    to[at] = 0;
    return at + 1;
}

static unsigned long add_number(char *to, unsigned long at, unsigned long value, int width)
{
    char digits[24];
    int i = sizeof digits - 1;

    digits[i] = 0;
    do {
        digits[--i] = (char)('0' + value % 10);
        value /= 10;
    } while ((value || (int)sizeof digits - 1 - i < width) && i);
    return add(to, at, digits + i);
}

/* Say why there is no invocation, in an answer's form, and end. */
static void give_up(int link, const char *step, long error)
{
    static const char head[] = "answer\0start_failed\0text\0" "0\0" "0\0";
    char message[128];
    unsigned long n = 0;

    while (n < sizeof head - 1) {
        message[n] = head[n];
        n++;
    }
    n = add(message, n, step);
    n = add(message, n, ": errno ");
    n = add_number(message, n, (unsigned long)error, 1);
    CALL(write, link, message, n, 0, 0);
    CALL(exit_group, 1, 0, 0, 0, 0);
}

static void tell(const struct order *o, const char *message, unsigned long length, int fd)
{
    union {
        char space[CMSG_SPACE(sizeof(int))];
        struct cmsghdr align;
    } control = {{0}};
    struct iovec part = {(char *)message, length};
    struct msghdr m = {.msg_iov = &part, .msg_iovlen = 1};

    if (fd >= 0) {
        m.msg_control = control.space;
        m.msg_controllen = sizeof control.space;
        control.align.cmsg_level = SOL_SOCKET;
        control.align.cmsg_type = SCM_RIGHTS;
        control.align.cmsg_len = CMSG_LEN(sizeof(int));
        *(int *)CMSG_DATA(&control.align) = fd;
    }
    CALL(sendmsg, o->control, &m, MSG_NOSIGNAL, 0, 0);
}

/* Return a descriptor of a new network namespace in which nothing but loopback is up, or -errno. */
static int new_network(void)
{
    struct ifreq request = {0};
    long done = CALL(unshare, CLONE_NEWNET, 0, 0, 0, 0), s;

    if (done < 0)
        return (int)done;
    s = CALL(socket, AF_INET, SOCK_DGRAM | SOCK_CLOEXEC, 0, 0, 0);
    if (s < 0)
        return (int)s;
    request.ifr_name[0] = 'l';
    request.ifr_name[1] = 'o';
    request.ifr_flags = IFF_UP | IFF_RUNNING;
    done = CALL(ioctl, s, SIOCSIFFLAGS, &request, 0, 0);
    CALL(close, s, 0, 0, 0, 0);
    if (done < 0)
        return (int)done;
    return (int)CALL(openat, AT_FDCWD, "/proc/self/ns/net", O_RDONLY | O_CLOEXEC, 0, 0);
}

/* Tell of those that have ended, as runtime.py does. */
static void reap(const struct order *o)
{
    struct rusage usage;
    char message[128];
    int status;
    long pid;

    while ((pid = CALL(wait4, -1, &status, WNOHANG, &usage, 0)) > 0) {
        unsigned i = 0;
        unsigned long n = 0;

        while (i < n_running && running[i].pid != pid)
            i++;
        if (i == n_running)
            continue;
        n = part_with(message, add(message, n, "ended"));
        n = part_with(message, add(message, n, running[i].number));
        n = part_with(message, add_number(message, n, (unsigned)status, 1));
        n = add_number(message, n, (unsigned long)usage.ru_utime.tv_sec, 1);
        n = add(message, n, ".");
        n = part_with(message, add_number(message, n, (unsigned long)usage.ru_utime.tv_usec, 6));
        n = add_number(message, n, (unsigned long)usage.ru_stime.tv_sec, 1);
        n = add(message, n, ".");
        n = part_with(message, add_number(message, n, (unsigned long)usage.ru_stime.tv_usec, 6));
        n = add_number(message, n, (unsigned long)usage.ru_maxrss, 1);
        tell(o, message, n, -1);
        running[i] = running[--n_running];
    }
}

static void failed(const struct order *o, const char *number, const char *what, long error)
{
    char message[128];
    unsigned long n = 0;

    n = part_with(message, add(message, n, "failed"));
    n = part_with(message, add(message, n, number));
    n = add(message, n, what);
    n = add(message, n, ": errno ");
    n = add_number(message, n, (unsigned long)error, 1);
    tell(o, message, n, -1);
}

/* Fork for one order; returns 1 in the child. */
static int fork_one(const struct order *o, const char *number, struct parts *p)
{
    const char *step = "";
    char message[64];
    unsigned long n = 0;
    int link = p->link, pidfd = -1;
    long pid, error;

    if (n_running == MOST_RUNNING) {
        failed(o, number, "too many run", 11);
        return 0;
    }
    p->network = n_spare ? spare[--n_spare] : new_network();
    if (p->network < 0) {
        failed(o, number, "network namespace", -p->network);
        return 0;
    }
#if defined(__x86_64__)
    pid = CALL(clone, o->flags, 0, &pidfd, o->thread_id, 0);
#else
    pid = CALL(clone, o->flags, 0, &pidfd, 0, o->thread_id);
#endif
    if (!pid) {
        error = enter(o, p, &step, &link);
        if (error)
            give_up(link, step, error);
        return 1;
    }
    CALL(close, p->network, 0, 0, 0, 0);
    if (pid < 0) {
        failed(o, number, "fork", -pid);
        return 0;
    }
    running[n_running].pid = (int)pid;
    part_with(running[n_running].number, add(running[n_running].number, 0, number));
    n_running++;
    n = part_with(message, add(message, n, "born"));
    n = add(message, n, number);
    tell(o, message, n, pidfd);
    CALL(close, pidfd, 0, 0, 0, 0);
    return 0;
}

/* Take one order, "fork", its number and its place among the users; returns 1 in the child. */
static int take_order(const struct order *o)
{
    union {
        char space[CMSG_SPACE(4 * sizeof(int))];
        struct cmsghdr align;
    } control;
    char data[256], number[MOST_NUMBER];
    struct iovec part = {data, sizeof data - 1};
    struct msghdr m = {.msg_iov = &part,
                       .msg_iovlen = 1,
                       .msg_control = control.space,
                       .msg_controllen = sizeof control.space};
    struct parts p = {-1, -1, -1, 0};
    long length = CALL(recvmsg, o->control, &m, MSG_CMSG_CLOEXEC, 0, 0), i = 0;
    int *fds = (int *)CMSG_DATA(&control.align), n_fds = 0, child = 0, slot = 0, n = 0;

    if (length <= 0)
        CALL(exit_group, 0, 0, 0, 0, 0);
    data[length] = 0;
    if (m.msg_controllen >= sizeof(struct cmsghdr) && control.align.cmsg_type == SCM_RIGHTS)
        n_fds = (int)((control.align.cmsg_len - CMSG_LEN(0)) / sizeof(int));
    while (i < length && data[i])
        i++;
    for (i++; i < length && data[i] && n < MOST_NUMBER - 1; i++)
        number[n++] = data[i];
    number[n] = 0;
    for (i++; i < length && data[i] >= '0' && data[i] <= '9' && slot < 60000; i++)
        slot = slot * 10 + (data[i] - '0');
    if (n_fds == 2) {
        p.link = fds[0];
        p.log = fds[1];
        p.user = o->first_user + slot;
        child = fork_one(o, number, &p);
    }
    if (!child)
        for (i = 0; i < n_fds; i++)
            CALL(close, fds[i], 0, 0, 0, 0);
    return child;
}

/* Fork as the supervisor orders, until it goes away; returns 0, in a fork, which has given up all
 * that the zygote may do and has its calls' socket as descriptor 3. */
int tegu_serve(const struct order *o)
{
    struct pollfd ready[2] = {{o->control, POLLIN, 0}, {o->ended, POLLIN, 0}};
    char signals[512];

    for (;;) {
        /* Network namespaces are made ahead, but not while an invocation may be starting. */
        int more = n_spare < o->wanted && n_spare < MOST_SPARE;
        struct timespec pause = {0, PAUSE * 1000000L};
        long n = CALL(ppoll, ready, 2, more ? &pause : 0, 0, 8);

        if (n == 0) {
            int network = new_network();
            if (network >= 0)
                spare[n_spare++] = network;
            else
                ((struct order *)o)->wanted = 0;
        }
        if (n <= 0)
            continue;
        if (ready[1].revents) {
            CALL(read, o->ended, signals, sizeof signals, 0, 0);
            reap(o);
        }
        if (ready[0].revents && take_order(o))
            return 0;
    }
}
