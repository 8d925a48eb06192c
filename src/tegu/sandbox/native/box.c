/* The hot half of a zygote, and the first process of its boxes.
 *
 * What tegu/sandbox/zygote.py, inside.py and init.py do from the moment when the tree stands, step
 * by step and word for word on the wire; they say why, and run where this program was not built.
 * It is one small static program because a box is a copy of its zygote: each page that a copy
 * touches costs a fault, and a Python touches 350 of them.
 *
 * Started by the Python zygote with descriptors: 3 the supervisor's socket, 4 the world (see
 * read_world), 5 the Landlock rule set, if the kernel has one.
 *
 * Messages (wireless.py) are fields parted by NUL, descriptors beside them (unix(7)). What comes
 * down is from the supervisor, through a socket that only it holds.
 */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <linux/capability.h>
#include <linux/filter.h>
#include <linux/openat2.h>
#include <linux/sched.h>
#include <linux/seccomp.h>
#include <net/if.h>
#include <poll.h>
#include <sched.h>
#include <signal.h>
#include <stdarg.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mount.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/signalfd.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

enum { MAX_MESSAGE = 120 * 1024, MAX_FDS = 64, MAX_FILTERS = 4, MAX_BINDS = 32, MAX_SPARE = 64 };
enum { MAX_GROUPS = 64 };
enum { LINK = 3, WORLD = 4, RULES_IN = 5 };
enum { CONTROL = 60, RULES = 61, HIGH = 64 };
/* linux/landlock.h, of which older ones do not know all */
enum { LANDLOCK_VERSION = 1, PATH_BENEATH = 1, SCOPE_BOTH = 3 };
enum { DENY_DEVICES = 1 << 6 | 1 << 11, ALLOW_REFER = 1 << 13 };

#define BOX_NAMESPACES                                                                             \
    (CLONE_NEWUSER | CLONE_NEWNS | CLONE_NEWPID | CLONE_NEWIPC | CLONE_NEWUTS | CLONE_NEWCGROUP)

static struct {
    struct sock_fprog filters[MAX_FILTERS];
    unsigned n_filters;
    uint64_t keep; /* capabilities of root in a box, as a mask */
    char *binds[MAX_BINDS];
    unsigned n_binds;
    int rules;
} world = {.rules = -1};

/* One message as it came: fields[i] are strings within `data`. */
static char data[MAX_MESSAGE + 1];
static char **fields;
static size_t n_fields, room_fields;
static int fds[MAX_FDS];
static size_t n_fds;

/* --- Messages ------------------------------------------------------------------------------- */

static int tell(int link, const char *message, size_t length, int fd)
{
    union {
        char space[CMSG_SPACE(sizeof(int))];
        struct cmsghdr align;
    } control;
    struct iovec part = {(char *)message, length};
    struct msghdr m = {.msg_iov = &part, .msg_iovlen = 1};

    if (fd >= 0) {
        memset(&control, 0, sizeof control);
        m.msg_control = control.space;
        m.msg_controllen = sizeof control.space;
        struct cmsghdr *c = CMSG_FIRSTHDR(&m);
        c->cmsg_level = SOL_SOCKET;
        c->cmsg_type = SCM_RIGHTS;
        c->cmsg_len = CMSG_LEN(sizeof(int));
        memcpy(CMSG_DATA(c), &fd, sizeof(int));
    }
    return sendmsg(link, &m, MSG_NOSIGNAL) < 0 ? -1 : 0;
}

/* Tell fields given as one format in which \1 stands for the NUL between two. */
__attribute__((format(printf, 3, 4))) static int say(int link, int fd, const char *format, ...)
{
    char text[8192];
    va_list arguments;
    va_start(arguments, format);
    int n = vsnprintf(text, sizeof text, format, arguments);
    va_end(arguments);
    size_t length = n < 0 ? 0 : (size_t)n < sizeof text ? (size_t)n : sizeof text - 1;
    for (size_t i = 0; i < length; i++)
        if (text[i] == '\1')
            text[i] = '\0';
    return tell(link, text, length, fd);
}

static void close_fds(void)
{
    for (size_t i = 0; i < n_fds; i++)
        close(fds[i]);
    n_fds = 0;
}

