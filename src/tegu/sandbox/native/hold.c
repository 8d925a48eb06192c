/* What holds a gVisor box that lives on: its first process, which waits and leaves no zombies. */
#include <signal.h>
#include <unistd.h>

int main(void)
{
    signal(SIGCHLD, SIG_IGN);
    for (;;)
        pause();
}
