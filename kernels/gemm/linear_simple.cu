/* linear_simple.cu: op linear for what the fast kernels do not take: f32, weights and vectors of any type, any size and alignment, heads
 * of any width, weights cut anywhere. Right, not fast: no tensor cores, and the product passes memory once more. */
#include "../device/device.h"
#include "../device/elements.h"
#include "../device/ptx.h"
#include "../group/route.h"

enum { TILE = LINEAR_SIMPLE_TILE, DEPTH = 16, EACH = 4 /* rows and columns of a thread */ };

struct alignas(16) linear_simple_shared {
    shared<float> x[DEPTH][TILE + 4],
        w[DEPTH][TILE + 4]; /* by k; padded, so that neighbouring k are in other banks */
};
static_assert(sizeof(linear_simple_shared) == LINEAR_SIMPLE_SHARED, "args.h");

/* DEPTH columns from k0 of TILE rows from row0: zeros beyond the matrix. */
DEVICE void load_tile(shared<float> (&tile)[DEPTH][TILE + 4], const matrix &m, int row0, int rows, int k0,
                      int k, bool round)
{
    for (int i = thread_index(); i < TILE * DEPTH; i += LINEAR_SIMPLE_THREADS) {
        const int row = i / DEPTH, column = i % DEPTH;
        float f = 0;
        if (row0 + row < rows && k0 + column < k)
            f = load_any(m.ptr, m.type, (row0 + row) * m.ld + k0 + column);
        tile[column][row] = round ? bf16_low(pack_bf16(f, 0)) : f;
    }
}

KERNEL(linear_simple_product, linear_product_args, LINEAR_SIMPLE_THREADS, 2)
{
    SHARED(linear_simple_shared, s);
    const int row0 = block_x() * TILE, col0 = block_y() * TILE;
    const int down = thread_index() / 16,
              across = thread_index() % 16; /* rows down + 16 i, columns across + 16 j */
    float sum[EACH][EACH] = {};
    grid_wait();
    for (int k0 = 0; k0 < args.k; k0 += DEPTH) {
        load_tile(s.x, args.x, row0, args.rows, k0, args.k, args.round);
        load_tile(s.w, args.w, col0, args.cols, k0, args.k, args.round);
        sync_threads();
        for (int k = 0; k < DEPTH; k++) {
            float x[EACH], w[EACH];
            UNROLL
            for (int i = 0; i < EACH; i++) x[i] = s.x[k][down + 16 * i], w[i] = s.w[k][across + 16 * i];
            UNROLL
            for (int i = 0; i < EACH; i++) {
                UNROLL
                for (int j = 0; j < EACH; j++) sum[i][j] = fmaf(x[i], w[j], sum[i][j]);
            }
        }
        sync_threads();
    }
    UNROLL
    for (int i = 0; i < EACH; i++) {
        const int row = row0 + down + 16 * i;
        UNROLL
        for (int j = 0; j < EACH; j++) {
            const int column = col0 + across + 16 * j;
            if (row < args.rows && column < args.cols)
                st_global_4(args.z + row * args.ldz + column, bits_from_float(sum[i][j]));
        }
    }
}

DEVICE float silu(float z)
{
    return z / (1 + expf(-z));
}

DEVICE float at(const matrix &m, int64_t row, int64_t column)
{
    return load_any(m.ptr, m.type, row * m.ld + column);
}

/* Where y(row, column) is, on the device that has it. */
DEVICE char *place_of(const linear_finish_args &args, int64_t row, int column)
{
    const int element = args.y.type == ELEMENT_BF16 ? sizeof(bf16) : sizeof(float);
    char *y = static_cast<char *>(args.y.ptr) + (int64_t)column * element;
    if (args.route.state) {
        y = route_column(args.route, args.y.ptr, args.y_col + column, element);
        row = route_row_of(args.route, (int)row);
    }
    return y + row * args.y.ld * element;
}

KERNEL(linear_simple_finish, linear_finish_args, LINEAR_SIMPLE_THREADS, 4)
{
    grid_wait();
    const int64_t index = (int64_t)block_x() * LINEAR_SIMPLE_THREADS + thread_index();
    const int row = (int)(index / args.cols), column = (int)(index - (int64_t)row * args.cols);
    if (row >= args.rows) return;
    const float *z = args.z + row * args.ldz + column;
    float f = float_from_bits(ld_global_4(z + args.w));
    if (args.bias.ptr) f += at(args.bias, 0, column);
    if (args.kind == LINEAR_SEGMENT_SILU) f = silu(f);
    if (args.kind == LINEAR_SEGMENT_SWIGLU) f = silu(f) * float_from_bits(ld_global_4(z + args.up));
    if (args.kind == LINEAR_SEGMENT_RESIDUAL)
        f = fmaf(args.gate.ptr ? at(args.gate, 0, column) : 1, f, at(args.residual, row, column));
    store_any(place_of(args, row, column), args.y.type, 0, f);
}

KERNEL(linear_simple_rope, linear_finish_args, LINEAR_SIMPLE_THREADS, 4)
{
    grid_wait();
    const int heads = args.cols / args.head_dim, pairs = args.head_dim / 2;
    const int64_t index = (int64_t)block_x() * (LINEAR_SIMPLE_THREADS / 32) + warp_index();
    const int row = (int)(index / heads), head = (int)(index - (int64_t)row * heads);
    if (row >= args.rows) return; /* the whole warp */
    const float *z = args.z + row * args.ldz + args.w + head * args.head_dim;
    float squares = 0;
    for (int i = lane_index(); i < args.head_dim; i += 32) {
        const float f = float_from_bits(ld_global_4(z + i));
        squares = fmaf(f, f, squares);
    }
    const float inverse = 1 / sqrtf(warp_sum(squares) / (float)args.head_dim + args.eps);
    char *const y = place_of(args, row, head * args.head_dim);
    for (int i = lane_index(); i < pairs; i += 32) {
        const int first = args.half ? i : 2 * i, second = args.half ? i + pairs : 2 * i + 1;
        const float x = float_from_bits(ld_global_4(z + first)) * inverse * at(args.norm, 0, first),
                    v = float_from_bits(ld_global_4(z + second)) * inverse * at(args.norm, 0, second),
                    cosine = at(args.cos, row, i), sine = at(args.sin, row, i);
        store_any(y, args.y.type, first, x * cosine - v * sine);
        store_any(y, args.y.type, second, fmaf(v, cosine, x * sine));
    }
}
