/* staging.h: arguments of staging.cu, for it and for nccl_exchange.c. */
#ifndef KLEIN_GROUP_STAGING_H
#define KLEIN_GROUP_STAGING_H

#include "../device/args.h"

/* Rows of tensors from or to messages. Blocks: any number by ways. A message has, of each tensor, the rows of each span, each of `width` vectors
 * of 16 bytes; vectors first .. first + count - 1 of it are staged. count 0: nothing. */
enum { STAGING_THREADS = 256 };
struct staging_kernel_args {
    struct {
        char *staged;
        int first, count, width;
        char *rows[EXCHANGE_TENSORS];
        int64_t ld[EXCHANGE_TENSORS]; /* bytes */
        struct {
            int row, rows;
        } span[EXCHANGE_SPANS];
    } way[EXCHANGE_DEVICES];
};

#endif
