/* What the guest of bench/qos runs: open-loop clients that measure, and batch work that counts.
 *
 * Requests have a time table; a latency counts from the time in the table, so that a server which
 * stalls is charged for all that waited. Results are one line of JSON on standard output.
 */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <errno.h>
#include <fcntl.h>
#include <netinet/tcp.h>
#include <poll.h>
#include <pthread.h>
#include <sched.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

#define MAX_SAMPLES 4000000
#define CONNECTIONS 8
#define WORKERS 8
#define BLOCK 4096

typedef unsigned long long u64;

static u64 now(void)
{
	struct timespec t;
	clock_gettime(CLOCK_MONOTONIC, &t);
	return t.tv_sec * 1000000000ULL + t.tv_nsec;
}

static void until(u64 when)
{
	struct timespec t = {when / 1000000000ULL, when % 1000000000ULL};
	while (clock_nanosleep(CLOCK_MONOTONIC, TIMER_ABSTIME, &t, NULL) == EINTR)
		;
}

static void die(const char *what)
{
	perror(what);
	exit(1);
}

static void realtime(int priority)
{
	struct sched_param p = {.sched_priority = priority};
	if (sched_setscheduler(0, SCHED_FIFO, &p))
		die("SCHED_FIFO");
}

/* The time table: phases of RATE:SECONDS, after one another. */
static struct { double rate, seconds; } phases[256];
static int phase_count;

static void read_phases(char *text)
{
	for (char *p = strtok(text, ","); p && phase_count < 256; p = strtok(NULL, ",")) {
		if (sscanf(p, "%lf:%lf", &phases[phase_count].rate, &phases[phase_count].seconds) != 2)
			die("phases");
		phase_count++;
	}
}

static u64 *table_at;
static long table_size;

/* One request in each interval of 1/RATE, at a moment of its own: with equal distances a request
 * keeps in step with the timer tick, and meets it always or never. */
static void make_table(u64 start)
{
	u64 at = start;
	unsigned seed = 11;
	table_at = malloc(sizeof(u64) * MAX_SAMPLES);
	for (int i = 0; i < phase_count; i++) {
		u64 end = at + (u64)(phases[i].seconds * 1e9);
		for (double t = at; t < end && table_size < MAX_SAMPLES; t += 1e9 / phases[i].rate)
			table_at[table_size++] =
				(u64)(t + 1e9 / phases[i].rate * rand_r(&seed) / RAND_MAX);
		at = end;
	}
}

/* Latencies in nanoseconds by order of the table; lag is how late the client itself was. */
static u64 *latency, *lag, *copy;

static int compare(const void *a, const void *b)
{
	u64 x = *(const u64 *)a, y = *(const u64 *)b;
	return x < y ? -1 : x > y;
}

static double quantile(const u64 *from, long count, double q)
{
	if (!count)
		return -1;
	memcpy(copy, from, sizeof(u64) * count);
	qsort(copy, count, sizeof(u64), compare);
	long i = (long)(q * count);
	return copy[i < count ? i : count - 1] / 1e9;
}

/* A window a second for the feedback layer, as docs/qos.md says. */
static const char *feed;
static pthread_mutex_t feed_lock = PTHREAD_MUTEX_INITIALIZER;
static u64 *window, window_end;
static long window_count;
static double window_p99[4096];
static int window_total;

static void close_window(void)
{
	char name[256];
	struct timespec t;
	double p99 = 0;
	if (window_count) {
		qsort(window, window_count, sizeof(u64), compare);
		p99 = window[(long)(0.99 * window_count)] / 1e9;
	}
	if (window_total < 4096)
		window_p99[window_total++] = p99;
	if (feed) {
		snprintf(name, sizeof(name), "%s.new", feed);
		FILE *f = fopen(name, "w");
		clock_gettime(CLOCK_REALTIME, &t);
		fprintf(f, "{\"p99\": %.9f, \"samples\": %ld, \"time\": %.3f}\n", p99, window_count,
			t.tv_sec + t.tv_nsec / 1e9);
		fclose(f);
		rename(name, feed);
	}
	window_count = 0;
}

/* The lag is measured by `gate` instead. */
#define GATED (~0ULL)

static void record(long i, u64 value, u64 late)
{
	pthread_mutex_lock(&feed_lock);
	latency[i] = value;
	if (late != GATED)
		lag[i] = late;
	if (now() >= window_end) {
		close_window();
		window_end += 1000000000ULL;
	}
	if (window_count < MAX_SAMPLES)
		window[window_count++] = value;
	pthread_mutex_unlock(&feed_lock);
}

static void prepare(char *table, const char *feed_path)
{
	latency = calloc(MAX_SAMPLES, sizeof(u64));
	lag = calloc(MAX_SAMPLES, sizeof(u64));
	copy = calloc(MAX_SAMPLES, sizeof(u64));
	window = calloc(MAX_SAMPLES, sizeof(u64));
	feed = strcmp(feed_path, "-") ? feed_path : NULL;
	read_phases(table);
	u64 start = now() + 50000000;
	make_table(start);
	window_end = start + 1000000000ULL;
}

