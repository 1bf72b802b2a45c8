/* groupnorm.cu: the norm of the autoencoder, on an image of pixels x channels; channels of a group lie side by side.
 *
 * Statistics have two levels, with an order that depends on the shape alone: no atomics. groupnorm_stats: each block takes a fixed range
 * of pixels and finds, per channel, the mean and the sum of squares about that mean; a thread computes them for a few pixels at a
 * time in two passes over registers and merges them into its own, then the threads of a channel are merged. groupnorm_combine: a
 * block per group adds up its channels and ranges in f64. Squares are taken about a mean near by at every level, so a large mean
 * does no harm.
 * Channels, not groups, are the unit of the first level: a group of 3 or 4 channels may begin inside a 16-byte vector. */
#include "../device/device.h"
#include "../device/elements.h"

/* A table by channel of a block: channel c of its tile at [c % n][c / n]. The padding puts neighbouring channels in different banks. */
template <int n>
using channel_table = shared<float>[n][SPREAD_THREADS + 32 / n];

struct moments {
    float mean, squares; /* squares: sum of (x - mean)^2 */
};
/* Adds the moments of `more` values, a part `share` = more / (all values) of the result. */
DEVICE moments merge(moments a, moments b, float more, float share)
{
    const float d = b.mean - a.mean;
    return {fmaf(d, share, a.mean), a.squares + b.squares + d * d * more * (1 - share)};
}

template <int n>
struct groupnorm_stats_shared {
    channel_table<n> mean, squares;
};

template <class T, int n>
DEVICE void groupnorm_stats(const groupnorm_stats_args &args)
{
    enum { BATCH = 8 }; /* pixels under way at once */
    SHARED(groupnorm_stats_shared<n>, s);
    const place at = place_in(args.spread);
    const int down = args.spread.down, across = args.spread.across;
    grid_wait();
    grid_launch_dependents();

    moments sum[n] = {};
    int count = 0;
    for (int row = at.first; row < at.end; row += BATCH * down) {
        packed<T, n> x[BATCH] = {};
        UNROLL
        for (int i = 0; i < BATCH; i++)
            if (row + i * down < at.end) x[i] = load<T, n>(args.x, row + i * down, at.column * n);
        const int here = at.end - row < BATCH * down ? ceil_div(at.end - row, down) : BATCH;
        moments batch[n] = {};
        UNROLL
        for (int i = 0; i < BATCH; i++)
            if (i < here) {
                float f[n];
                unpack(f, x[i]);
                UNROLL
                for (int j = 0; j < n; j++) batch[j].mean += f[j];
            }
        UNROLL
        for (int j = 0; j < n; j++) batch[j].mean /= (float)here;
        stay_packed(x);
        UNROLL
        for (int i = 0; i < BATCH; i++)
            if (i < here) {
                float f[n];
                unpack(f, x[i]);
                UNROLL
                for (int j = 0; j < n; j++) {
                    const float d = f[j] - batch[j].mean;
                    batch[j].squares = fmaf(d, d, batch[j].squares);
                }
            }
        count += here;
        const float share = (float)here / (float)count;
        UNROLL
        for (int j = 0; j < n; j++) sum[j] = merge(sum[j], batch[j], (float)here, share);
    }
    UNROLL
    for (int j = 0; j < n; j++) {
        s.mean[j][thread_index()] = sum[j].mean;
        s.squares[j][thread_index()] = sum[j].squares;
    }
    sync_threads();

    /* A thread per channel of the tile merges the rows of threads, from the first to the last. */
    const int chunk = block_x() / args.spread.tiles, tile = block_x() - chunk * args.spread.tiles;
    const int from = chunk * args.spread.rows_per_block;
    const int pixels = args.spread.rows - from < args.spread.rows_per_block ? args.spread.rows - from
                                                                            : args.spread.rows_per_block;
    for (int c = thread_index(); c < across * n && tile * across * n + c < args.cols; c += SPREAD_THREADS) {
        moments all = {};
        int merged = 0;
        for (int p = 0; p < down && p < pixels; p++) {
            const int more = ceil_div(pixels - p, down), thread = p * across + c / n;
            merged += more;
            all = merge(all, {s.mean[c % n][thread], s.squares[c % n][thread]}, (float)more,
                        (float)more / (float)merged);
        }
        st_global_8(args.partial + 2 * ((int64_t)chunk * args.cols + tile * across * n + c),
                    bits_from_float(all.mean), bits_from_float(all.squares));
        if (tile + c == 0) st_global_4(args.counts + chunk, bits_from_float((float)pixels));
    }
}

KERNEL(groupnorm_stats_bf16, groupnorm_stats_args, SPREAD_THREADS, 2)
{
    groupnorm_stats<bf16, 8>(args);
}
KERNEL(groupnorm_stats_f32, groupnorm_stats_args, SPREAD_THREADS, 2)
{
    groupnorm_stats<float, 4>(args);
}
KERNEL(groupnorm_stats_any, groupnorm_stats_args, SPREAD_THREADS, 2)
{
    groupnorm_stats<any_type, 1>(args);
}

struct groupnorm_combine_shared {
    shared<double> sum[GROUPNORM_COMBINE_THREADS], squares[GROUPNORM_COMBINE_THREADS],
        values[GROUPNORM_COMBINE_THREADS];
};

