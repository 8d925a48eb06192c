/* Process 1 of a microVM: sets the guest up, runs programs for the host, stops and wakes them.
 *
 * The whole initramfs is this static program (and modules that the kernel has not built in). The
 * host's side is tegu/sandbox/vm/channel.py; both speak frames over one virtio-serial port:
 *
 *     u32 length, u32 kind, u32 id (little-endian), then `length` bytes
 *
 * `id` names a run. Kinds from the host: R run, S a secret's bytes, I standard input (empty: its
 * end), C credit for an output, K signal, G get a file, P put a file, L list a directory, M mkdir,
 * D remove, F freeze, T thaw with a new identity. From the guest: H ready for the first time, o e
 * output (empty: its end), c credit for input, x a run's end, f a run or order that failed, F
 * frozen, T thawed.
 *
 * Each stream may have WINDOW bytes on the way that its reader has not taken; who reads slowly
 * holds up its own run only.
 */
#define _GNU_SOURCE
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <grp.h>
#include <linux/random.h>
#include <net/if.h>
#include <poll.h>
#include <signal.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/mount.h>
#include <sys/reboot.h>
#include <sys/resource.h>
#include <sys/signalfd.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/sysmacros.h>
#include <sys/vfs.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

enum { WINDOW = 256 * 1024, CHUNK = 32 * 1024, MAX_PAYLOAD = 160 * 1024, MAX_SECRETS = 32 };
enum { HEADER = 12, FIRST_SECRET = 3, SETTLE_MS = 10000 };

struct run {
    struct run *next;
    uint32_t id;
    pid_t pid;
    int in, out[2];      /* our ends of its pipes; -1 when closed */
    uint32_t credit[2];  /* bytes of each output that the host still takes */
    char *input;         /* what its stdin has not taken yet */
    size_t input_length, input_room;
    int input_ends, is_program, ended, status;
    struct rusage usage;
    int secrets[MAX_SECRETS];
    unsigned n_secrets;
};

static struct run *runs;
static int port = -1, groups = -1, signals = -1, boot_id = -1, machine_id = -1;
static char *pending; /* frames that the port has not taken yet */
static size_t pending_length, pending_room;
static char incoming[HEADER + MAX_PAYLOAD];
static size_t incoming_length;
static uint32_t left_behind[256]; /* groups of ended runs that still hold processes */
static unsigned n_left;
static unsigned long most_files = 1024;
static char most_pids[24];
static int frozen;

static void die(const char *what)
{
    fprintf(stderr, "tegu guest: %s: %s\n", what, strerror(errno));
    sync();
    reboot(RB_AUTOBOOT); /* the host's QEMU ends then; without ACPI there is no other way */
    _exit(1);
}

/* --- Frames ---------------------------------------------------------------------------------- */

static void flush(void)
{
    size_t done = 0;
    while (done < pending_length) {
        ssize_t n = write(port, pending + done, pending_length - done);
        if (n <= 0)
            break;
        done += (size_t)n;
    }
    if (done) {
        memmove(pending, pending + done, pending_length - done);
        pending_length -= done;
    }
}

static void send_frame(char kind, uint32_t id, const void *data, size_t length)
{
    uint32_t header[3] = {(uint32_t)length, (uint32_t)kind, id};
    if (pending_length + HEADER + length > pending_room) {
        size_t room = 2 * (pending_length + HEADER + length);
        char *more = realloc(pending, room);
        if (!more)
            die("memory for a frame");
        pending = more;
        pending_room = room;
    }
    memcpy(pending + pending_length, header, HEADER);
    if (length)
        memcpy(pending + pending_length + HEADER, data, length);
    pending_length += HEADER + length;
    flush();
}

static void send_number(char kind, uint32_t id, uint32_t number)
{
    send_frame(kind, id, &number, sizeof number);
}

static void fail(uint32_t id, int error)
{
    char text[256];
    int n = snprintf(text, sizeof text, "%d%c%s", error, 0, strerror(error));
    send_frame('f', id, text, (size_t)n);
}

/* --- Small files ----------------------------------------------------------------------------- */

static int write_at(int directory, const char *path, const char *text)
{
    int fd = openat(directory, path, O_WRONLY | O_CLOEXEC | O_TRUNC);
    if (fd < 0)
        return -1;
    ssize_t n = write(fd, text, strlen(text));
    int error = errno;
    close(fd);
    errno = error;
    return n < 0 ? -1 : 0;
}

