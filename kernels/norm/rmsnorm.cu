/* rmsnorm.cu: y = x / sqrt(mean(x^2) + eps) * w per row: the norm of every layer of the text encoder. A warp per row, which it holds
 * packed in registers: one pass over memory. Blocks are small, as 512 rows are few for a large chip. */
#include "../device/device.h"
#include "../device/elements.h"

template <class T, int width>
DEVICE void rmsnorm(const rmsnorm_kernel_args &args)
{
    constexpr int n = 16 / (int)sizeof(T), vectors = width / n / 32; /* of a lane */
    grid_wait();
    grid_launch_dependents();
    const int row = block_x() * RMSNORM_ROWS + warp_index();
    if (row >= args.rows) return;
    packed<T, n> x[vectors] = {};
    packed<bf16, n> w[vectors] =
        {}; /* fetched along with the row: afterwards each store would wait for a load */
    UNROLL
    for (int i = 0; i < vectors; i++) {
        const int column = (i * 32 + lane_index()) * n;
        if (column < args.cols) x[i] = load<T, n>(args.x, row, column);
    }
    UNROLL
    for (int i = 0; i < vectors; i++) {
        const int column = (i * 32 + lane_index()) * n;
        if (column < args.cols) w[i] = load<bf16, n>(args.w, 0, column);
    }
    float squares = 0; /* vectors beyond the row are zeros */
    UNROLL
    for (int i = 0; i < vectors; i++) {
        float f[n];
        unpack(f, x[i]);
        UNROLL
        for (int j = 0; j < n; j++) squares = fmaf(f[j], f[j], squares);
    }
    const float inverse = 1 / sqrtf(warp_sum(squares) / (float)args.cols + args.eps);
    stay_packed(x);
    UNROLL
    for (int i = 0; i < vectors; i++) {
        const int column = (i * 32 + lane_index()) * n;
        if (column < args.cols) {
            float f[n], scale[n];
            unpack(f, x[i]);
            unpack(scale, w[i]);
            UNROLL
            for (int j = 0; j < n; j++) f[j] = f[j] * inverse * scale[j];
            store(args.y, row, column, pack<T>(f));
        }
    }
}

/* Any types, width and alignment: the row is read twice, an element at a time. */
KERNEL(rmsnorm_any, rmsnorm_kernel_args, RMSNORM_THREADS, 1)
{
    grid_wait();
    grid_launch_dependents();
    const int row = block_x() * RMSNORM_ROWS + warp_index();
    if (row >= args.rows) return;
    float squares = 0;
    for (int c = lane_index(); c < args.cols; c += 32) {
        const float f = load_any(args.x.ptr, args.x.type, row * args.x.ld + c);
        squares = fmaf(f, f, squares);
    }
    const float inverse = 1 / sqrtf(warp_sum(squares) / (float)args.cols + args.eps);
    for (int c = lane_index(); c < args.cols; c += 32) {
        const float f = load_any(args.x.ptr, args.x.type, row * args.x.ld + c);
        store_any(args.y.ptr, args.y.type, row * args.y.ld + c,
                  f * inverse * load_any(args.w.ptr, args.w.type, c));
    }
}

KERNEL(rmsnorm_bf16_256, rmsnorm_kernel_args, RMSNORM_THREADS, 4)
{
    rmsnorm<bf16, 256>(args);
}
KERNEL(rmsnorm_bf16_1024, rmsnorm_kernel_args, RMSNORM_THREADS, 4)
{
    rmsnorm<bf16, 1024>(args);
}
KERNEL(rmsnorm_bf16_2560, rmsnorm_kernel_args, RMSNORM_THREADS, 4)
{
    rmsnorm<bf16, 2560>(args);
}
KERNEL(rmsnorm_bf16_4096, rmsnorm_kernel_args, RMSNORM_THREADS, 2)
{
    rmsnorm<bf16, 4096>(args);
}

KERNEL(rmsnorm_f32_256, rmsnorm_kernel_args, RMSNORM_THREADS, 4)
{
    rmsnorm<float, 256>(args);
}
KERNEL(rmsnorm_f32_1024, rmsnorm_kernel_args, RMSNORM_THREADS, 4)
{
    rmsnorm<float, 1024>(args);
}
KERNEL(rmsnorm_f32_2560, rmsnorm_kernel_args, RMSNORM_THREADS, 2)
{
    rmsnorm<float, 2560>(args);
}
KERNEL(rmsnorm_f32_4096, rmsnorm_kernel_args, RMSNORM_THREADS, 2)
{
    rmsnorm<float, 4096>(args);
}
