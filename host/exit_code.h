/* exit_code.h: what klein says to the shell. */
#ifndef KLEIN_EXIT_CODE_H
#define KLEIN_EXIT_CODE_H

#include "../base/klein_status.h"

enum exit_code {
    EXIT_OK = 0,
    EXIT_FAILED = 1,
    EXIT_USAGE = 2,
    EXIT_MODEL = 3,
    EXIT_DEVICE = 4,
    EXIT_FILES = 5,
    EXIT_INTERRUPTED = 130
};

enum exit_code exit_code_of(enum klein_status status);
/* Row i of the documentation: code and what it means. NULL past the end. */
const char *exit_code_text(int i, enum exit_code *code);

#endif