static long number_at(int directory, const char *path, const char *key)
{
    char text[1024];
    int fd = openat(directory, path, O_RDONLY | O_CLOEXEC);
    if (fd < 0)
        return -1;
    ssize_t n = read(fd, text, sizeof text - 1);
    close(fd);
    if (n < 0)
        return -1;
    text[n] = '\0';
    for (char *line = text; line && *line; line = strchr(line, '\n'), line += line != NULL)
        if (!strncmp(line, key, strlen(key)) && line[strlen(key)] == ' ')
            return strtol(line + strlen(key), NULL, 10);
    return -1;
}

static void group_of(uint32_t id, const char *file, char *path, size_t room)
{
    snprintf(path, room, "box/r%u%s%s", id, *file ? "/" : "", file);
}

/* --- Runs ------------------------------------------------------------------------------------ */

static struct run *find_run(uint32_t id)
{
    for (struct run *r = runs; r; r = r->next)
        if (r->id == id)
            return r;
    return NULL;
}

static struct run *new_run(uint32_t id)
{
    struct run *r = calloc(1, sizeof *r);
    if (!r)
        die("memory for a run");
    r->id = id;
    r->in = r->out[0] = r->out[1] = -1;
    r->credit[0] = r->credit[1] = WINDOW;
    r->next = runs;
    runs = r;
    return r;
}

static void close_to(int *fd)
{
    if (*fd >= 0)
        close(*fd);
    *fd = -1;
}

static void drop_run(struct run *r)
{
    struct run **at = &runs;
    while (*at != r)
        at = &(*at)->next;
    *at = r->next;
    close_to(&r->in);
    close_to(&r->out[0]);
    close_to(&r->out[1]);
    for (unsigned i = 0; i < r->n_secrets; i++)
        close_to(&r->secrets[i]);
    free(r->input);
    free(r);
}

static void take_secret(uint32_t id, const char *data, size_t length)
{
    struct run *r = find_run(id);
    if (!r)
        r = new_run(id);
    if (length < 1 || (unsigned char)data[0] >= MAX_SECRETS)
        return;
    unsigned index = (unsigned char)data[0];
    while (r->n_secrets <= index)
        r->secrets[r->n_secrets++] = memfd_create("secret", MFD_CLOEXEC | MFD_ALLOW_SEALING);
    for (size_t done = 1; done < length;) {
        ssize_t n = write(r->secrets[index], data + done, length - done);
        if (n <= 0)
            return;
        done += (size_t)n;
    }
}

static void limit(int what, rlim_t most)
{
    struct rlimit l = {most, most};
    setrlimit(what, &l);
}

static void read_file(const char *path)
{
    struct statfs about;
    struct stat file;
    char data[CHUNK];
    int fd = open(path, O_RDONLY | O_CLOEXEC | O_NONBLOCK | O_NOCTTY);
    if (fd < 0)
        _exit(errno);
    if (fstat(fd, &file) < 0 || !S_ISREG(file.st_mode) || fstatfs(fd, &about) < 0)
        _exit(EINVAL);
    for (ssize_t n; (n = read(fd, data, sizeof data)) != 0;) {
        if (n < 0)
            _exit(errno);
        for (ssize_t done = 0; done < n;) {
            ssize_t put = write(1, data + done, (size_t)(n - done));
            if (put < 0)
                _exit(errno);
            done += put;
        }
    }
    _exit(0);
}

static void write_file(const char *path)
{
    struct stat file;
    char data[CHUNK];
    int fd = open(path, O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC | O_NONBLOCK | O_NOCTTY, 0644);
    if (fd < 0)
        _exit(errno);
    if (fstat(fd, &file) < 0 || !S_ISREG(file.st_mode))
        _exit(EINVAL);
    for (ssize_t n; (n = read(0, data, sizeof data)) != 0;) {
        if (n < 0)
            _exit(errno);
        for (ssize_t done = 0; done < n;) {
            ssize_t put = write(fd, data + done, (size_t)(n - done));
            if (put < 0)
                _exit(errno);
            done += put;
        }
    }
    _exit(close(fd) < 0 ? errno : 0);
}

