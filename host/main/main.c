#include "../commands.h"

#include <limits.h>
#include <stdlib.h>
#include <unistd.h>

/* Threads that wait for others spin before they sleep, by OpenMP's default for milliseconds: beside other work on the machine a demo picture
 * then takes ten seconds instead of half of one. The runtime reads its environment when it is loaded, so the program starts itself anew
 * with a shorter time, once, unless the user has chosen. */
static void spin_less(char **argv)
{
    char program[PATH_MAX]; /* its path, not the link to it: that would be its name for ps and killall */
    if (getenv("GOMP_SPINCOUNT") || getenv("OMP_WAIT_POLICY")) return;
    const ssize_t n = readlink("/proc/self/exe", program, sizeof program - 1);
    if (n <= 0 || setenv("GOMP_SPINCOUNT", "1000", 1)) return;
    program[n] = 0;
    execv(program, argv); /* returns if it cannot */
}

int main(int argc, char **argv)
{
    spin_less(argv);
    return commands_main(argc, argv);
}