/* Receive one message into `fields` and `fds`; 0 when the other side is gone. */
static int hear(int link)
{
    static union {
        char space[CMSG_SPACE(MAX_FDS * sizeof(int))];
        struct cmsghdr align;
    } control;
    struct iovec part = {data, MAX_MESSAGE};
    struct msghdr m = {.msg_iov = &part,
                       .msg_iovlen = 1,
                       .msg_control = control.space,
                       .msg_controllen = sizeof control.space};
    ssize_t n;

    do
        n = recvmsg(link, &m, MSG_CMSG_CLOEXEC);
    while (n < 0 && errno == EINTR);
    n_fds = 0;
    if (n >= 0)
        for (struct cmsghdr *c = CMSG_FIRSTHDR(&m); c; c = CMSG_NXTHDR(&m, c))
            if (c->cmsg_level == SOL_SOCKET && c->cmsg_type == SCM_RIGHTS) {
                n_fds = (c->cmsg_len - CMSG_LEN(0)) / sizeof(int);
                memcpy(fds, CMSG_DATA(c), n_fds * sizeof(int));
            }
    if (n <= 0 || (m.msg_flags & (MSG_TRUNC | MSG_CTRUNC))) {
        close_fds();
        return 0;
    }
    data[n] = '\0';
    n_fields = 0;
    for (char *at = data; at <= data + n; at += strlen(at) + 1) {
        if (n_fields + 2 > room_fields) { /* and one for the NULL after the last */
            room_fields = room_fields ? 2 * room_fields : 64;
            fields = realloc(fields, room_fields * sizeof *fields);
            if (!fields)
                _exit(1);
        }
        fields[n_fields++] = at;
    }
    fields[n_fields] = NULL;
    return 1;
}

static long number(size_t i)
{
    return i < n_fields ? strtol(fields[i], NULL, 10) : 0;
}

/* --- A box from within (inside.py) ------------------------------------------------------------ */

static const char *where; /* what the failing call was about, for the message */

static int mount_at(const char *source, const char *target, const char *kind, unsigned long flags,
                    const char *options)
{
    where = target;
    return mount(source, target, kind, flags, options);
}

static int make_directory(const char *path, mode_t mode)
{
    where = path;
    if (mkdir(path, mode) < 0)
        return -1;
    return chmod(path, mode);
}

struct order { /* of the supervisor to the zygote: see nursery.py */
    const char *id, *disk, *inodes, *hostname;
    int read_only;
    rlim_t files, processes;
};

static int mount_root(const struct order *o)
{
    static const struct {
        const char *path;
        mode_t mode;
    } tops[] = {{"/b/r/dev", 0755},
                {"/b/r/proc", 0555},
                {"/b/r/run", 0755},
                {"/b/r/sys", 0555},
                {"/b/r/tmp", 01777}};
    const unsigned long quiet = MS_NOSUID | MS_NODEV;
    char options[128], from[512], to[512];

    snprintf(options, sizeof options, "mode=0755,size=%s,nr_inodes=%s", o->disk, o->inodes);
    if (mount_at("tmpfs", "/b", "tmpfs", quiet, options) < 0 || make_directory("/b/r", 0755) < 0 ||
        make_directory("/b/u", 0755) < 0 || make_directory("/b/w", 0755) < 0 ||
        make_directory("/b/shm", 01777) < 0)
        return -1;
    if (o->read_only) {
        if (mount_at("/ro", "/b/r", "", MS_BIND | MS_REC, NULL) < 0 ||
            make_directory("/b/tmp", 01777) < 0 || make_directory("/b/run", 0755) < 0 ||
            mount_at("/b/tmp", "/b/r/tmp", "", MS_BIND, NULL) < 0 ||
            mount_at("/b/run", "/b/r/run", "", MS_BIND, NULL) < 0)
            return -1;
    } else {
        if (mount_at("overlay", "/b/r", "overlay", quiet,
                     "userxattr,lowerdir=/t,upperdir=/b/u,workdir=/b/w") < 0)
            return -1;
        for (size_t i = 0; i < sizeof tops / sizeof *tops; i++)
            if (make_directory(tops[i].path, tops[i].mode) < 0 && errno != EEXIST)
                return -1;
        for (unsigned i = 0; i < world.n_binds; i++) {
            snprintf(from, sizeof from, "/ro%s", world.binds[i]);
            snprintf(to, sizeof to, "/b/r%s", world.binds[i]);
            if (mount_at(from, to, "", MS_BIND | MS_REC, NULL) < 0)
                return -1;
        }
    }
    if (mount_at("/dev", "/b/r/dev", "", MS_BIND | MS_REC, NULL) < 0 ||
        mount_at("/b/shm", "/b/r/dev/shm", "", MS_BIND, NULL) < 0 ||
        mount_at("devpts", "/b/r/dev/pts", "devpts", MS_NOSUID | MS_NOEXEC,
                 "newinstance,ptmxmode=0666,mode=0620") < 0 ||
        mount_at("proc", "/b/r/proc", "proc", quiet | MS_NOEXEC, NULL) < 0)
        return -1;
    where = "/b/r";
    if (chdir("/b/r") < 0 || syscall(SYS_pivot_root, ".", ".") < 0 || umount2(".", MNT_DETACH) < 0)
        return -1;
    where = "/";
    return chdir("/");
}

