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
	FILE *file;

	clock_gettime(CLOCK_BOOTTIME, &now);
	/* With an initrd, /proc has been moved here already. */
	mount("proc", "/proc", "proc", 0, NULL);
	printf("\nbench boot %ld.%09ld\n", (long)now.tv_sec, now.tv_nsec);
	file = fopen("/proc/meminfo", "r");
	while (file && fgets(line, sizeof(line), file))
		if (!strncmp(line, "MemTotal:", 9) || !strncmp(line, "MemAvailable:", 13))
			printf("bench %s", line);
	file = fopen("/proc/version", "r");
	if (file && fgets(line, sizeof(line), file))
		printf("bench version %s", line);
	fflush(stdout);
	sync();
	reboot(RB_POWER_OFF);
	for (;;)
		pause();
}
