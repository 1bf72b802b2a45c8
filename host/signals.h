/* signals.h: Ctrl-C. The first SIGINT (or SIGTERM, SIGHUP) asks the work to stop, which it does between two operations, leaving no
 * partial file; the second one ends the process at once. Installed when the long work begins: until then (while waiting for
 * standard input, say) one Ctrl-C is enough. */
#ifndef KLEIN_SIGNALS_H
#define KLEIN_SIGNALS_H

void signals_install(void);
int signals_received(void); /* the number of the first signal received; 0: none */

/* For work that may never return, as a kernel that hangs: unless it is called again within `seconds`, the process ends with exit code 1,
 * naming `what` on standard error. 0 seconds: no longer. */
void signals_deadline(unsigned seconds, const char *what);

#endif