static int only_these(int control)
{
    int high_control = fcntl(control, F_DUPFD_CLOEXEC, HIGH);
    int high_rules = world.rules >= 0 ? fcntl(world.rules, F_DUPFD_CLOEXEC, HIGH) : -1;
    int null = open("/dev/null", O_RDWR);

    where = "/dev/null";
    if (high_control < 0 || null < 0 || (world.rules >= 0 && high_rules < 0))
        return -1;
    for (int fd = 0; fd < 3; fd++)
        if (dup2(null, fd) < 0)
            return -1;
    if (dup3(high_control, CONTROL, O_CLOEXEC) < 0 ||
        (high_rules >= 0 && dup3(high_rules, RULES, O_CLOEXEC) < 0))
        return -1;
    if (close_range(3, CONTROL - 1, 0) < 0)
        return -1;
    return close_range((high_rules >= 0 ? RULES : CONTROL) + 1, ~0U, 0);
}

static int limit(int what, rlim_t most)
{
    struct rlimit r = {most, most};
    return setrlimit(what, &r);
}

/* Restrict this process by Landlock: as the zygote's rule set does, but that files may be moved from
 * one directory to another. That a rule must allow (LANDLOCK_ACCESS_FS_REFER), for a directory that
 * is there: the root of this very box. Kernels before 5.19 never allow it. */
static int restrict_files(void)
{
    struct {
        uint64_t files, net, scoped;
    } want = {.files = DENY_DEVICES | ALLOW_REFER};
    struct {
        uint64_t allowed;
        int32_t parent;
    } __attribute__((packed)) rule = {.allowed = ALLOW_REFER};
    long abi = syscall(SYS_landlock_create_ruleset, NULL, 0, LANDLOCK_VERSION);

    if (abi < 2)
        return (int)syscall(SYS_landlock_restrict_self, RULES, 0);
    if (abi >= 6)
        want.scoped = SCOPE_BOTH;
    int rules = (int)syscall(SYS_landlock_create_ruleset, &want, abi >= 6 ? 24 : 8, 0);
    rule.parent = open("/", O_PATH | O_DIRECTORY | O_CLOEXEC);
    if (rules < 0 || rule.parent < 0)
        return -1;
    if (syscall(SYS_landlock_add_rule, rules, PATH_BENEATH, &rule, 0) < 0 || close(rule.parent) < 0 ||
        syscall(SYS_landlock_restrict_self, rules, 0) < 0)
        return -1;
    return close(rules);
}

static int confine(const struct order *o)
{
    struct __user_cap_header_struct header = {_LINUX_CAPABILITY_VERSION_3, 0};
    struct __user_cap_data_struct caps[2] = {{0}};

    where = "limits";
    if (limit(RLIMIT_CORE, 0) < 0 || limit(RLIMIT_NOFILE, o->files) < 0 ||
        limit(RLIMIT_NPROC, o->processes) < 0 || limit(RLIMIT_MEMLOCK, 65536) < 0)
        return -1;
    where = "no_new_privs";
    if (prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) < 0)
        return -1;
    where = "capset";
    for (int i = 0; i < 2; i++)
        caps[i].effective = caps[i].permitted = (uint32_t)(world.keep >> (32 * i));
    if (syscall(SYS_capset, &header, caps) < 0)
        return -1;
    where = "dumpable";
    if (prctl(PR_SET_DUMPABLE, 0, 0, 0, 0) < 0)
        return -1;
    where = "landlock";
    if (world.rules >= 0 && (restrict_files() < 0 || close(RULES) < 0))
        return -1;
    where = "seccomp";
    for (unsigned i = 0; i < world.n_filters; i++)
        if (syscall(SYS_seccomp, SECCOMP_SET_MODE_FILTER, 0, &world.filters[i]) < 0)
            return -1;
    return 0;
}

