/* dry.h: a GPU on which the ops are walked through: checked, cut into launches, a kernel picked for each (gpu.h, `picked`), and nothing
 * launched. For which kernels a request asks for, without its weights and its time. */
#ifndef KLEIN_CUDA_DRY_H
#define KLEIN_CUDA_DRY_H

#include "cuda.h"

struct dry_device {
    struct device base;
    struct device *gpu; /* borrowed: "cuda" or "soft" */
    enum op_id op;      /* the op that is walked through, with its args (struct of ops.h) */
    const void *args;
    uintptr_t next;
};

/* While it is open, nothing is launched on gpu by anybody. Weights are placed as cuda_place does, at addresses that nothing is at.
 * device_close as usual, before gpu's. */
enum klein_status dry_device_open(struct device *gpu, struct dry_device **out, struct klein_error *err);

#endif
