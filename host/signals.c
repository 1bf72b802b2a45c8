#include "signals.h"
#include "exit_code.h"

#include <signal.h>
#include <stddef.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

/* Variables that are not reached through an argument: a signal handler gets none. (The program has one more, the demo model's path.) */
static volatile sig_atomic_t received;
static char late[256]; /* the line for a deadline that passes */

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

static void on_deadline(int signal_number)
{
    if (write(STDERR_FILENO, late, strlen(late)) < 0) _exit(EXIT_FAILED);
    _exit(EXIT_FAILED);
}

void signals_deadline(unsigned seconds, const char *what)
{
    alarm(0);
    if (!seconds) return;
    snprintf(late, sizeof late, "\nklein: no end after %u s, the device seems to hang: %.160s\n", seconds,
             what);
    sigaction(SIGALRM, &(struct sigaction){.sa_handler = on_deadline}, NULL);
    alarm(seconds);
}