/* --- The first process of a box (init.py) ------------------------------------------------------ */

struct process {
    pid_t pid, parent, session;
    unsigned long long begun; /* clock ticks since boot: with the pid, a name that is not reused */
};

struct run {
    pid_t pid;
    long number;
    struct process *before; /* what was there when it began, and is not its own */
    size_t n_before;
};

static struct run *runs;
static size_t n_runs, room_runs;
static int last_run; /* whether the box ends with its first run ("once") */

static void *grown(void *list, size_t n, size_t *room, size_t size)
{
    if (n < *room)
        return list;
    *room = *room ? 2 * *room : 16;
    list = realloc(list, *room * size);
    if (!list)
        _exit(1); /* the box ends, and its programs are told so */
    return list;
}

/* List all processes of the box but this one and those that ended; the caller frees it. */
static struct process *processes(size_t *n)
{
    struct process *found = NULL;
    size_t room = 0;
    DIR *all = opendir("/proc");
    struct dirent *entry;

    *n = 0;
    if (!all)
        return NULL;
    while ((entry = readdir(all))) {
        char path[64], text[1024], state;
        struct process p = {.pid = (pid_t)strtol(entry->d_name, NULL, 10)};
        if (p.pid <= 1)
            continue;
        snprintf(path, sizeof path, "/proc/%d/stat", p.pid);
        int fd = open(path, O_RDONLY | O_CLOEXEC);
        if (fd < 0)
            continue;
        ssize_t got = read(fd, text, sizeof text - 1);
        close(fd);
        if (got <= 0)
            continue;
        text[got] = '\0';
        char *rest = strrchr(text, ')'); /* the name before it may hold anything */
        if (!rest || sscanf(rest + 1,
                            " %c %d %*d %d %*d %*d %*u %*u %*u %*u %*u %*u %*u %*d %*d %*d %*d %*d"
                            " %*d %llu",
                            &state, &p.parent, &p.session, &p.begun) != 4)
            continue;
        if (state == 'Z' || state == 'X')
            continue;
        found = grown(found, *n, &room, sizeof *found);
        found[(*n)++] = p;
    }
    closedir(all);
    return found;
}

static const struct process *find_process(const struct process *all, size_t n, pid_t pid)
{
    for (size_t i = 0; i < n; i++)
        if (all[i].pid == pid)
            return &all[i];
    return NULL;
}

/* Whether a process, or one it descends from, was there before the run, or is of another run. */
static int spared(const struct process *p, const struct process *all, size_t n,
                  const struct run *mine)
{
    for (size_t steps = 0; p && steps <= n; steps++) {
        for (size_t i = 0; i < mine->n_before; i++)
            if (mine->before[i].pid == p->pid && mine->before[i].begun == p->begun)
                return 1;
        for (size_t i = 0; i < n_runs; i++)
            if (&runs[i] != mine && (runs[i].pid == p->pid || runs[i].pid == p->session))
                return 1;
        p = find_process(all, n, p->parent);
    }
    return 0;
}

/* What a run that ended has left belongs to no other: the others' ends spare it. */
static void settle(const struct run *ended)
{
    size_t n, room;
    struct process *all = n_runs > 1 ? processes(&n) : NULL;

    for (size_t i = 0; all && i < n; i++) {
        if (all[i].session != ended->pid)
            continue;
        for (size_t j = 0; j < n_runs; j++) {
            struct run *other = &runs[j];
            if (other == ended)
                continue;
            room = other->n_before;
            other->before = grown(other->before, other->n_before, &room, sizeof *all);
            other->before[other->n_before++] = all[i];
        }
    }
    free(all);
}

static void reap(void)
{
    int status;
    struct rusage u;
    pid_t pid;

    while ((pid = wait4(-1, &status, WNOHANG, &u)) > 0)
        for (size_t i = 0; i < n_runs; i++)
            if (runs[i].pid == pid) {
                say(CONTROL, -1, "exited\1%ld\1%d\1%ld.%06ld\1%ld.%06ld\1%ld", runs[i].number,
                    status, (long)u.ru_utime.tv_sec, (long)u.ru_utime.tv_usec,
                    (long)u.ru_stime.tv_sec, (long)u.ru_stime.tv_usec, u.ru_maxrss);
                if (last_run)
                    _exit(0); /* and with the first process all others end */
                settle(&runs[i]);
                free(runs[i].before);
                runs[i] = runs[--n_runs];
                break;
            }
}

