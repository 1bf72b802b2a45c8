/* quantise_sm89.cu: rows of bf16 as e4m3 with a scale per row: activations per token, weights per output channel.
 *
 * A block per row, which its registers hold (up to 16384 columns; what a row has beyond is read twice): one pass over memory. */
#include "../device/device.h"
#include "../device/elements.h"
#include "../device/ptx.h"

enum { HELD = 8, VECTOR = 8, STRIDE = QUANTISE_THREADS * VECTOR /* columns of the block at a time */ };

struct quantise_shared {
    shared<float> largest[QUANTISE_THREADS / 32]; /* of each warp */
};
static_assert(sizeof(quantise_shared) == QUANTISE_SHARED, "args.h");

DEVICE float largest_of(const packed<bf16, VECTOR> &x, float largest)
{
    float f[VECTOR];
    unpack(f, x);
    UNROLL
    for (int i = 0; i < VECTOR; i++) largest = fmaxf(largest, fabsf(f[i]));
    return largest;
}

DEVICE packed<fp8, VECTOR> quantised(const packed<bf16, VECTOR> &x, float factor)
{
    float f[VECTOR];
    unpack(f, x);
    UNROLL
    for (int i = 0; i < VECTOR; i++) f[i] *= factor;
    return pack<fp8>(f);
}

/* Zeros beyond the row. */
DEVICE packed<bf16, VECTOR> load_vector(const quantise_args &args, int row, int column)
{
    packed<bf16, VECTOR> x = {};
    if (column < args.cols) x = load<bf16, VECTOR>(args.x, row, column);
    return x;
}

KERNEL(quantise_sm89_bf16, quantise_args, QUANTISE_THREADS, 4)
{
    SHARED(quantise_shared, s);
    grid_wait();
    const int row = block_x(), first = thread_index() * VECTOR;
    packed<bf16, VECTOR> x[HELD];
    UNROLL
    for (int i = 0; i < HELD; i++) x[i] = load_vector(args, row, first + i * STRIDE);
    float largest = 0x1p-100f; /* so that a row of zeros has a scale, and its inverse is finite */
    UNROLL
    for (int i = 0; i < HELD; i++) largest = largest_of(x[i], largest);
    for (int c = first + HELD * STRIDE; c < args.cols; c += STRIDE)
        largest = largest_of(load_vector(args, row, c), largest);
    largest = warp_max(largest);
    if (lane_index() == 0) s.largest[warp_index()] = largest;
    sync_threads();
    UNROLL
    for (int i = 0; i < QUANTISE_THREADS / 32; i++) largest = fmaxf(largest, s.largest[i]);
    stay_packed(x);

    const float factor = 448 / largest;
    UNROLL
    for (int i = 0; i < HELD; i += 2)
        store_pair(args.y, row, first + i * STRIDE, STRIDE, args.cols, quantised(x[i], factor),
                   quantised(x[i + 1], factor));
    for (int c = first + HELD * STRIDE; c - first < args.cols; c += 2 * STRIDE) /* the same for all lanes */
        store_pair(args.y, row, c, STRIDE, args.cols, quantised(load_vector(args, row, c), factor),
                   quantised(load_vector(args, row, c + STRIDE), factor));
    if (thread_index() == 0) st_global_4(args.row_scale + row, bits_from_float(largest / 448));
}
