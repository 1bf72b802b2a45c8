/* scale.cu: y = a x, the smallest kernel of the house: what a new one looks like, and the first thing to run on a new device. */
#include "../device/device.h"
#include "../device/ptx.h"

KERNEL(scale_f32, scale_args, SCALE_THREADS, 1)
{
    const int64_t vectors = args.n / 4;
    grid_wait();
    grid_launch_dependents();
    for (int64_t i = (int64_t)block_x() * SCALE_THREADS + thread_index(); i < vectors;
         i += (int64_t)grid_x() * SCALE_THREADS) {
        u32x4 v = ld_global_16(args.x + 4 * i);
        v.x = bits_from_float(args.a * float_from_bits(v.x));
        v.y = bits_from_float(args.a * float_from_bits(v.y));
        v.z = bits_from_float(args.a * float_from_bits(v.z));
        v.w = bits_from_float(args.a * float_from_bits(v.w));
        st_global_16(args.y + 4 * i, v);
    }
    const int64_t tail = 4 * vectors + thread_index(); /* fewer than 4 elements */
    if (block_x() == 0 && tail < args.n) args.y[tail] = args.a * args.x[tail];
}
