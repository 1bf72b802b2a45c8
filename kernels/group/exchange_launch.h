/* exchange_launch.h: struct device_exchange (device.h) of GPUs that reach each other's memory; the others join by NCCL
 * (nccl_exchange.h). KLEIN_EXCHANGE=nccl in the environment takes all for such. */
#ifndef KLEIN_EXCHANGE_LAUNCH_H
#define KLEIN_EXCHANGE_LAUNCH_H

#include "../cuda/cuda.h"

extern const struct device_exchange cuda_exchange;
/* How kernels of g's group know where rows go; cols: of a device (linear). {0} if they stay. */
struct exchange_route exchange_route_of(const struct gpu *g, const struct exchange_to *to, int cols);
void exchange_leave(struct cuda_device *cuda); /* before it is closed; also if it never joined */

#endif
