/* linear_rows.cu: op linear of few rows of f32, as the modulation vectors are: the weights, bf16, pass once, and time is theirs.
 *
 * A warp computes a few columns of y for all rows: lane l has elements 8 l .. 8 l + 7 of every 256 of k, of the weights by one load of
 * 16 bytes, of x (which is small, and stays in the caches) by two. Sums are f32, over the lanes in a fixed order. */
#include "../device/device.h"
#include "../device/elements.h"
#include "../device/ptx.h"

template <int rows>
DEVICE void linear_rows(const linear_rows_args &args)
{
    enum { EACH = LINEAR_ROWS_EACH };
    grid_wait();
    const int n0 = block_x() * LINEAR_ROWS_BLOCK + warp_index() * EACH;
    if (n0 >= args.n) return; /* the whole warp */
    const matrix x = {const_cast<float *>(args.x), args.ldx, ELEMENT_F32};
    float sum[EACH][rows] = {};
    for (int k = 8 * lane_index(); k < args.k; k += 256) {
        packed<bf16, 8> w[EACH] = {};
        UNROLL
        for (int j = 0; j < EACH; j++)
            if (n0 + j < args.n) {
                const u32x4 v = ld_global_constant_16(args.w + (n0 + j) * args.ldw + k);
                w[j].w[0] = v.x, w[j].w[1] = v.y, w[j].w[2] = v.z, w[j].w[3] = v.w;
            }
        UNROLL
        for (int i = 0; i < rows; i++) {
            if (i >= args.m) break;
            float low[4], high[4];
            unpack(low, load<float, 4>(x, i, k));
            unpack(high, load<float, 4>(x, i, k + 4));
            UNROLL
            for (int j = 0; j < EACH; j++) {
                float f[8];
                unpack(f, w[j]);
                UNROLL
                for (int e = 0; e < 4; e++) {
                    sum[j][i] = fmaf(low[e], f[e], sum[j][i]);
                    sum[j][i] = fmaf(high[e], f[e + 4], sum[j][i]);
                }
            }
        }
    }
    UNROLL
    for (int j = 0; j < EACH; j++) {
        UNROLL
        for (int i = 0; i < rows; i++) {
            float z = warp_sum(sum[j][i]);
            if (n0 + j >= args.n || i >= args.m || lane_index() != i) continue;
            if (args.bias.ptr) z += load_any(args.bias.ptr, args.bias.type, n0 + j);
            if (args.silu) z /= 1 + expf(-z);
            st_global_4(args.y + i * args.ldy + n0 + j, bits_from_float(z));
        }
    }
}

KERNEL(linear_rows_4, linear_rows_args, LINEAR_ROWS_THREADS, 4)
{
    linear_rows<4>(args);
}
KERNEL(linear_rows_8, linear_rows_args, LINEAR_ROWS_THREADS, 3)
{
    linear_rows<8>(args);
}