static void list_directory(const char *path)
{
    DIR *directory = opendir(path);
    if (!directory)
        _exit(errno);
    for (struct dirent *e; (e = readdir(directory));) {
        struct stat about;
        if (!strcmp(e->d_name, ".") || !strcmp(e->d_name, "..") ||
            fstatat(dirfd(directory), e->d_name, &about, AT_SYMLINK_NOFOLLOW) < 0)
            continue;
        printf("%o %lld %s%c", about.st_mode, (long long)about.st_size, e->d_name, 0);
    }
    _exit(fflush(stdout) ? EIO : 0);
}

static void remove_path(const char *path)
{
    if (unlink(path) < 0 && (errno != EISDIR || rmdir(path) < 0))
        _exit(errno);
    _exit(0);
}

/* "UID:GID[,GID...]" */
static int become_user(const char *user)
{
    gid_t groups[64];
    size_t n = 0;
    char *at;
    uid_t uid = (uid_t)strtoul(user, &at, 10);

    errno = EINVAL;
    if (*at != ':')
        return -1;
    gid_t gid = (gid_t)strtoul(at + 1, &at, 10);
    while (*at == ',' && n < sizeof groups / sizeof *groups)
        groups[n++] = (gid_t)strtoul(at + 1, &at, 10);
    if (*at)
        return -1;
    if (setgroups(n, groups) < 0 || setresgid(gid, gid, gid) < 0)
        return -1;
    return setresuid(uid, uid, uid);
}

/* In the new process: become what the order says. `error` tells the errno of a failed start. */
static void become(struct run *r, char kind, char *data, size_t length, int error)
{
    char path[64];
    sigset_t none;

    sigemptyset(&none);
    sigprocmask(SIG_SETMASK, &none, NULL);
    setsid();
    group_of(r->id, "cgroup.procs", path, sizeof path);
    write_at(groups, path, "0");
    if (kind != 'R')
        close_range(3, ~0U, 0); /* it starts no program, which would close its copies of pipes */
    if (kind == 'G')
        read_file(data);
    if (kind == 'P')
        write_file(data);
    if (kind == 'L')
        list_directory(data);
    if (kind == 'M')
        _exit(mkdir(data, 0755) < 0 ? errno : 0);
    if (kind == 'D')
        remove_path(data);
    char **words = calloc(length + 2, sizeof *words);
    size_t n = 0;
    for (size_t at = 0; words && at <= length; at += strlen(data + at) + 1)
        words[n++] = data + at;
    size_t argc = n > 1 ? strtoul(words[1], NULL, 10) : 0;
    int problem = EINVAL;
    if (argc >= 1 && argc + 2 <= n) {
        char **argv = calloc(argc + 1, sizeof *argv);
        memcpy(argv, words + 2, argc * sizeof *argv);
        environ = words + 2 + argc;
        for (unsigned i = 0; i < r->n_secrets; i++) {
            lseek(r->secrets[i], 0, SEEK_SET);
            fcntl(r->secrets[i], F_ADD_SEALS,
                  F_SEAL_WRITE | F_SEAL_GROW | F_SEAL_SHRINK | F_SEAL_SEAL);
            /* All of ours lie above: they were opened while runs' pipes were. */
            dup2(r->secrets[i], (int)(FIRST_SECRET + i));
        }
        limit(RLIMIT_CORE, 0);
        limit(RLIMIT_NOFILE, most_files);
        char *user = strchr(words[1], ' ');
        if (chdir(words[0]) == 0 && (!user || become_user(user + 1) == 0))
            execvp(argv[0], argv);
        problem = errno;
    }
    if (write(error, &problem, sizeof problem) < 0)
        _exit(126);
    _exit(127);
}

static int pipes(int in[2], int out[2], int err[2], int error[2])
{
    return pipe2(in, O_CLOEXEC) | pipe2(out, O_CLOEXEC) | pipe2(err, O_CLOEXEC) |
           pipe2(error, O_CLOEXEC);
}

/* Above every number that a program is given. */
static int high(int fd)
{
    int up = fcntl(fd, F_DUPFD_CLOEXEC, 64);
    close(fd);
    return up;
}