static void failed(int why)
{
    say(CONTROL, -1, "failed\1%s\1%d\1%s", fields[1], why, strerror(why));
}

static void unblock(void)
{
    sigset_t none;
    sigemptyset(&none);
    sigprocmask(SIG_SETMASK, &none, NULL);
}

static const char *variable(char **env, const char *name)
{
    size_t n = strlen(name);
    for (; *env; env++)
        if (!strncmp(*env, name, n) && (*env)[n] == '=')
            return *env + n + 1;
    return NULL;
}

/* Return the program to start: as named, or of the PATH of its environment; NULL if none. */
static const char *find_program(const char *name, char **env, const char *cwd)
{
    static char path[8192];
    struct stat about;
    const char *from = variable(env, "PATH");

    if (strchr(name, '/'))
        return name;
    for (from = from ? from : "/bin:/usr/bin"; from; from = strchr(from, ':')) {
        from += *from == ':';
        int n = (int)strcspn(from, ":");
        int w = *from == '/' ? snprintf(path, sizeof path, "%.*s/%s", n, from, name)
                             : snprintf(path, sizeof path, "%s/%.*s%s%s", cwd, n, from,
                                        n ? "/" : "", name);
        if (w < (int)sizeof path && access(path, X_OK) == 0 && stat(path, &about) == 0 &&
            !S_ISDIR(about.st_mode))
            return path;
        if (!from[n])
            break;
    }
    return NULL;
}

/* Order "run" or "become": op, number, cwd, "WORDS-OF-ARGV [USER]", argv, environment. */
struct program {
    const char *path, *cwd, *user; /* "UID:GID[,GID...]", or NULL for root */
    char **argv, **env;
};

static int read_program(struct program *p)
{
    long words = number(3);
    if (n_fields < 5 || words < 1 || (size_t)words > n_fields - 4) {
        errno = EINVAL;
        return -1;
    }
    /* argv needs a NULL at its end, where the environment begins: moved up by one. */
    p->cwd = fields[2];
    p->user = strchr(fields[3], ' ');
    p->argv = fields + 3;
    memmove(p->argv, fields + 4, (size_t)words * sizeof *fields);
    p->argv[words] = NULL;
    p->env = fields + 4 + words;
    p->path = find_program(p->argv[0], p->env, p->cwd);
    errno = ENOENT;
    return p->path ? 0 : -1;
}

/* Only in the new process: it may share our memory, so neither it nor a library keeps accounts. */
static int become_user(const char *user)
{
    gid_t groups[MAX_GROUPS];
    size_t n = 0;
    char *at;
    uid_t uid = (uid_t)strtoul(user, &at, 10);

    errno = EINVAL;
    if (*at != ':')
        return -1;
    gid_t gid = (gid_t)strtoul(at + 1, &at, 10);
    while (*at == ',' && n < MAX_GROUPS)
        groups[n++] = (gid_t)strtoul(at + 1, &at, 10);
    if (*at)
        return -1;
    if (syscall(SYS_setgroups, n, groups) < 0 || syscall(SYS_setresgid, gid, gid, gid) < 0)
        return -1;
    return (int)syscall(SYS_setresuid, uid, uid, uid);
}

/* In the new process: streams, directory, program. Returns with errno only when it failed. */
static void start_program(const struct program *p)
{
    int high[MAX_FDS];

    if (chdir(p->cwd) < 0)
        return;
    for (size_t i = 0; i < n_fds; i++)
        if ((high[i] = fcntl(fds[i], F_DUPFD_CLOEXEC, HIGH)) < 0)
            return;
    close_range(3, ~0U, CLOSE_RANGE_CLOEXEC);
    for (size_t i = 0; i < n_fds; i++)
        if (dup2(high[i], (int)i) < 0)
            return;
    if (p->user && become_user(p->user + 1) < 0)
        return;
    unblock();
    execve(p->path, p->argv, p->env);
}

static __attribute__((noinline)) pid_t spawn(const struct program *p, volatile int *why)
{
    pid_t pid = vfork();
    if (pid == 0) {
        setsid();
        start_program(p);
        *why = errno;
        _exit(127);
    }
    return pid;
}

