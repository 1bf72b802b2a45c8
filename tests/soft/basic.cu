/* basic.cu: kernels that use one mechanism each, rightly. */
#include "../../kernels/device/device.h"
#include "../../kernels/device/ptx.h"
#include "args.h"

/* The sum of the block's values by shuffles and shared memory; every thread gets it. */
struct sum_shared {
    shared<float> part[8];
};

KERNEL(basic_sum, basic_args, 256, 1)
{
    SHARED(sum_shared, s);
    float v = args.x[block_x() * 256 + thread_index()];
    for (int mask = 16; mask; mask /= 2) v += shfl_xor(v, mask);
    if (lane_index() == 0) s.part[warp_index()] = v;
    sync_threads();
    float sum = 0;
    for (int i = 0; i < 8; i++) sum += s.part[i];
    args.y[block_x() * 256 + thread_index()] = sum;
}
