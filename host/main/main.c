#include "../commands.h"

#include <stdlib.h>
#include <unistd.h>

/* Threads that wait for others spin before they sleep, by OpenMP's default for milliseconds: beside other work on the machine a demo picture
 * then takes ten seconds instead of half of one. The runtime reads its environment when it is loaded, so the program starts itself anew
 * with a shorter time, once, unless the user has chosen. */
static void spin_less(char **argv)
{
    if (getenv("GOMP_SPINCOUNT") || getenv("OMP_WAIT_POLICY") || setenv("GOMP_SPINCOUNT", "1000", 1)) return;
    execv("/proc/self/exe", argv); /* returns if it cannot */
}

int main(int argc, char **argv)
{
    spin_less(argv);
    return commands_main(argc, argv);
}