static void run(int alone)
{
    struct program p;
    struct run new = {.number = number(1)};
    volatile int why = 0;

    if (read_program(&p) < 0) {
        if (errno == ENOENT)
            say(CONTROL, -1, "failed\1%s\1%d\1no such program in the box's PATH", fields[1], errno);
        else
            failed(errno);
        return;
    }
    last_run = alone;
    if (!alone)
        new.before = processes(&new.n_before);
    new.pid = spawn(&p, &why);
    if (new.pid < 0 || why) {
        int reason = new.pid < 0 ? errno : why;
        if (new.pid > 0)
            while (waitpid(new.pid, NULL, 0) < 0 && errno == EINTR)
                ;
        failed(reason);
        free(new.before);
        return;
    }
    runs = grown(runs, n_runs, &room_runs, sizeof *runs);
    runs[n_runs++] = new;
    if (!alone)
        say(CONTROL, -1, "started\1%ld\1%d", new.number, new.pid);
}

static void kill_run(long which, int with, int everything)
{
    struct run *mine = NULL;

    for (size_t i = 0; i < n_runs; i++)
        if (runs[i].number == which)
            mine = &runs[i];
    if (!mine)
        return;
    if (!everything) {
        kill(mine->pid, with);
        return;
    }
    if (n_runs == 1 && mine->n_before == 0) {
        kill(-1, with); /* all at once: nothing can fork away */
        return;
    }
    for (int attempt = 0; attempt < 64; attempt++) { /* while something forks away */
        size_t n, doomed = 0;
        struct process *all = processes(&n);
        for (size_t i = 0; i < n; i++)
            if (!spared(&all[i], all, n, mine)) {
                kill(all[i].pid, with);
                doomed++;
            }
        free(all);
        if (!doomed)
            break;
    }
}

static int open_inside(const char *path, int flags, mode_t mode)
{
    /* This process never leaves its "/", and what it starts has a directory of its own. */
    struct open_how how = {.flags = (uint64_t)(unsigned)flags | O_CLOEXEC,
                           .mode = mode,
                           .resolve = RESOLVE_IN_ROOT | RESOLVE_NO_MAGICLINKS};
    return (int)syscall(SYS_openat2, AT_FDCWD, path, &how, sizeof how);
}

/* Open the directory that a path's last name is in, and point to that name. */
static int directory_of(char *path, const char **name)
{
    size_t n = strlen(path);
    while (n > 1 && path[n - 1] == '/')
        path[--n] = '\0';
    char *slash = strrchr(path, '/');
    *name = slash ? slash + 1 : path;
    if (slash)
        *slash = '\0';
    return open_inside(slash && *path ? path : "/", O_PATH | O_DIRECTORY, 0);
}

static int rename_inside(char *from, char *to)
{
    const char *old, *new;
    int one = directory_of(from, &old);
    if (one < 0)
        return -1;
    int other = directory_of(to, &new), why = errno;
    int done = other < 0 ? -1 : renameat(one, old, other, new);
    if (other >= 0) {
        why = errno;
        close(other);
    }
    close(one);
    errno = why;
    return done;
}

/* mkdir or remove: the last name of a path, in its directory. */
static int change(const char *op, char *path)
{
    const char *name;
    int fd = directory_of(path, &name);
    if (fd < 0)
        return -1;
    int done;
    if (!strcmp(op, "mkdir"))
        done = mkdirat(fd, name, 0755);
    else if ((done = unlinkat(fd, name, 0)) < 0 && errno == EISDIR)
        done = unlinkat(fd, name, AT_REMOVEDIR);
    int why = errno;
    close(fd);
    errno = why;
    return done;
}

static void become(void)
{
    struct program p;
    int why;

    if (read_program(&p) < 0)
        why = errno;
    else {
        start_program(&p);
        why = errno;
    }
    say(CONTROL, -1, "error\1taking orders\1%d\1%s", why, strerror(why));
    _exit(1);
}

