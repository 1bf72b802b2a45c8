/* selftest.h: the second half of klein selftest: a whole request on a device. */
#ifndef KLEIN_SELFTEST_H
#define KLEIN_SELFTEST_H

#include "../base/error.h"

#include <stddef.h>

struct selftest_request {
    const char *model, *device;
    int size;   /* of the picture, in pixels */
    int fp8;    /* the blocks in FP8 (--precision fp8); else in BF16 */
    int soft;   /* no deadline: it takes what it takes */
    int graphs; /* the device has some */
    /* Set: */
    double error,
        limit; /* relative L2, and what it may be. In BF16 of the latents against the processor's in F32, */
    double
        cpu_error; /* and what the processor's in BF16 is; in FP8 of the first step's velocity against BF16's on this device */
    double
        seconds[3]; /* of a request: each op by itself, stages as graphs, the whole as one graph; replayed */
    int largest_difference; /* of a byte of the picture against the processor's in BF16; not in FP8 */
    int same;               /* with graphs the same bytes as without */
    char different[64];     /* if not: when */
};

/* How many times the processor's own BF16 error a device's may be. An op may be off by twice what the naive evaluation in BF16 is
 * (kernels/check/op_cases.h); a request is a chain of such ops, so it is held to the same: its distance from the F32 result is at most
 * twice that of another backend's BF16 result. */
#define SELFTEST_REQUEST_FACTOR 2.0
/* What FP8 may change the first velocity by at 128x128, and what it changes at the least: less was not in FP8. The limit is that of
 * the tests, which have measured 2.6 to 2.7 % there; in 64x64, with a quarter of the rows, it is up to 3.1 %. */
#define SELFTEST_FP8_LIMIT 0.03
#define SELFTEST_FP8_LEAST 1e-3

/* Makes the picture on the device: op by op, and three times with each kind of graphs (as ops, captured, replayed); before that what it is
 * compared with, on the processor in F32 and BF16, or for FP8 a first step on the device in BF16. A status that is not KLEIN_OK: a request
 * failed, with the device in the message, or Ctrl-C. */
enum klein_status selftest_request_run(struct selftest_request *t, struct klein_error *err);
/* What is wrong with what a run has set, into `text`; NULL if nothing is. */
const char *selftest_request_judge(const struct selftest_request *t, char *text, size_t size);

#endif
