/* The first program of the real root: says when it started and what memory is left, and ends. */
#include <stdio.h>
#include <string.h>
#include <sys/mount.h>
#include <sys/reboot.h>
#include <time.h>
#include <unistd.h>

int main(void)
{
	static char line[256];
	struct timespec now;
	long pages, idle = 0;
	FILE *file;

	clock_gettime(CLOCK_BOOTTIME, &now);
	/* With an initrd, /proc has been moved here already. */
	mount("proc", "/proc", "proc", 0, NULL);
	printf("\nbench boot %ld.%09ld\n", (long)now.tv_sec, now.tv_nsec);
	file = fopen("/proc/meminfo", "r");
	while (file && fgets(line, sizeof(line), file))
		if (!strncmp(line, "MemTotal:", 9) || !strncmp(line, "MemAvailable:", 13))
			printf("bench %s", line);
	/* Free pages that each processor keeps at hand: free, but in no figure of meminfo. */
	file = fopen("/proc/zoneinfo", "r");
	while (file && fgets(line, sizeof(line), file))
		if (sscanf(line, " count: %ld", &pages) == 1)
			idle += pages;
	printf("bench idle %ld\n", idle * sysconf(_SC_PAGESIZE) / 1024);
	file = fopen("/proc/version", "r");
	if (file && fgets(line, sizeof(line), file))
		printf("bench version %s", line);
	fflush(stdout);
	sync();
	reboot(RB_POWER_OFF);
	for (;;)
		pause();
}