static void obey(void)
{
    const char *op = fields[0], *n = n_fields > 1 ? fields[1] : "0";
    int done = 0;

    if (!strcmp(op, "init")) {
        say(CONTROL, -1, "ready");
    } else if (!strcmp(op, "become")) {
        become();
    } else if (!strcmp(op, "run") || !strcmp(op, "once")) {
        run(!strcmp(op, "once"));
    } else if (!strcmp(op, "kill")) {
        kill_run(number(1), (int)number(2), (int)number(3));
        reap();
    } else if (!strcmp(op, "open") && n_fields == 4) {
        int flags = (int)number(3);
        int fd = open_inside(fields[2], flags, flags & O_CREAT ? 0644 : 0);
        if (fd < 0) {
            done = -1;
        } else {
            say(CONTROL, fd, "done\1%s", n);
            close(fd);
        }
    } else if (!strcmp(op, "socket")) {
        int fd = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
        if (fd < 0) {
            done = -1;
        } else {
            say(CONTROL, fd, "done\1%s", n);
            close(fd);
        }
    } else if (!strcmp(op, "pause") || !strcmp(op, "resume")) {
        kill(-1, *op == 'p' ? SIGSTOP : SIGCONT);
        say(CONTROL, -1, "done\1%s", n);
    } else if ((!strcmp(op, "mkdir") || !strcmp(op, "remove")) && n_fields == 3) {
        done = change(op, fields[2]);
        if (done == 0)
            say(CONTROL, -1, "done\1%s", n);
    } else if (!strcmp(op, "rename") && n_fields == 4) {
        done = rename_inside(fields[2], fields[3]);
        if (done == 0)
            say(CONTROL, -1, "done\1%s", n);
    } else {
        errno = ENOSYS;
        done = -1;
    }
    if (done < 0)
        failed(errno);
    close_fds();
}

static __attribute__((noreturn)) void serve_box(void)
{
    sigset_t child;
    sigemptyset(&child);
    sigaddset(&child, SIGCHLD);
    sigprocmask(SIG_BLOCK, &child, NULL);
    int ended = signalfd(-1, &child, SFD_CLOEXEC | SFD_NONBLOCK);
    struct pollfd both[] = {{.fd = CONTROL, .events = POLLIN}, {.fd = ended, .events = POLLIN}};

    if (ended < 0)
        _exit(1);
    /* Look up what a start will need, while nobody waits. */
    if (access("/bin/sh", X_OK) < 0 || access("/etc/ld.so.cache", R_OK) < 0)
        errno = 0;
    for (;;) {
        if (poll(both, 2, -1) < 0) {
            if (errno == EINTR)
                continue;
            _exit(1);
        }
        if (both[1].revents) {
            struct signalfd_siginfo told;
            while (read(ended, &told, sizeof told) > 0)
                ;
            reap();
        }
        if (both[0].revents) {
            if (!hear(CONTROL))
                _exit(0); /* and with the first process all others end */
            obey();
        }
    }
}

static __attribute__((noreturn)) void start_box(const struct order *o, int control, int go)
{
    const char *step = "clearing descriptors";
    char word;

    if (read(go, &word, 1) != 1)
        _exit(1);
    if (only_these(control) < 0)
        _exit(1);
    setsid();
    step = "mounting the root";
    if (mount_root(o) < 0)
        goto failed;
    step = "giving up privileges";
    where = "hostname";
    if (sethostname(o->hostname, strlen(o->hostname)) < 0 || confine(o) < 0)
        goto failed;
    serve_box();
failed:;
    int why = errno;
    say(CONTROL, -1, "error\1%s\1%d\1%s (%s)", step, why, strerror(why), where);
    _exit(1);
}

/* --- The zygote (zygote.py) -------------------------------------------------------------------- */

/* Return a new network namespace in which nothing but loopback is up. */
static int new_network(void)
{
    struct ifreq lo = {.ifr_name = "lo"};

    where = "network";
    if (unshare(CLONE_NEWNET) < 0)
        return -1;
    int s = socket(AF_INET, SOCK_DGRAM | SOCK_CLOEXEC, 0);
    if (s < 0)
        return -1;
    lo.ifr_flags = IFF_UP | IFF_RUNNING;
    int done = ioctl(s, SIOCSIFFLAGS, &lo);
    close(s);
    return done < 0 ? -1 : open("/proc/self/ns/net", O_RDONLY | O_CLOEXEC);
}

static int map_ids(pid_t pid, const char *name)
{
    static const char all[] = "0 0 1\n1 1 65535"; /* two ranges: see zygote.py */
    char path[64];

    snprintf(path, sizeof path, "/proc/%d/%s", pid, name);
    where = name;
    int fd = open(path, O_WRONLY | O_CLOEXEC);
    if (fd < 0)
        return -1;
    ssize_t n = write(fd, all, sizeof all - 1);
    int why = errno;
    close(fd);
    errno = why;
    return n < 0 ? -1 : 0;
}

