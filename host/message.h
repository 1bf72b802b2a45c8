/* message.h: lines for people, on standard error, and what the terminal can take. */
#ifndef KLEIN_MESSAGE_H
#define KLEIN_MESSAGE_H

#include <stdio.h>

enum message_kind { MESSAGE_ERROR, MESSAGE_WARNING, MESSAGE_NOTE };

/* "klein: text", "klein: warning: text", "klein: text" and a newline; the head coloured on a terminal. */
__attribute__((format(printf, 2, 3))) void message(enum message_kind kind, const char *format, ...);

/* Whether escape sequences for colour and bold are welcome there: a terminal, not "dumb", NO_COLOR unset or
 * empty. */
int message_styled(FILE *out);

#endif
