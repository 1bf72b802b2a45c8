/* support.h: what the tests share. Golden files are read with the library's own safetensors reader, which has tests of its own. */
#ifndef KLEIN_TEST_SUPPORT_H
#define KLEIN_TEST_SUPPORT_H

#include "../../base/error.h"
#include "../../base/hash.h"
#include "../../base/tensor.h"

#include <criterion/criterion.h>
#include <stdio.h>

/* 1 in the sanitizer build: what runs there runs several times slower, so whole requests on the soft GPU are left to the release build; its
 * kernels and the driver are tested in both. */
#ifdef __SANITIZE_ADDRESS__
#define SANITIZED 1
#else
#define SANITIZED 0
#endif

#define GOLDEN(name) (KLEIN_SOURCE_DIR "/tests/golden/" name)
/* A golden model's folder, with its weights: "tiny" or "small-decoder" (tests/golden/README.md). */
#define GOLDEN_MODEL(name) (KLEIN_BINARY_DIR "/golden/" name)

/* A call that must succeed; prints the message otherwise. Declares nothing: `struct klein_error err` must be in scope. */
#define OK(call)                                                                                             \
    do {                                                                                                     \
        err = (struct klein_error){0};                                                                       \
        enum klein_status ok_status_ = (call);                                                               \
        cr_assert(ok_status_ == KLEIN_OK, "%s: %s: %s", #call, status_name(ok_status_), err.message);        \
    } while (0)
/* A call that must fail with that status and a message containing `text`. */
#define FAILS(call, expected, text)                                                                          \
    do {                                                                                                     \
        err = (struct klein_error){0};                                                                       \
        enum klein_status fails_status_ = (call);                                                            \
        cr_assert(fails_status_ == (expected), "%s: got %s (%s)", #call, status_name(fails_status_),         \
                  err.message);                                                                              \
        cr_assert(strstr(err.message, text), "%s: message is \"%s\", expected \"%s\" in it", #call,          \
                  err.message, text);                                                                        \
    } while (0)

/* Ends the test as skipped, and says so even where Criterion's summary does not. */
#define SKIP(why)                                                                                            \
    do {                                                                                                     \
        fprintf(stderr, "skipped: %s\n", why);                                                               \
        cr_skip_test(why);                                                                                   \
    } while (0)

/* tensor_relative_l2 and tensor_max_difference (kernels/check/op_cases.h); shapes that differ fail the test. */
double relative_l2(struct tensor a, struct tensor b);
double max_abs_diff(struct tensor a, struct tensor b);

/* The device that `spec` means: a name, or "soft CHIP" for the soft GPU as that chip ("soft sm_80"), which holds for the process. */
const char *test_device(const char *spec);

/* A directory made for this test process, removed at exit. */
const char *test_dir(void);

#endif
