/* selftest.h: the second half of klein selftest: a whole request on a device. */
#ifndef KLEIN_SELFTEST_H
#define KLEIN_SELFTEST_H

#include "../base/error.h"

struct selftest_request {
    const char *model, *device;
    int size; /* of the picture, in pixels */
    int soft; /* no deadline: it takes what it takes */
    /* Set: */
    double cpu_error,
        error; /* relative L2 of the BF16 latents against the processor's F32 latents: the processor's and the device's */
    double
        seconds[3]; /* of a request: each op by itself, stages as graphs, the whole as one graph; replayed */
    int largest_difference; /* of a byte of the picture against the processor's in BF16 */
    int graphs;             /* the device has some */
    int same;               /* with graphs the same bytes as without */
    char different[64];     /* if not: when */
};

/* How many times the processor's own BF16 error a device's may be. An op may be off by twice what the naive evaluation in BF16 is
 * (kernels/check/op_cases.h); a request is a chain of such ops, so it is held to the same: its distance from the F32 result is at most
 * twice that of another backend's BF16 result. */
#define SELFTEST_REQUEST_FACTOR 2.0

/* Makes the same picture on the processor in F32 and BF16, then on the device in BF16: op by op, and three times with each kind of
 * graphs (as ops, captured, replayed). A status that is not KLEIN_OK: a request failed, with the device in the message, or Ctrl-C. */
enum klein_status selftest_request_run(struct selftest_request *t, struct klein_error *err);

#endif
