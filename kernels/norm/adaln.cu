/* adaln.cu: y = (x - mean) / sqrt(var + eps) * (1 + scale) + shift per row: the norm of every block of the transformer. */
#include "adaln.inc"

/* Any type, width and alignment: the row is read three times, an element at a time. */
KERNEL(adaln_any, adaln_kernel_args, ADALN_THREADS, 1)
{
    grid_wait();
    grid_launch_dependents();
    const int row = block_x() * ADALN_ROWS + warp_index();
    if (row >= args.rows) return;
    const int group = row >= args.split;
    const matrix scale = {const_cast<float *>(args.scale[group]), 0, ELEMENT_F32};
    const matrix shift = {const_cast<float *>(args.shift[group]), 0, ELEMENT_F32};
    const auto at = [&](const matrix &m, int c) { return load_any(m.ptr, m.type, row * m.ld + c); };

    float sum = 0, squares = 0;
    for (int c = lane_index(); c < args.cols; c += 32) sum += at(args.x, c);
    const float mean = warp_sum(sum) / (float)args.cols;
    for (int c = lane_index(); c < args.cols; c += 32) {
        const float d = at(args.x, c) - mean;
        squares += d * d;
    }
    const float inverse = 1 / sqrtf(warp_sum(squares) / (float)args.cols + args.eps);
    for (int c = lane_index(); c < args.cols; c += 32)
        store_any(args.y.ptr, args.y.type, row * args.y.ld + c,
                  fmaf((at(args.x, c) - mean) * inverse, 1 + at(scale, c), at(shift, c)));
}

KERNEL(adaln_bf16_256, adaln_kernel_args, ADALN_THREADS, 4)
{
    adaln<bf16, bf16, 256>(args);
}
KERNEL(adaln_bf16_1024, adaln_kernel_args, ADALN_THREADS, 4)
{
    adaln<bf16, bf16, 1024>(args);
}
KERNEL(adaln_bf16_3072, adaln_kernel_args, ADALN_THREADS, 2)
{
    adaln<bf16, bf16, 3072>(args);
}
KERNEL(adaln_bf16_4096, adaln_kernel_args, ADALN_THREADS, 2)
{
    adaln<bf16, bf16, 4096>(args);
}

KERNEL(adaln_f32_256, adaln_kernel_args, ADALN_THREADS, 4)
{
    adaln<float, float, 256>(args);
}
KERNEL(adaln_f32_1024, adaln_kernel_args, ADALN_THREADS, 3)
{
    adaln<float, float, 1024>(args);
}
KERNEL(adaln_f32_3072, adaln_kernel_args, ADALN_THREADS, 1)
{
    adaln<float, float, 3072>(args);
}
KERNEL(adaln_f32_4096, adaln_kernel_args, ADALN_THREADS, 1)
{
    adaln<float, float, 4096>(args);
}
