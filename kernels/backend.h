/* backend.h: what device.c and the backends of the host share. Not for the engine. */
#ifndef KLEIN_BACKEND_H
#define KLEIN_BACKEND_H

#include "device.h"

typedef enum klein_status backend_open(const struct device_options *options, struct device **out,
                                       struct klein_error *err);
backend_open ref_open, null_open, cpu_open;
/* An NVIDIA GPU, or the soft GPU in its place. */
enum klein_status cuda_open(const struct device_options *options, int soft, int ordinal, struct device **out,
                            struct klein_error *err);
int cuda_count(int soft); /* of device_count */

/* Memory of devices whose memory is the host's; for struct device. */
void *host_alloc(struct device *dev, size_t bytes);
void host_free(struct device *dev, void *memory, size_t bytes);
enum klein_status host_upload(struct device *dev, void *to, const void *host, size_t bytes,
                              struct klein_error *err);
enum klein_status host_download(struct device *dev, void *host, const void *from, size_t bytes,
                                struct klein_error *err);
enum klein_status host_copy(struct device *dev, void *to, const void *from, size_t bytes,
                            struct klein_error *err);

/* The thread count that an option value means: itself, or all processors that this process may use for 0. */
int host_threads(int option);

/* The dtype in which a linear computes: BF16 if x or an output is BF16 or quantised, else F32. */
enum dtype linear_act(const struct linear_args *a);
/* How many keys there are, for devices whose memory is the host's. */
static inline int attention_keys(const struct attention_args *a)
{
    return a->keys.ptr ? *(const int32_t *)a->keys.ptr : a->k.rows;
}
/* Rows < split belong to group 0, the others to 1; split = 0: all to 0. */
static inline int split_group(int split, int row)
{
    return split > 0 && row >= split;
}

#endif
