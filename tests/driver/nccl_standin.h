/* nccl_standin.h: what nccl_standin.c hands to its kernel. */
#ifndef KLEIN_TESTS_NCCL_STANDIN_H
#define KLEIN_TESTS_NCCL_STANDIN_H

#include <stdint.h>

enum { STANDIN_RANKS = 8, STANDIN_CHUNK = 1 << 18, STANDIN_THREADS = 32 };

/* From one device to another, in pinned memory of the host. */
struct standin_mailbox {
    uint32_t filled, emptied; /* how often; equal: it is empty */
    uint64_t message;         /* the length of all of which it has a chunk */
    char data[STANDIN_CHUNK];
};

struct standin_args {
    const uint32_t *stop;
    int n;
    struct standin_op {
        char *buffer;
        struct standin_mailbox *box;
        uint64_t bytes; /* a multiple of 16 */
        int send;
    } op[2 * STANDIN_RANKS];
};

#endif
