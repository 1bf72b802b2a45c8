/* bugs_sm80.cu: kernels with one planted bug each, and without. */
#include "../../kernels/device/device.h"
#include "../../kernels/device/ptx.h"
#include "args.h"

enum { T = BUG80_THREADS, STAGES = 2 };

struct pipeline_shared {
    u32x4 stage[STAGES][T];
};

/* y = sum of x over the blocks, each thread adding what another warp's thread copied. */
KERNEL(bugs_sm80_pipeline, bug_sm80_args, T, 1)
{
    SHARED(pipeline_shared, s);
    const int t = thread_index(), bug = args.bug;
    const uint32_t stages = shared_address(s.stage);
    const uint32_t *x = args.x + 4 * t;
    u32x4 sum = {0, 0, 0, 0};
    cp_async_16(stages + 16 * t, x, 16);
    cp_async_commit();
    for (int i = 0; i < BUG80_BLOCKS; i++) {
        const uint32_t now = stages + i % STAGES * sizeof s.stage[0],
                       next = stages + (i + 1) % STAGES * sizeof s.stage[0];
        if (i + 1 < BUG80_BLOCKS) cp_async_16(next + 16 * t, x + 4 * T * (i + 1), 16);
        cp_async_commit();
        if (bug == BUG80_SWAPPED) sync_threads();
        if (bug == BUG80_WAITS_TOO_LITTLE)
            cp_async_wait<2>();
        else
            cp_async_wait<1>();
        if (bug != BUG80_NO_BARRIER && bug != BUG80_SWAPPED) sync_threads();
        const u32x4 v = ld_shared_16(now + 16 * ((t + 32) % T));
        sum.x += v.x, sum.y += v.y, sum.z += v.z, sum.w += v.w;
        if (bug != BUG80_EARLY_REFILL) sync_threads();
    }
    if (bug == BUG80_NOT_WAITED) cp_async_16(stages + 16 * t, x, 16);
    st_global_16(args.y + 4 * t, sum);
}

struct alignas(16) misc_shared {
    shared<float> part[T / 32];
    float plain[4];
};

static volatile int depth;

/* More stack than a thread has, in a way that no compiler turns into a loop. */
static int deep(int n)
{
    volatile char local[8192];
    local[n % 8192] = (char)n;
    return n ? deep(n - 1) + local[(n * 7) % 8192] : depth;
}

KERNEL(bugs_sm80_misc, bug_sm80_args, T, 1)
{
    SHARED(misc_shared, s);
    const int t = thread_index(), size = 4 * T * BUG80_BLOCKS;
    float v = 1;
    switch (args.bug) {
    case BUG80_WRAPPED_BOUNDS:
        v = float_from_bits(ld_global_16(args.x + size - 4 + 4 * (t / 63)).x);
        break;
    case BUG80_PLAIN_READ:
        v = (float)args.x[t == 40 ? size + 2000 : t];
        break;
    case BUG80_PLAIN_WRITE:
        if (t == 3) args.y[4 * T] = 7;
        break;
    case BUG80_MISALIGNED:
        v = float_from_bits(ld_global_16(args.x + t).x);
        break;
    case BUG80_DIVERGENCE:
        if (t % 32 < 5)
            v = shfl_xor(v, 1);
        else
            sync_warp();
        break;
    case BUG80_BARRIER_SHORT:
        if (t < 32) bar_sync(2, T);
        break;
    case BUG80_SHARED_BOUNDS:
        v = float_from_bits(ld_shared_16(shared_address(&s) + 16 * t).x);
        break;
    case BUG80_TRAP:
        if (t == 9) trap();
        break;
    case BUG80_STACK:
        v = (float)deep(100);
        break;
    default:
        break;
    }
    for (int mask = 16; mask; mask /= 2) v += shfl_xor(v, mask);
    if (lane_index() == 0) s.part[warp_index()] = v;
    if (args.bug != BUG80_REDUCTION) sync_threads();
    v = 0;
    for (int i = 0; i < T / 32; i++) v += s.part[i];
    st_global_4(args.y + t, bits_from_float(v));
}
