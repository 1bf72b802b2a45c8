/* program.h: runs the built klein as a shell would, and keeps what it says. */
#ifndef KLEIN_TEST_PROGRAM_H
#define KLEIN_TEST_PROGRAM_H

#include "support.h"

#include <jansson.h>
#include <sys/types.h>

struct outcome {
    int code;        /* exit code; 128 + signal if a signal ended it */
    size_t n;        /* bytes of out */
    char *out, *err; /* standard output and error, zero-terminated; valid until the next run */
    double cpu;      /* seconds of processor time */
};

/* RUN("generate", "a cat", "-o", path): in test_dir(), standard input empty, KLEIN_MODEL as in the environment. */
#define RUN(...) program_run(NULL, (const char *const[]){"klein", __VA_ARGS__, NULL})
/* The same with `input` as standard input. */
#define RUN_WITH(input, ...) program_run(input, (const char *const[]){"klein", __VA_ARGS__, NULL})
struct outcome program_run(const char *input, const char *const *argv);

/* From now on programs of this test find an NVIDIA driver with cards of that chip ("sm_90a", "sm_90a:2"), called `name` if not NULL: the soft
 * GPU (driver/cuda_standin.c, which says what else it can be). */
void program_card(const char *chip, const char *name);

/* RUN with standard output and error on a new terminal of `columns`: out has all that appeared there, err is empty. */
#define RUN_ON_TERMINAL(columns, ...)                                                                        \
    program_on_terminal(columns, (const char *const[]){"klein", __VA_ARGS__, NULL})
struct outcome program_on_terminal(int columns, const char *const *argv);

/* Starts it without waiting; standard error goes to the file `err_path`, standard output nowhere. */
pid_t program_start(const char *err_path, const char *const *argv);
int program_wait(pid_t pid); /* the exit code as above */

/* Asserts on an outcome: its exit code, and a text in what it said on standard error. */
#define SAYS(run, expected, text)                                                                            \
    do {                                                                                                     \
        struct outcome says_ = (run);                                                                        \
        cr_assert(says_.code == (expected) && strstr(says_.err, text),                                       \
                  "%s: exit code %d, expected %d; said \"%s\", expected \"%s\" in it", #run, says_.code,     \
                  (expected), says_.err, text);                                                              \
    } while (0)
/* Asserts exit code 0 and gives the outcome. */
struct outcome program_ok(struct outcome outcome, const char *what);
#define OK_RUN(...) program_ok(RUN(__VA_ARGS__), #__VA_ARGS__)

/* Standard output as one JSON object on one line. json_decref it. */
json_t *program_json(struct outcome outcome);

/* All bytes of a file, malloc'ed, and a zero byte; fails the test if it cannot be read. */
char *program_file(const char *path, size_t *n);
/* Files in a folder, hidden ones too. */
int program_count_files(const char *folder);

#endif
