/* stage.h: a stretch of ops that is the same each time: same operands at the same addresses, everything that
 * changes read from device memory. On a device with graphs its ops run as they come the first time (so that errors appear where they
 * are, and all kernels are loaded), are captured the second time, and are replayed from then on. Elsewhere they always run as they come.
 *
 *   stage_begin(r, &plan->step);
 *   ... run_* ...                     no run_upload, run_fill, run_download
 *   stage_end(r, &plan->step);
 *
 * When it is replayed the same code is walked through with r->skip set, so that the arena and all views come out as they were.
 * Stages may be nested; the outermost is the graph. */
#ifndef KLEIN_STAGE_H
#define KLEIN_STAGE_H

#include "run.h"

struct stage {
    int ran;
    void *graph; /* the device's; NULL: not captured yet */
    double flops;
};

/* `stage` NULL: no graph, the ops run as they come. */
void stage_begin(struct run *r, struct stage *stage);
void stage_end(struct run *r, struct stage *stage);
void stage_free(struct device *dev, struct stage *stage);

#endif