static void start(char kind, uint32_t id, char *data, size_t length)
{
    int in[2], out[2], err[2], error[2], problem = 0;
    char path[64];
    struct run *r = find_run(id);

    if (r && r->pid)
        return fail(id, EEXIST);
    if (!r)
        r = new_run(id);
    for (unsigned i = 0; i < r->n_secrets; i++)
        r->secrets[i] = high(r->secrets[i]);
    if (pipes(in, out, err, error) < 0)
        die("pipes for a run");
    group_of(id, "", path, sizeof path);
    mkdirat(groups, path, 0755);
    fflush(NULL);
    pid_t pid = fork();
    if (pid == 0) {
        int up = fcntl(error[1], F_DUPFD_CLOEXEC, 64);
        dup2(in[0], 0);
        dup2(out[1], 1);
        dup2(err[1], 2);
        become(r, kind, data, length, up);
    }
    close(in[0]);
    close(out[1]);
    close(err[1]);
    close(error[1]);
    r->in = in[1];
    r->out[0] = out[0];
    r->out[1] = err[0];
    if (pid < 0)
        problem = errno;
    else if (kind == 'R' && read(error[0], &problem, sizeof problem) > 0)
        waitpid(pid, NULL, 0);
    close(error[0]);
    if (problem) {
        unlinkat(groups, path, AT_REMOVEDIR);
        drop_run(r);
        return fail(id, problem);
    }
    r->pid = pid;
    r->is_program = kind == 'R';
    fcntl(r->in, F_SETFL, O_NONBLOCK);
    fcntl(r->out[0], F_SETFL, O_NONBLOCK);
    fcntl(r->out[1], F_SETFL, O_NONBLOCK);
}

static void feed(struct run *r)
{
    size_t done = 0;
    while (done < r->input_length && r->in >= 0) {
        ssize_t n = write(r->in, r->input + done, r->input_length - done);
        if (n < 0 && errno == EAGAIN)
            break;
        if (n <= 0) {
            close_to(&r->in);
            n = (ssize_t)(r->input_length - done); /* nobody reads it: it counts as taken */
        }
        done += (size_t)n;
    }
    if (r->in < 0)
        done = r->input_length;
    if (done) {
        memmove(r->input, r->input + done, r->input_length - done);
        r->input_length -= done;
        send_number('c', r->id, (uint32_t)done);
    }
    if (r->input_ends && !r->input_length)
        close_to(&r->in);
}

static void take_input(struct run *r, const char *data, size_t length)
{
    if (!length)
        r->input_ends = 1;
    if (r->input_length + length > r->input_room) {
        size_t room = r->input_length + length + WINDOW;
        char *more = realloc(r->input, room);
        if (!more)
            die("memory for input");
        r->input = more;
        r->input_room = room;
    }
    memcpy(r->input + r->input_length, data, length);
    r->input_length += length;
    feed(r);
}

/* Send what an output holds, as far as there is credit; 0 when there was nothing. */
static int drain(struct run *r, int which)
{
    char data[CHUNK];
    size_t most = r->credit[which] < sizeof data ? r->credit[which] : sizeof data;
    if (r->out[which] < 0 || !most)
        return 0;
    ssize_t n = read(r->out[which], data, most);
    if (n < 0)
        return 0;
    if (n == 0)
        close_to(&r->out[which]);
    r->credit[which] -= (uint32_t)n;
    send_frame(which ? 'e' : 'o', r->id, data, (size_t)n);
    return n > 0;
}

static int holds_more(struct run *r, int which)
{
    int count = 0;
    return r->out[which] >= 0 && ioctl(r->out[which], FIONREAD, &count) == 0 && count > 0;
}

/* A run has ended and all that it wrote was sent: say how. */
static void report(struct run *r)
{
    char text[160], path[64], kills[64];
    const struct rusage *u = &r->usage;
    group_of(r->id, "", path, sizeof path);
    group_of(r->id, "memory.events", kills, sizeof kills);
    int starved = number_at(groups, kills, "oom_kill") > 0;
    int n = snprintf(text, sizeof text, "%d%c%ld.%06ld%c%ld.%06ld%c%ld%c%d", r->status, 0,
                     (long)u->ru_utime.tv_sec, (long)u->ru_utime.tv_usec, 0,
                     (long)u->ru_stime.tv_sec, (long)u->ru_stime.tv_usec, 0, u->ru_maxrss, 0,
                     starved);
    if (!r->is_program && WIFEXITED(r->status) && WEXITSTATUS(r->status))
        fail(r->id, WEXITSTATUS(r->status));
    else
        send_frame('x', r->id, text, (size_t)n);
    if (unlinkat(groups, path, AT_REMOVEDIR) < 0 && errno == EBUSY &&
        n_left < sizeof left_behind / sizeof *left_behind)
        left_behind[n_left++] = r->id;
    drop_run(r);
}

