#include "signals.h"

#include <signal.h>
#include <stddef.h>

/* The only variable of the program that is not reached through an argument: a signal handler gets none. */
static volatile sig_atomic_t received;

static void on_signal(int signal_number)
{
    if (received) {
        signal(signal_number, SIG_DFL);
        raise(signal_number);
    }
    received = signal_number;
}

int signals_received(void)
{
    return received;
}

void signals_install(void)
{
    static const int stops[] = {SIGINT, SIGTERM, SIGHUP};
    for (size_t i = 0; i < sizeof stops / sizeof stops[0]; i++) {
        struct sigaction old, action = {.sa_handler = on_signal, .sa_flags = SA_RESTART};
        sigemptyset(&action.sa_mask);
        sigaction(stops[i], NULL, &old);
        if (old.sa_handler != SIG_IGN || stops[i] == SIGINT)
            sigaction(stops[i], &action, NULL); /* nohup stays in force */
    }
}