/* Clone a box; 0, or -1 with errno when there is no process. */
static int clone_box(const struct order *o, int network)
{
    int go[2], pidfd = -1;
    struct clone_args a = {.flags = BOX_NAMESPACES | CLONE_PIDFD | CLONE_PARENT,
                           .pidfd = (uint64_t)(uintptr_t)&pidfd};

    where = "setns";
    if (setns(network, CLONE_NEWNET) < 0)
        return -1;
    where = "pipe";
    if (pipe2(go, O_CLOEXEC) < 0)
        return -1;
    if (n_fds > 1) {
        a.flags |= CLONE_INTO_CGROUP;
        a.cgroup = (uint64_t)fds[1];
    }
    where = "clone3";
    pid_t pid = (pid_t)syscall(SYS_clone3, &a, sizeof a);
    if (pid == 0) {
        close(go[1]);
        start_box(o, fds[0], go[0]);
    }
    int why = errno;
    if (pid > 0) {
        char reason[256] = "";
        /* Without the word the box ends by itself; the supervisor waits for it. */
        if (map_ids(pid, "uid_map") < 0 || map_ids(pid, "gid_map") < 0 || write(go[1], "1", 1) < 0)
            snprintf(reason, sizeof reason, "%s: %s", where, strerror(errno));
        say(LINK, pidfd, "born\1%s\1%d\1%s", o->id, pid, reason);
        close(pidfd);
    }
    close(go[0]);
    close(go[1]);
    errno = why;
    return pid < 0 ? -1 : 0;
}

/* The world, as zygote.py writes it: in the machine's byte order, strings ended by NUL. */
static int read_world(void)
{
    struct stat about;
    uint32_t n;

    if (fstat(WORLD, &about) < 0)
        return -1;
    char *all = malloc((size_t)about.st_size), *at = all;
    if (!all || pread(WORLD, all, (size_t)about.st_size, 0) != about.st_size)
        return -1;
    close(WORLD);
    memcpy(&world.keep, at, 8);
    memcpy(&n, at += 8, 4);
    at += 4;
    if (n > MAX_FILTERS)
        return -1;
    for (world.n_filters = n; n; n--) {
        struct sock_fprog *f = &world.filters[world.n_filters - n];
        uint32_t length;
        memcpy(&length, at, 4);
        f->len = (unsigned short)(length / sizeof(struct sock_filter));
        f->filter = (struct sock_filter *)malloc(length);
        if (!f->filter)
            return -1;
        memcpy(f->filter, at + 4, length);
        at += 4 + length;
    }
    for (; at < all + about.st_size && world.n_binds < MAX_BINDS; at += strlen(at) + 1)
        world.binds[world.n_binds++] = at;
    return at == all + about.st_size ? 0 : -1;
}

int main(void)
{
    int spare[MAX_SPARE];
    long n_spare = 0, wanted = 0;

    for (int s = 1; s < NSIG; s++)
        signal(s, SIG_DFL); /* Python ignores some, and that would be passed on */
    unblock();
    prctl(PR_SET_DUMPABLE, 1, 0, 0, 0); /* as zygote.py: boxes' id maps are written through /proc */
    if (fcntl(RULES_IN, F_GETFD) >= 0)
        world.rules = RULES_IN;
    if (read_world() < 0) {
        say(LINK, -1, "error\1the zygote does not understand its plan");
        return 1;
    }
    say(LINK, -1, "ready\1compiled");
    for (;;) {
        struct pollfd link = {.fd = LINK, .events = POLLIN};
        /* Network namespaces are made ahead, but not while a box may be starting. */
        if (n_spare < wanted && poll(&link, 1, 8) == 0) {
            int network = new_network();
            if (network < 0)
                wanted = 0; /* the next order meets the same error, and there it is told */
            else
                spare[n_spare++] = network;
            continue;
        }
        if (!hear(LINK))
            return 0;
        if (n_fields != 9 || n_fds < 1)
            return 1;
        struct order o = {.id = fields[1],
                          .disk = fields[3],
                          .inodes = fields[4],
                          .read_only = (int)number(5),
                          .hostname = fields[6],
                          .files = (rlim_t)number(7),
                          .processes = (rlim_t)number(8)};
        wanted = number(2) < MAX_SPARE ? number(2) : MAX_SPARE;
        int network = n_spare ? spare[--n_spare] : new_network();
        if (network < 0 || clone_box(&o, network) < 0)
            say(LINK, -1, "failed\1%s\1%s: %s", o.id, where, strerror(errno));
        if (network >= 0)
            close(network);
        close_fds();
    }
}