static void sweep_groups(void)
{
    char path[64];
    for (unsigned i = 0; i < n_left;) {
        group_of(left_behind[i], "", path, sizeof path);
        if (unlinkat(groups, path, AT_REMOVEDIR) < 0 && errno == EBUSY)
            i++;
        else
            left_behind[i] = left_behind[--n_left];
    }
}

static void reap(void)
{
    int status;
    struct rusage usage;
    for (pid_t pid; (pid = wait4(-1, &status, WNOHANG, &usage)) > 0;)
        for (struct run *r = runs; r; r = r->next)
            if (r->pid == pid) {
                r->ended = 1;
                r->status = status;
                r->usage = usage;
            }
    sweep_groups();
}

static void kill_run(struct run *r, uint32_t number, uint32_t everything)
{
    char path[64];
    group_of(r->id, "cgroup.kill", path, sizeof path);
    if (everything)
        write_at(groups, path, "1");
    if (!r->ended)
        kill(r->pid, (int)number);
}

/* --- Sleep and waking ------------------------------------------------------------------------ */

static void freeze(uint32_t id)
{
    struct timespec pause = {0, 1000000};
    /* An emulated guest that wakes translates each path of its kernel anew: what need not be done
     * is not. */
    frozen = number_at(groups, "box/cgroup.events", "populated") != 0;
    if (frozen)
        write_at(groups, "box/cgroup.freeze", "1");
    for (int i = 0; frozen && number_at(groups, "box/cgroup.events", "frozen") != 1; i++) {
        if (i == SETTLE_MS) {
            write_at(groups, "box/cgroup.freeze", "0");
            frozen = 0;
            return fail(id, ETIMEDOUT);
        }
        nanosleep(&pause, NULL);
    }
    sync();
    send_frame('F', id, NULL, 0);
}

static int unhex(const char *text, unsigned char *to, size_t most)
{
    size_t n = 0;
    for (unsigned byte; n < most && sscanf(text + 2 * n, "%2x", &byte) == 1; n++)
        to[n] = (unsigned char)byte;
    return (int)n;
}

/* Fields: seed (hexadecimal), nanoseconds since 1970, host name, machine id, boot id, the most
 * processes of all, the most files of each. A guest that was restored has the random state, clock
 * and names of the one that was saved, until here. */
static void thaw(uint32_t id, char *data, size_t length)
{
    char *fields[7];
    size_t n = 0;
    for (size_t at = 0; n < 7 && at <= length; at += strlen(data + at) + 1)
        fields[n++] = data + at;
    if (n < 7)
        return fail(id, EINVAL);
    struct {
        struct rand_pool_info head;
        unsigned char bytes[64];
    } seed = {{0, 0}, {0}};
    seed.head.buf_size = unhex(fields[0], seed.bytes, sizeof seed.bytes);
    seed.head.entropy_count = 8 * seed.head.buf_size;
    int random = open("/dev/urandom", O_RDWR | O_CLOEXEC);
    if (random < 0 || ioctl(random, RNDADDENTROPY, &seed) < 0 || ioctl(random, RNDRESEEDCRNG) < 0)
        return fail(id, errno); /* no program may run with another guest's randomness */
    close(random);
    memset(&seed, 0, sizeof seed);
    unsigned long long now = strtoull(fields[1], NULL, 10);
    struct timespec time = {(time_t)(now / 1000000000), (long)(now % 1000000000)};
    if (clock_settime(CLOCK_REALTIME, &time) < 0 ||
        sethostname(fields[2], strlen(fields[2])) < 0)
        return fail(id, errno);
    char line[80];
    snprintf(line, sizeof line, "%s\n", fields[3]);
    if (pwrite(machine_id, line, strlen(line), 0) < 0)
        return fail(id, errno);
    snprintf(line, sizeof line, "%s\n", fields[4]);
    if (pwrite(boot_id, line, strlen(line), 0) < 0)
        return fail(id, errno);
    most_files = strtoul(fields[6], NULL, 10);
    if (strcmp(most_pids, fields[5])) {
        if (write_at(groups, "box/pids.max", fields[5]) < 0)
            return fail(id, errno);
        snprintf(most_pids, sizeof most_pids, "%s", fields[5]);
    }
    if (frozen && write_at(groups, "box/cgroup.freeze", "0") < 0)
        return fail(id, errno);
    frozen = 0;
    send_frame('T', id, NULL, 0);
}