DEVICE void combine(const groupnorm_combine_args &args)
{
    SHARED(groupnorm_combine_shared, s);
    const int group = block_x(), size = args.group_size;
    grid_wait();
    grid_launch_dependents();
    double sum = 0, squares = 0, values = 0; /* squares: about zero, which f64 bears */
    for (int64_t i = thread_index(); i < (int64_t)args.chunks * size; i += GROUPNORM_COMBINE_THREADS) {
        const int64_t chunk = i / size;
        const u32x2 part =
            ld_global_8(args.partial + 2 * (chunk * args.cols + group * size + (i - chunk * size)));
        const double mean = float_from_bits(part.x),
                     count = float_from_bits(ld_global_4(args.counts + chunk));
        sum += count * mean;
        squares += float_from_bits(part.y) + count * mean * mean;
        values += count;
    }
    s.sum[thread_index()] = sum;
    s.squares[thread_index()] = squares;
    s.values[thread_index()] = values;
    for (int half = GROUPNORM_COMBINE_THREADS / 2; half; half /= 2) {
        sync_threads();
        if (thread_index() < half) {
            s.sum[thread_index()] = s.sum[thread_index()] + s.sum[thread_index() + half];
            s.squares[thread_index()] = s.squares[thread_index()] + s.squares[thread_index() + half];
            s.values[thread_index()] = s.values[thread_index()] + s.values[thread_index() + half];
        }
    }
    if (thread_index() == 0) {
        const double all = s.values[0], mean = s.sum[0] / all;
        const double variance = fmax(s.squares[0] / all - mean * mean, 0.0);
        store_any(args.stats.ptr, ELEMENT_F32, group * args.stats.ld, (float)mean);
        store_any(args.stats.ptr, ELEMENT_F32, group * args.stats.ld + 1,
                  (float)(1 / sqrt(variance + args.eps)));
    }
}

KERNEL(groupnorm_combine, groupnorm_combine_args, GROUPNORM_COMBINE_THREADS, 1)
{
    combine(args);
}

template <int n>
struct groupnorm_apply_shared {
    channel_table<n> mean, scale, beta;
};

/* z / (1 + e^-z) */
DEVICE float silu(float z)
{
    return z * rcp_approx(1 + expf(-z));
}

struct statistics {
    float mean, scale; /* scale: 1 / sqrt(var + eps) */
};

/* Of a group of the whole image. */
DEVICE statistics statistics_of(const groupnorm_apply_args &args, int group)
{
    const int64_t next = (int64_t)(args.cols / args.group_size) * args.stats.ld; /* the next band's */
    const int64_t first = group * args.stats.ld;
    const auto stat = [&](int64_t at) { return load_any(args.stats.ptr, ELEMENT_F32, at); };
    if (args.bands == 1) return {stat(first), stat(first + 1)};
    float mean = 0, squares = 0;
    UNROLL_BY(1) /* few, and registers are wanted for pixels */
    for (int i = 0; i < args.bands; i++) mean = fmaf(args.share[i], stat(first + i * next), mean);
    UNROLL_BY(1)
    for (int i = 0; i < args.bands; i++) {
        const float d = stat(first + i * next) - mean, s = stat(first + i * next + 1);
        squares = fmaf(args.share[i], fmaf(d, d, 1 / (s * s)), squares);
    }
    return {mean, 1 / sqrtf(squares)};
}

template <class T, int n>
DEVICE void groupnorm_apply(const groupnorm_apply_args &args)
{
    enum { BATCH = 4 }; /* pixels under way at once */
    SHARED(groupnorm_apply_shared<n>, s);
    const int across = args.spread.across, down = args.spread.down;
    const int first = block_x() % args.spread.tiles * across * n; /* channel of the tile */
    grid_wait();
    grid_launch_dependents();
    for (int c = thread_index(); c < across * n && first + c < args.cols; c += SPREAD_THREADS) {
        const statistics of = statistics_of(args, (first + c) / args.group_size);
        s.mean[c % n][c / n] = of.mean;
        s.scale[c % n][c / n] = of.scale * load_any(args.gamma.ptr, args.gamma.type, first + c);
        s.beta[c % n][c / n] = load_any(args.beta.ptr, args.beta.type, first + c);
    }
    sync_threads();
    const place at = place_in(args.spread);
    if (at.first >= at.end) return;
    float mean[n], scale[n], beta[n]; /* of this thread's channels */
    UNROLL
    for (int j = 0; j < n; j++) {
        const int v = thread_index() % across;
        mean[j] = s.mean[j][v], scale[j] = s.scale[j][v], beta[j] = s.beta[j][v];
    }
    for (int row = at.first; row < at.end; row += BATCH * down) {
        packed<T, n> x[BATCH] = {};
        UNROLL
        for (int i = 0; i < BATCH; i++)
            if (row + i * down < at.end) x[i] = load<T, n>(args.x, row + i * down, at.column * n);
        UNROLL
        for (int i = 0; i < BATCH; i++)
            if (row + i * down < at.end) {
                float f[n];
                unpack(f, x[i]);
                UNROLL
                for (int j = 0; j < n; j++) {
                    f[j] = fmaf(f[j] - mean[j], scale[j], beta[j]);
                    if (args.silu) f[j] = silu(f[j]);
                }
                store(args.y, row + i * down, at.column * n, pack<T>(f));
            }
    }
}

KERNEL(groupnorm_apply_bf16, groupnorm_apply_args, SPREAD_THREADS, 2)
{
    groupnorm_apply<bf16, 8>(args);
}
KERNEL(groupnorm_apply_f32, groupnorm_apply_args, SPREAD_THREADS, 2)
{
    groupnorm_apply<float, 4>(args);
}
KERNEL(groupnorm_apply_any, groupnorm_apply_args, SPREAD_THREADS, 2)
{
    groupnorm_apply<any_type, 1>(args);
}
