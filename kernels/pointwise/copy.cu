/* copy.cu: rows of numbers, converted; with ids, the rows that they name (token embedding). A vector is as many elements as make
 * 16 bytes of the wider type, so that every access of a warp is one run of bytes. */
#include "../device/device.h"
#include "../device/elements.h"

template <class X, class Y, int n>
DEVICE void copy_rows(const copy_kernel_args &args)
{
    enum { BATCH = 4 };
    const place at = place_in(args.spread);
    const int down = args.spread.down;
    grid_wait();
    grid_launch_dependents();
    for (int row = at.first; row < at.end; row += BATCH * down) {
        int from[BATCH]; /* all before the first load: else each load would wait for its row's number */
        UNROLL
        for (int i = 0; i < BATCH; i++) {
            from[i] = row + i * down;
            if (args.ids && from[i] < at.end) from[i] = (int)ld_global_4(args.ids + from[i]);
        }
        packed<X, n> x[BATCH] = {};
        UNROLL
        for (int i = 0; i < BATCH; i++)
            if (row + i * down < at.end) x[i] = load<X, n>(args.x, from[i], at.column * n);
        UNROLL
        for (int i = 0; i < BATCH; i++)
            if (row + i * down < at.end) {
                float f[n];
                unpack(f, x[i]);
                store(args.y, row + i * down, at.column * n, pack<Y>(f));
            }
    }
}

KERNEL(copy_bf16_bf16, copy_kernel_args, SPREAD_THREADS, 4)
{
    copy_rows<bf16, bf16, 8>(args);
}
KERNEL(copy_f16_bf16, copy_kernel_args, SPREAD_THREADS, 4)
{
    copy_rows<f16, bf16, 8>(args);
}
KERNEL(copy_f32_bf16, copy_kernel_args, SPREAD_THREADS, 4)
{
    copy_rows<float, bf16, 4>(args);
}
KERNEL(copy_bf16_f32, copy_kernel_args, SPREAD_THREADS, 4)
{
    copy_rows<bf16, float, 4>(args);
}
KERNEL(copy_f16_f32, copy_kernel_args, SPREAD_THREADS, 4)
{
    copy_rows<f16, float, 4>(args);
}
KERNEL(copy_f32_f32, copy_kernel_args, SPREAD_THREADS, 4)
{
    copy_rows<float, float, 4>(args);
}
KERNEL(copy_any, copy_kernel_args, SPREAD_THREADS, 4)
{
    copy_rows<any_type, any_type, 1>(args);
}
