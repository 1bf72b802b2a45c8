/* quantise_sm89.cu: rows of bf16 as e4m3 with a scale per row: activations per token, weights per output channel.
 *
 * A warp per row. What its registers hold of a row (4096 columns) is read once, the rest twice. */
#include "../device/device.h"
#include "../device/elements.h"
#include "../device/ptx.h"

enum { HELD = 16, VECTOR = 8, STRIDE = 32 * VECTOR /* columns of a warp at a time */ };

DEVICE float largest_of(const packed<bf16, VECTOR> &x, float largest)
{
    float f[VECTOR];
    unpack(f, x);
    UNROLL
    for (int i = 0; i < VECTOR; i++) largest = fmaxf(largest, fabsf(f[i]));
    return largest;
}

DEVICE void store_quantised(const quantise_args &args, int row, int column, const packed<bf16, VECTOR> &x,
                            float factor)
{
    float f[VECTOR];
    unpack(f, x);
    UNROLL
    for (int i = 0; i < VECTOR; i++) f[i] *= factor;
    store(args.y, row, column, pack<fp8>(f));
}

KERNEL(quantise_sm89_bf16, quantise_args, QUANTISE_THREADS, 2)
{
    grid_wait();
    const int row = block_x() * QUANTISE_ROWS + warp_index(), first = lane_index() * VECTOR;
    if (row >= args.rows) return; /* the whole warp */
    packed<bf16, VECTOR> x[HELD] = {};
    UNROLL
    for (int i = 0; i < HELD; i++)
        if (first + i * STRIDE < args.cols) x[i] = load<bf16, VECTOR>(args.x, row, first + i * STRIDE);
    float largest = 0x1p-100f; /* so that a row of zeros has a scale, and its inverse is finite */
    UNROLL
    for (int i = 0; i < HELD; i++) largest = largest_of(x[i], largest);
    for (int c = first + HELD * STRIDE; c < args.cols; c += STRIDE)
        largest = largest_of(load<bf16, VECTOR>(args.x, row, c), largest);
    largest = warp_max(largest);
    stay_packed(x);

    const float factor = 448 / largest;
    UNROLL
    for (int i = 0; i < HELD; i++)
        if (first + i * STRIDE < args.cols) store_quantised(args, row, first + i * STRIDE, x[i], factor);
    for (int c = first + HELD * STRIDE; c < args.cols; c += STRIDE)
        store_quantised(args, row, c, load<bf16, VECTOR>(args.x, row, c), factor);
    if (lane_index() == 0) st_global_4(args.row_scale + row, bits_from_float(largest / 448));
}
