/* nccl_exchange.h: struct device_exchange (device.h) of GPUs that do not reach each other's memory, by NCCL.
 *
 * Rows are packed into messages (staging.cu), sent and received, and unpacked, all in the device's stream; messages lie in its scratch memory
 * (CUDA_SCRATCH), so an exchange takes no memory of its own, and what has no room goes in several rounds. The devices' host threads tell
 * each other what they send when an exchange is issued or captured; a replay needs no host.
 *
 * NCCL wants calls that match to be captured on all devices or on none (device_exchange.alike), and a communicator lives until all graphs
 * with its calls have been freed. So stop aborts in threads of their own, and begin makes the communicators anew. */
#ifndef KLEIN_GROUP_NCCL_EXCHANGE_H
#define KLEIN_GROUP_NCCL_EXCHANGE_H

#include "../cuda/cuda.h"

/* join, for devices of which `why` says why they need NCCL. */
enum klein_status nccl_join(struct device *const *devices, int n, const char *why, struct klein_error *err);
void nccl_leave(struct cuda_device *cuda); /* before it is closed */

#endif