/* --- Orders ---------------------------------------------------------------------------------- */

static void obey(char kind, uint32_t id, char *data, size_t length)
{
    struct run *r = find_run(id);
    uint32_t numbers[2] = {0, 0};
    memcpy(numbers, data, length < sizeof numbers ? length : sizeof numbers);
    data[length] = '\0';
    switch (kind) {
    case 'R': case 'G': case 'P': case 'L': case 'M': case 'D':
        return start(kind, id, data, length);
    case 'S':
        return take_secret(id, data, length);
    case 'I':
        return r ? take_input(r, data, length) : (void)0;
    case 'C':
        if (r && (numbers[0] == 1 || numbers[0] == 2))
            r->credit[numbers[0] - 1] += numbers[1];
        return;
    case 'K':
        return r ? kill_run(r, numbers[0], numbers[1]) : (void)0;
    case 'F':
        return freeze(id);
    case 'T':
        return thaw(id, data, length);
    }
    fail(id, ENOSYS);
}

static void hear(void)
{
    static char last[MAX_PAYLOAD + 1];
    ssize_t n = read(port, incoming + incoming_length, sizeof incoming - incoming_length);
    if (n <= 0)
        return;
    incoming_length += (size_t)n;
    size_t at = 0;
    while (incoming_length - at >= HEADER) {
        uint32_t header[3];
        memcpy(header, incoming + at, HEADER);
        if (header[0] > MAX_PAYLOAD)
            die("a frame that is too long");
        if (incoming_length - at < HEADER + header[0])
            break;
        memcpy(last, incoming + at + HEADER, header[0]);
        at += HEADER + header[0];
        obey((char)header[1], header[2], last, header[0]);
    }
    memmove(incoming, incoming + at, incoming_length - at);
    incoming_length -= at;
}

static void serve(void)
{
    static struct pollfd fds[1024];
    for (;;) {
        unsigned n = 0;
        fds[n++] = (struct pollfd){port, (short)(POLLIN | (pending_length ? POLLOUT : 0)), 0};
        fds[n++] = (struct pollfd){signals, POLLIN, 0};
        for (struct run *r = runs; r && n + 3 < 1024; r = r->next) {
            if (r->in >= 0 && r->input_length)
                fds[n++] = (struct pollfd){r->in, POLLOUT, 0};
            for (int which = 0; which < 2; which++)
                if (r->out[which] >= 0 && r->credit[which])
                    fds[n++] = (struct pollfd){r->out[which], POLLIN, 0};
        }
        if (poll(fds, n, -1) < 0 && errno != EINTR)
            die("poll");
        if (fds[0].revents & POLLHUP && !(fds[0].revents & POLLIN)) {
            struct timespec pause = {0, 2000000}; /* the host is away: a guest being restored */
            nanosleep(&pause, NULL);
        }
        if (fds[0].revents & POLLOUT)
            flush();
        if (fds[0].revents & POLLIN)
            hear();
        if (fds[1].revents & POLLIN) {
            struct signalfd_siginfo gone;
            if (read(signals, &gone, sizeof gone) > 0)
                reap();
        }
        for (struct run *r = runs, *next; r; r = next) {
            next = r->next;
            if (!r->pid)
                continue;
            if (r->input_length || r->input_ends)
                feed(r);
            drain(r, 0);
            drain(r, 1);
            if (r->ended && !holds_more(r, 0) && !holds_more(r, 1))
                report(r); /* what it left behind may hold its pipes: that is nobody's output */
        }
    }
}

/* --- Setting up ------------------------------------------------------------------------------ */

static void must_mount(const char *what, const char *where, const char *kind, unsigned long flags,
                       const char *options)
{
    if (mount(what, where, kind, flags, options) < 0)
        die(where);
}