static void report(long count)
{
	printf("{\"count\": %ld, \"p50\": %.9f, \"p99\": %.9f, \"max\": %.9f, \"lag99\": %.9f, "
	       "\"lagmax\": %.9f, \"windows\": [",
	       count, quantile(latency, count, .5), quantile(latency, count, .99),
	       quantile(latency, count, 1), quantile(lag, count, .99), quantile(lag, count, 1));
	for (int i = 0; i < window_total; i++)
		printf("%s%.6f", i ? ", " : "", window_p99[i]);
	printf("]}\n");
	fflush(stdout);
}

/* get PORT PHASES FEED: GETs of one key, answers of ANSWER bytes. */
#define ANSWER 108 /* "$100", a line end, the value, a line end */
static int get(int port, char *table, const char *feed_path)
{
	static struct { int fd, head, tail; long queue[65536]; size_t got; } c[CONNECTIONS];
	static const char request[] = "*2\r\n$3\r\nGET\r\n$3\r\nkey\r\n";
	struct sockaddr_in a = {.sin_family = AF_INET, .sin_port = htons(port)};
	struct pollfd polls[CONNECTIONS];
	char buffer[65536];
	int one = 1;

	a.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
	for (int i = 0; i < CONNECTIONS; i++) {
		c[i].fd = socket(AF_INET, SOCK_STREAM, 0);
		if (connect(c[i].fd, (void *)&a, sizeof(a)))
			die("connect");
		setsockopt(c[i].fd, IPPROTO_TCP, TCP_NODELAY, &one, sizeof(one));
		fcntl(c[i].fd, F_SETFL, O_NONBLOCK);
		polls[i] = (struct pollfd){c[i].fd, POLLIN, 0};
	}
	realtime(50);
	prepare(table, feed_path);
	long next = 0, done = 0;
	u64 *sent = calloc(MAX_SAMPLES, sizeof(u64));
	while (done < table_size) {
		u64 t = now();
		while (next < table_size && table_at[next] <= t) {
			int i = next % CONNECTIONS;
			if (((c[i].tail + 1) & 65535) == c[i].head)
				die("too far behind");
			if (write(c[i].fd, request, sizeof(request) - 1) != sizeof(request) - 1)
				die("write");
			sent[next] = t - table_at[next];
			c[i].queue[c[i].tail] = next++;
			c[i].tail = (c[i].tail + 1) & 65535;
			t = now();
		}
		u64 wait = next < table_size ? table_at[next] - t : 100000000ULL;
		struct timespec ts = {wait / 1000000000ULL, wait % 1000000000ULL};
		if (ppoll(polls, CONNECTIONS, &ts, NULL) <= 0)
			continue;
		for (int i = 0; i < CONNECTIONS; i++) {
			if (!(polls[i].revents & POLLIN))
				continue;
			ssize_t n = read(c[i].fd, buffer, sizeof(buffer));
			if (n <= 0)
				die("read");
			t = now();
			c[i].got += n;
			while (c[i].got >= ANSWER) {
				long r = c[i].queue[c[i].head];
				c[i].head = (c[i].head + 1) & 65535;
				c[i].got -= ANSWER;
				record(r, t - table_at[r], sent[r]);
				done++;
			}
		}
	}
	report(done);
	return 0;
}

/* read DEVICE PHASES FEED: reads of one block past the page cache. */
static int device;
static u64 blocks;

static void *reader(void *arg)
{
	unsigned seed = 1 + (long)arg;
	void *buffer;
	if (posix_memalign(&buffer, BLOCK, BLOCK))
		die("memory");
	for (long r = (long)arg; r < table_size; r += WORKERS) {
		until(table_at[r]);
		u64 block = ((u64)rand_r(&seed) << 16 ^ rand_r(&seed)) % blocks;
		if (pread(device, buffer, BLOCK, block * BLOCK) != BLOCK)
			die("pread");
		record(r, now() - table_at[r], GATED);
	}
	return NULL;
}

static void open_device(const char *path, int flags)
{
	device = open(path, flags);
	if (device < 0)
		die(path);
	blocks = lseek(device, 0, SEEK_END) / BLOCK;
}

static void *gate(void *arg)
{
	/* The lag gate: how late a real-time thread wakes up; it has no request of its own, and does
	 * not wait for one either. */
	realtime(60);
	for (long r = 0; r < table_size; r++) {
		until(table_at[r]);
		lag[r] = now() - table_at[r];
	}
	return arg;
}

static int read_loop(const char *path, char *table, const char *feed_path)
{
	pthread_t t[WORKERS], g;
	open_device(path, O_RDONLY | O_DIRECT);
	realtime(50);
	prepare(table, feed_path);
	for (long i = 0; i < WORKERS; i++)
		pthread_create(&t[i], NULL, reader, (void *)i);
	pthread_create(&g, NULL, gate, NULL);
	for (long i = 0; i < WORKERS; i++)
		pthread_join(t[i], NULL);
	pthread_join(g, NULL);
	report(table_size);
	return 0;
}

