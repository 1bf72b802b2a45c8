/* attention_simple.cu: attention for what the fast kernels do not take: f32, head widths that are not multiples of 64, rows that are
 * not 16-byte aligned. Right, not fast: no tensor cores.
 *
 * A warp owns one query of one head and walks over the keys, 32 at a time: lane l computes the score of key l, the warp the softmax of
 * what has been seen (as in flash.inc), and lane l the columns l, l + 32, .. of the sum over values. */
#include "flash.inc"

enum { WARPS = ATTENTION_SIMPLE_THREADS / 32, LANES = 32, COLUMNS = ATTENTION_WIDTH_MAX / LANES };

struct alignas(16) attention_simple_shared {
    float p[WARPS][LANES];
};
static_assert(sizeof(attention_simple_shared) == ATTENTION_SIMPLE_SHARED, "args.h");

DEVICE float value(float f)
{
    return f;
}
DEVICE float value(bf16 h)
{
    return float_from_bf16(h);
}
DEVICE void put(float *to, float f)
{
    *to = f;
}
DEVICE void put(bf16 *to, float f)
{
    *to = bf16_from_float(f);
}

template <class T>
DEVICE float dot(const T *a, const T *b, int n)
{
    float sum = 0;
    for (int i = 0; i < n; i++) sum += value(a[i]) * value(b[i]);
    return sum;
}

DEVICE float warp_max(float x)
{
    for (int mask = 16; mask; mask /= 2) x = fmaxf(x, shfl_xor(x, mask));
    return x;
}

DEVICE float warp_sum(float x)
{
    for (int mask = 16; mask; mask /= 2) x += shfl_xor(x, mask);
    return x;
}

/* o += weight * row, the lane's columns. */
template <class T>
DEVICE void add_row(float (&o)[COLUMNS], float weight, const T *row, int width)
{
    UNROLL
    for (int c = 0; c < COLUMNS; c++)
        if (lane_index() + LANES * c < width) o[c] += weight * value(row[lane_index() + LANES * c]);
}

template <class T>
DEVICE void attention_simple(const flash_args &args)
{
    SHARED(attention_simple_shared, s);
    grid_wait();
    grid_launch_dependents();
    const int query = block_x() * WARPS + warp_index(), lane = lane_index(), width = args.head_dim;
    grid_wait();
    grid_launch_dependents();
    if (query >= args.queries) return; /* the whole warp; there is no block barrier */
    const int head = block_y(), count = flash_keys(args),
              end = args.causal && query + 1 < count ? query + 1 : count;
    const int64_t kv_column = (int64_t)(head / args.group) * width;
    const T *q = static_cast<const T *>(args.q) + (int64_t)query * args.ldq + (int64_t)head * width;
    const T *k = static_cast<const T *>(args.k) + kv_column, *v = static_cast<const T *>(args.v) + kv_column;
    const uint32_t p = shared_address(s.p[warp_index()]);

    float o[COLUMNS] = {}, top = float_from_bits(0xff800000u) /* -infinity */, sum = 0;
    for (int key0 = 0; key0 < end; key0 += LANES) {
        const int key = key0 + lane, keys = end - key0 < LANES ? end - key0 : LANES;
        const float score =
            key < end ? dot(q, k + (int64_t)key * args.ldk, width) : float_from_bits(0xff800000u);
        const float before = top;
        top = fmaxf(before, warp_max(score) * args.scale_log2);
        const float keep = exp2_approx(before - top), /* first tile: 0 */
            mine = exp2_approx(fmaf(score, args.scale_log2, -top));
        sum = sum * keep + warp_sum(mine);
        st_shared_4(p + 4 * lane, bits_from_float(mine));
        sync_warp();
        UNROLL
        for (int c = 0; c < COLUMNS; c++) o[c] *= keep;
        for (int i = 0; i < keys; i += 4) {
            const u32x4 four = ld_shared_16(p + 4 * i);
            const uint32_t weight[4] = {four.x, four.y, four.z, four.w};
            UNROLL
            for (int e = 0; e < 4; e++)
                if (i + e < keys)
                    add_row(o, float_from_bits(weight[e]), v + (int64_t)(key0 + i + e) * args.ldv, width);
        }
        sync_warp(); /* p is free */
    }

    T *out = reinterpret_cast<T *>(route_row(args.route, args.o, query, (int64_t)sizeof(T) * args.ldo)) +
             (int64_t)head * width;
    UNROLL
    for (int c = 0; c < COLUMNS; c++)
        if (lane + LANES * c < width) put(out + lane + LANES * c, o[c] / sum);
}

KERNEL(attention_simple_f32, flash_args, ATTENTION_SIMPLE_THREADS, 4)
{
    attention_simple<float>(args);
}

KERNEL(attention_simple_bf16, flash_args, ATTENTION_SIMPLE_THREADS, 4)
{
    attention_simple<bf16>(args);
}