/* Return the disk whose serial number is `wanted` as /dev/NAME, or 0. */
static int find_disk(const char *wanted, char *device, size_t room)
{
    DIR *blocks = opendir("/sys/block");
    for (struct dirent *e; blocks && (e = readdir(blocks));) {
        char path[300], serial[32] = "";
        snprintf(path, sizeof path, "/sys/block/%s/serial", e->d_name);
        int fd = open(path, O_RDONLY | O_CLOEXEC);
        if (fd < 0)
            continue;
        ssize_t n = read(fd, serial, sizeof serial - 1);
        close(fd);
        if (n >= (ssize_t)strlen(wanted) && !strncmp(serial, wanted, strlen(wanted))) {
            snprintf(device, room, "/dev/%.64s", e->d_name);
            closedir(blocks);
            return 1;
        }
    }
    if (blocks)
        closedir(blocks);
    return 0;
}

static void load_modules(void)
{
    struct dirent **found;
    int n = scandir("/modules", &found, NULL, alphasort); /* named in the order that they need */
    for (int i = 0; i < n; i++) {
        char path[300];
        snprintf(path, sizeof path, "/modules/%s", found[i]->d_name);
        if (found[i]->d_name[0] == '.')
            continue;
        int fd = open(path, O_RDONLY | O_CLOEXEC);
        if (fd < 0 || (syscall(SYS_finit_module, fd, "", 0) < 0 && errno != EEXIST))
            die(path);
        close(fd);
    }
}

/* Open the one virtio-serial port that there is, which may still be on its way. */
static void find_port(void)
{
    struct timespec pause = {0, 1000000};
    for (int i = 0; i < SETTLE_MS; i++) {
        DIR *devices = opendir("/dev");
        for (struct dirent *e; port < 0 && devices && (e = readdir(devices));)
            if (!strncmp(e->d_name, "vport", 5))
                port = openat(dirfd(devices), e->d_name, O_RDWR | O_NONBLOCK | O_CLOEXEC);
        if (devices)
            closedir(devices);
        if (port >= 0)
            return;
        nanosleep(&pause, NULL);
    }
    die("there is no virtio-serial port");
}

static void make_node(const char *path, unsigned major, unsigned minor)
{
    if (mknod(path, S_IFCHR | 0666, makedev(major, minor)) < 0)
        die(path);
}

static void make_devices(void)
{
    must_mount("tmpfs", "/root/dev", "tmpfs", MS_NOSUID | MS_NOEXEC, "mode=0755,size=64k");
    make_node("/root/dev/null", 1, 3);
    make_node("/root/dev/zero", 1, 5);
    make_node("/root/dev/full", 1, 7);
    make_node("/root/dev/random", 1, 8);
    make_node("/root/dev/urandom", 1, 9);
    make_node("/root/dev/tty", 5, 0);
    if (symlink("/proc/self/fd", "/root/dev/fd") | symlink("/proc/self/fd/0", "/root/dev/stdin") |
        symlink("/proc/self/fd/1", "/root/dev/stdout") |
        symlink("/proc/self/fd/2", "/root/dev/stderr") | symlink("pts/ptmx", "/root/dev/ptmx"))
        die("/dev");
    mkdir("/root/dev/pts", 0755);
    mkdir("/root/dev/shm", 01777);
    must_mount("devpts", "/root/dev/pts", "devpts", MS_NOSUID | MS_NOEXEC,
               "newinstance,ptmxmode=0666,mode=0620");
    must_mount("tmpfs", "/root/dev/shm", "tmpfs", MS_NOSUID | MS_NODEV, "mode=1777");
}

/* Return a file in memory that is seen at `place`: writing to it costs a waking guest little. */
static int identity_file(const char *name, const char *place)
{
    int fd = open(name, O_RDWR | O_CREAT | O_CLOEXEC, 0444);
    if (fd < 0 || write(fd, "\n", 1) < 0 || mount(name, place, NULL, MS_BIND, NULL) < 0)
        die(place);
    return fd;
}

