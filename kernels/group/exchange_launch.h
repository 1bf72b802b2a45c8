/* exchange_launch.h: struct device_exchange (device.h) of GPUs that reach each other's memory; the others join by NCCL
 * (nccl_exchange.h). KLEIN_EXCHANGE=nccl in the environment takes all for such. */
#ifndef KLEIN_EXCHANGE_LAUNCH_H
#define KLEIN_EXCHANGE_LAUNCH_H

#include "../cuda/cuda.h"

extern const struct device_exchange cuda_exchange;
void exchange_leave(struct cuda_device *cuda); /* before it is closed; also if it never joined */

#endif