/* map DEVICE MIB PAGES PHASES FEED: a request reads PAGES random pages of a mapping, each whole. */
static int map(const char *path, long mib, int pages, char *table, const char *feed_path)
{
	unsigned seed = 7;
	volatile char sum = 0;
	long size = mib << 20;
	open_device(path, O_RDONLY);
	char *data = mmap(NULL, size, PROT_READ, MAP_SHARED, device, 0);
	if (data == MAP_FAILED)
		die("mmap");
	madvise(data, size, MADV_RANDOM);
	for (long at = 0; at < size; at += BLOCK)
		sum += data[at];
	realtime(50);
	prepare(table, feed_path);
	pthread_t g;
	pthread_create(&g, NULL, gate, NULL);
	for (long r = 0; r < table_size; r++) {
		until(table_at[r]);
		for (int i = 0; i < pages; i++) {
			u64 page = ((u64)rand_r(&seed) << 15 ^ rand_r(&seed)) % (size / BLOCK);
			for (int at = 0; at < BLOCK; at++)
				sum += data[page * BLOCK + at];
		}
		record(r, now() - table_at[r], GATED);
	}
	pthread_join(g, NULL);
	report(table_size);
	return 0;
}

/* Batch work: counts from SIGUSR1 until SIGTERM, and prints {"done": N, "seconds": S}. */
static volatile sig_atomic_t ended, begun;
static volatile u64 counts[256];

static void end(int number)
{
	if (number == SIGTERM)
		ended = 1;
	else
		begun = 1;
}

static void *spinner(void *arg)
{
	volatile unsigned x = 1;
	while (!ended) {
		for (int i = 0; i < 10000; i++)
			x = x * 1664525 + 1013904223;
		counts[(long)arg]++;
	}
	return NULL;
}

static void *batch_reader(void *arg)
{
	unsigned seed = 1000 + (long)arg;
	void *buffer;
	if (posix_memalign(&buffer, BLOCK, BLOCK))
		die("memory");
	while (!ended) {
		u64 block = ((u64)rand_r(&seed) << 16 ^ rand_r(&seed)) % blocks;
		if (pread(device, buffer, BLOCK, block * BLOCK) != BLOCK)
			die("pread");
		counts[(long)arg]++;
	}
	return NULL;
}

static long scan_mib;

static void *scanner(void *arg)
{
	/* Reads a mapping from end to end, over and over: each page once. */
	volatile char sum = 0;
	long size = scan_mib << 20;
	char *data = mmap(NULL, size, PROT_READ, MAP_SHARED, device, 0);
	if (data == MAP_FAILED)
		die("mmap");
	while (!ended)
		for (long at = 0; at < size && !ended; at += BLOCK) {
			sum += data[at];
			counts[(long)arg]++;
		}
	return NULL;
}

static int batch(void *(*work)(void *), int threads)
{
	pthread_t t;
	sigset_t old;
	u64 sum = 0, before = 0, start = now();
	struct sigaction action = {.sa_handler = end};
	sigaction(SIGTERM, &action, NULL);
	sigaction(SIGUSR1, &action, NULL);
	sigset_t both;
	sigemptyset(&both);
	sigaddset(&both, SIGTERM);
	sigaddset(&both, SIGUSR1);
	/* Blocked but while waiting: no signal is lost, and the workers get none. */
	pthread_sigmask(SIG_BLOCK, &both, NULL);
	for (long i = 0; i < threads; i++)
		pthread_create(&t, NULL, work, (void *)i);
	pthread_sigmask(SIG_SETMASK, NULL, &old);
	sigdelset(&old, SIGTERM);
	sigdelset(&old, SIGUSR1);
	while (!ended) {
		sigsuspend(&old);
		if (begun) {
			begun = 0;
			start = now();
			before = 0;
			for (int i = 0; i < threads; i++)
				before += counts[i];
		}
	}
	for (int i = 0; i < threads; i++)
		sum += counts[i];
	printf("{\"done\": %llu, \"seconds\": %.6f}\n", sum - before, (now() - start) / 1e9);
	fflush(stdout);
	_exit(0);
}

int main(int argc, char **argv)
{
	const char *verb = argc > 1 ? argv[1] : "";
	if (!strcmp(verb, "get") && argc == 5)
		return get(atoi(argv[2]), argv[3], argv[4]);
	if (!strcmp(verb, "read") && argc == 5)
		return read_loop(argv[2], argv[3], argv[4]);
	if (!strcmp(verb, "map") && argc == 7)
		return map(argv[2], atol(argv[3]), atoi(argv[4]), argv[5], argv[6]);
	if (!strcmp(verb, "spin") && argc == 3)
		return batch(spinner, atoi(argv[2]));
	if (!strcmp(verb, "batch-read") && argc == 4) {
		open_device(argv[2], O_RDONLY | O_DIRECT);
		return batch(batch_reader, atoi(argv[3]));
	}
	if (!strcmp(verb, "scan") && argc == 5) {
		open_device(argv[2], O_RDONLY);
		scan_mib = atol(argv[4]);
		return batch(scanner, atoi(argv[3]));
	}
	fprintf(stderr, "usage: work get|read|map|spin|batch-read|scan ...\n");
	return 2;
}