static void make_root(void)
{
    char disk[80], options[] = "lowerdir=/lower,upperdir=/upper/u,workdir=/upper/w";
    mkdir("/lower", 0755);
    mkdir("/upper", 0755);
    mkdir("/root", 0755);
    if (!find_disk("tegu-root", disk, sizeof disk))
        die("there is no disk tegu-root");
    if (mount(disk, "/lower", "erofs", MS_RDONLY, NULL) < 0)
        must_mount(disk, "/lower", "ext4", MS_RDONLY, NULL);
    if (find_disk("tegu-data", disk, sizeof disk))
        must_mount(disk, "/upper", "ext4", MS_NOSUID | MS_NODEV | MS_NOATIME, NULL);
    else
        must_mount("tmpfs", "/upper", "tmpfs", MS_NOSUID | MS_NODEV, "mode=0755");
    mkdir("/upper/u", 0755);
    mkdir("/upper/w", 0755);
    must_mount("overlay", "/root", "overlay", MS_NOATIME, options);
    static const struct { const char *name; mode_t mode; } directories[] = {
        {"/root/dev", 0755}, {"/root/proc", 0555}, {"/root/run", 0755},
        {"/root/sys", 0555}, {"/root/tmp", 01777}, {"/root/etc", 0755}};
    for (unsigned i = 0; i < sizeof directories / sizeof *directories; i++)
        if (mkdir(directories[i].name, directories[i].mode) == 0)
            chmod(directories[i].name, directories[i].mode);
    make_devices();
    must_mount("proc", "/root/proc", "proc", MS_NOSUID | MS_NODEV | MS_NOEXEC, NULL);
    must_mount("sysfs", "/root/sys", "sysfs", MS_NOSUID | MS_NODEV | MS_NOEXEC, NULL);
    must_mount("cgroup2", "/root/sys/fs/cgroup", "cgroup2", MS_NOSUID | MS_NODEV | MS_NOEXEC, NULL);
    close(open("/root/etc/machine-id", O_WRONLY | O_CREAT | O_CLOEXEC, 0444));
    boot_id = identity_file("/boot_id", "/root/proc/sys/kernel/random/boot_id");
    machine_id = identity_file("/machine_id", "/root/etc/machine-id");
}

static void make_groups(void)
{
    groups = open("/root/sys/fs/cgroup", O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    if (groups < 0 || write_at(groups, "cgroup.subtree_control", "+memory +pids") < 0 ||
        mkdirat(groups, "box", 0755) < 0 ||
        write_at(groups, "box/cgroup.subtree_control", "+memory +pids") < 0)
        die("cgroups");
}

static void loopback_up(void)
{
    struct ifreq lo = {.ifr_name = "lo"};
    int fd = socket(AF_INET, SOCK_DGRAM | SOCK_CLOEXEC, 0);
    if (fd >= 0 && ioctl(fd, SIOCGIFFLAGS, &lo) == 0) {
        lo.ifr_flags |= IFF_UP;
        ioctl(fd, SIOCSIFFLAGS, &lo);
    }
    close(fd);
}

int main(void)
{
    sigset_t ends;

    mkdir("/dev", 0755);
    mkdir("/proc", 0555);
    mkdir("/sys", 0555);
    must_mount("devtmpfs", "/dev", "devtmpfs", MS_NOSUID, NULL);
    must_mount("proc", "/proc", "proc", 0, NULL);
    must_mount("sysfs", "/sys", "sysfs", 0, NULL);
    int console = open("/dev/console", O_RDWR);
    if (console < 0)
        console = open("/dev/null", O_RDWR);
    for (int fd = 0; fd < 3; fd++)
        dup2(console, fd);
    if (console > 2)
        close(console);
    load_modules();
    find_port();
    make_root();
    make_groups();
    loopback_up();
    if (chdir("/root") < 0 || mount(".", "/", NULL, MS_MOVE, NULL) < 0 || chroot(".") < 0 ||
        chdir("/") < 0)
        die("the root");
    umask(022);
    sigemptyset(&ends);
    sigaddset(&ends, SIGCHLD);
    sigprocmask(SIG_BLOCK, &ends, NULL);
    signals = signalfd(-1, &ends, SFD_CLOEXEC | SFD_NONBLOCK);
    signal(SIGPIPE, SIG_IGN);
    port = high(port);
    groups = high(groups);
    signals = high(signals);
    boot_id = high(boot_id);
    machine_id = high(machine_id);
    send_frame('H', 0, "1", 1);
    serve();
}
