/* Planted bugs: the soft GPU reports each of them with its cause, whatever the seed and the landing of asynchronous work. */
#include "soft/fixture.h"

#include <stdbool.h>

enum { SEEDS = 4 };

static const enum softgpu_async modes[] = {SOFTGPU_LATE, SOFTGPU_RANDOM, SOFTGPU_NOW};

/* Runs bugs_sm80's `kernel`; the message of its failure, "" if it did not fail. */
static const char *run_bug_sm80(const char *kernel, enum bug_sm80 bug, uint64_t seed, enum softgpu_async mode)
{
    enum { X = 4 * BUG80_THREADS * BUG80_BLOCKS, Y = 4 * BUG80_THREADS };
    static uint32_t x[X], y[Y];
    struct gpu *g = open_gpu("sm_80", seed, mode);
    for (int i = 0; i < X; i++) x[i] = (uint32_t)i * 2654435761u;
    void *dx = to_device(g, x, sizeof x), *dy;
    OK(gpu_alloc(g, sizeof y, &dy, &err));
    struct bug_sm80_args args = {dy, dx, bug};
    gpu_op(g, "test", kernel);
    struct launch l = {
        .kernel = kernel, .threads = BUG80_THREADS, .shared = 2 * BUG80_THREADS * 16, .args = &args};
    if (strstr(kernel, "misc")) l.shared = 48;
    err = (struct klein_error){0};
    enum klein_status status = gpu_launch(g, &l, &err);
    if (status == KLEIN_OK) status = gpu_download(g, y, dy, sizeof y, &err);
    if (status == KLEIN_OK && bug == BUG80_NONE && strstr(kernel, "pipeline"))
        for (int i = 0; i < Y; i++) {
            uint32_t sum = 0;
            for (int k = 0; k < BUG80_BLOCKS; k++) sum += x[Y * k + (i + Y / 2) % Y];
            cr_assert(y[i] == sum, "y[%d]", i);
        }
    gpu_free(g, dx);
    gpu_free(g, dy);
    close_gpu(g);
    return status == KLEIN_OK ? "" : err.message;
}

/* Does the message hold one of the texts "a|b"? None of them empty: it must be empty. */
static bool says(const char *message, const char *texts)
{
    char copy[256], *rest = copy;
    if (!*texts) return !*message;
    snprintf(copy, sizeof copy, "%s", texts);
    for (char *text; (text = strsep(&rest, "|"));)
        if (strstr(message, text)) return true;
    return false;
}

static void expect_sm80(const char *kernel, enum bug_sm80 bug, const char *text)
{
    for (uint64_t seed = 0; seed < SEEDS; seed++)
        for (int mode = 0; mode < 3; mode++) {
            const char *message = run_bug_sm80(kernel, bug, seed, modes[mode]);
            cr_assert(says(message, text), "seed %d mode %d: \"%s\", expected \"%s\"", (int)seed, mode,
                      message, text);
            cr_assert(!*text || strstr(message, kernel), "%s is not named in \"%s\"", kernel, message);
        }
}

Test(planted, sm80_right)
{
    expect_sm80("bugs_sm80_pipeline", BUG80_NONE, "");
    expect_sm80("bugs_sm80_misc", BUG80_NONE, "");
}

Test(planted, missing_barrier)
{
    expect_sm80("bugs_sm80_pipeline", BUG80_NO_BARRIER, "race: reads shared|race: overwrites shared");
}

Test(planted, wait_and_barrier_swapped)
{
    expect_sm80("bugs_sm80_pipeline", BUG80_SWAPPED, "race: reads shared");
}

Test(planted, stage_refilled_early)
{
    expect_sm80("bugs_sm80_pipeline", BUG80_EARLY_REFILL, "race: overwrites shared|race: reads shared");
}

Test(planted, wait_allows_too_many_groups)
{
    expect_sm80("bugs_sm80_pipeline", BUG80_WAITS_TOO_LITTLE,
                "cp.async.wait_group is missing or allows too many groups");
}

Test(planted, copy_never_waited_for)
{
    expect_sm80("bugs_sm80_pipeline", BUG80_NOT_WAITED, "ends with a cp.async that it never waited for");
}

Test(planted, out_of_bounds)
{
    expect_sm80("bugs_sm80_misc", BUG80_WRAPPED_BOUNDS, "0 bytes past the end of allocation");
    expect_sm80("bugs_sm80_misc", BUG80_PLAIN_READ, "bytes past the end of allocation");
    expect_sm80("bugs_sm80_misc", BUG80_SHARED_BOUNDS, "outside the dynamic shared memory");
}

Test(planted, plain_store_past_the_end)
{
    for (uint64_t seed = 0; seed < 3;
         seed++) { /* found when the guard bytes are looked at: names the allocation, not the kernel */
        const char *message = run_bug_sm80("bugs_sm80_misc", BUG80_PLAIN_WRITE, seed, modes[seed]);
        cr_assert(strstr(message, "past the end of allocation"), "%s", message);
    }
}

Test(planted, misaligned)
{
    expect_sm80("bugs_sm80_misc", BUG80_MISALIGNED, "not a multiple of 16");
}

Test(planted, divergence)
{
    expect_sm80("bugs_sm80_misc", BUG80_DIVERGENCE, "divergence");
}

Test(planted, deadlock_names_who_waits_where)
{
    expect_sm80("bugs_sm80_misc", BUG80_BARRIER_SHORT,
                "threads 0-31: barrier 2: 32 of 64 threads arrived (bugs_sm80.cu");
}

Test(planted, reduction_without_barrier)
{
    expect_sm80("bugs_sm80_misc", BUG80_REDUCTION, "race: ");
}

Test(planted, trap_and_stack)
{
    expect_sm80("bugs_sm80_misc", BUG80_TRAP, "precondition");
    expect_sm80("bugs_sm80_misc", BUG80_STACK, "stack overflow");
}

Test(planted, too_much_shared_memory)
{
    struct gpu *g = open_gpu("sm_89", 0, SOFTGPU_LATE);
    struct bug_sm80_args args = {0};
    struct launch l = {
        .kernel = "bugs_sm80_misc", .threads = BUG80_THREADS, .shared = 120 << 10, .args = &args};
    FAILS(gpu_launch(g, &l, &err), KLEIN_E_INTERNAL, "too much shared memory");
    cr_assert(strstr(err.message, "101376"), "%s", err.message); /* what sm_89 has */
    l.shared = 16;                                               /* fewer than the kernel's struct */
    OK(gpu_launch(g, &l, &err));
    FAILS(gpu_sync(g, &err), KLEIN_E_INTERNAL, "but was launched with 16");
    close_gpu(g);
}

Test(planted, wrong_number_of_threads)
{
    struct gpu *g = open_gpu("sm_80", 0, SOFTGPU_LATE);
    struct bug_sm80_args args = {0};
    FAILS(gpu_launch(
              g, &(struct launch){.kernel = "bugs_sm80_misc", .threads = 128, .shared = 48, .args = &args},
              &err),
          KLEIN_E_INTERNAL, "its bounds say (64, 1, 1)");
    close_gpu(g);
}

static const char *run_bug_sm90(enum bug_sm90 bug, uint64_t seed, enum softgpu_async mode)
{
    enum { K = 384 };
    static bf16 a[64 * K], b[64 * K], y[64 * 64];
    struct gpu *g = open_gpu("sm_90a", seed, mode);
    for (int i = 0; i < 64 * K; i++) {
        a[i] = bf16_from_f32(number((uint64_t)i));
        b[i] = bf16_from_f32(number((uint64_t)i + 99999));
    }
    void *da = to_device(g, a, sizeof a), *db = to_device(g, b, sizeof b), *dy;
    OK(gpu_alloc(g, sizeof y, &dy, &err));
    struct bug_sm90_args args = {map_of(g, da, 64, K, 64), map_of(g, db, 64, K, 64),
                                 map_of(g, dy, 64, 64, 64), K, bug};
    gpu_op(g, "test", "bugs_sm90");
    struct launch l = {.kernel = "bugs_sm90_gemm", .threads = BUG90_THREADS, .shared = 50176, .args = &args};
    err = (struct klein_error){0};
    l.dependent = bug == BUG90_NO_GRID_WAIT;
    enum klein_status status = gpu_launch(g, &l, &err);
    if (status == KLEIN_OK) status = gpu_download(g, y, dy, sizeof y, &err);
    if (status == KLEIN_OK && bug == BUG90_NONE)
        for (int i = 0; i < 64 * 64; i++) {
            double sum = 0;
            for (int k = 0; k < K; k++)
                sum += (double)f32_from_bf16(a[i / 64 * K + k]) * f32_from_bf16(b[i % 64 * K + k]);
            cr_assert(fabs(f32_from_bf16(y[i]) - sum) <= fabs(sum) * 0x1p-8 + 1e-4, "y[%d]", i);
        }
    close_gpu(g);
    return status == KLEIN_OK ? "" : err.message;
}

static void expect_sm90(enum bug_sm90 bug, const char *text)
{
    for (uint64_t seed = 0; seed < SEEDS; seed++)
        for (int mode = 0; mode < 3; mode++) {
            const char *message = run_bug_sm90(bug, seed, modes[mode]);
            cr_assert(says(message, text), "seed %d mode %d: \"%s\", expected \"%s\"", (int)seed, mode,
                      message, text);
            cr_assert(!*text || strstr(message, "bugs_sm90_gemm"), "the kernel is not named in \"%s\"",
                      message);
        }
}

Test(planted, sm90_right)
{
    expect_sm90(BUG90_NONE, "");
}

Test(planted, full_wait_skipped)
{
    expect_sm90(BUG90_NO_FULL_WAIT, "this thread has not waited for that phase");
}

Test(planted, stage_released_early)
{
    expect_sm90(
        BUG90_EARLY_RELEASE,
        "race: overwrites shared|or the stage was released before it was read|before this thread looked");
}

Test(planted, missing_wgmma_wait)
{
    expect_sm90(BUG90_NO_WGMMA_WAIT, "ends with a wgmma (line");
}

Test(planted, missing_wgmma_fence)
{
    expect_sm90(BUG90_NO_WGMMA_FENCE, "wgmma.fence is missing");
}

Test(planted, missing_proxy_fence)
{
    expect_sm90(BUG90_NO_PROXY_FENCE, "fence.proxy.async is missing");
}

Test(planted, wrong_expect_tx)
{
    expect_sm90(BUG90_EXPECT_LESS, "expect_tx announced");
    expect_sm90(BUG90_EXPECT_MORE, "16 bytes missing");
}

Test(planted, deadlocks_of_mbarriers)
{
    expect_sm90(BUG90_NO_ARRIVE, "deadlock");
    expect_sm90(BUG90_NO_ARRIVE, "0 of 4 arrivals");
    expect_sm90(BUG90_TOO_MANY_ARRIVE, "more arrivals than its count of 1");
}

Test(planted, wrong_parity)
{
    /* Who is early reads a stage that is being filled, who is late waits for a phase that nobody will complete. */
    expect_sm90(BUG90_WRONG_PARITY,
                "this thread has not waited for that phase|"
                "waiting for phase 2 (now 2): 0 of 1 arrivals, 0 bytes missing (bugs_sm90");
}

Test(planted, misaligned_tile)
{
    expect_sm90(BUG90_MISALIGNED_TILE, "misaligned tile");
}

Test(planted, store_not_waited_for)
{
    expect_sm90(BUG90_STORE_NOT_WAITED, "cp.async.bulk.wait_group is missing");
}

Test(planted, not_an_mbarrier)
{
    expect_sm90(BUG90_NOT_INITIALISED, "is not an initialised mbarrier");
}

Test(planted, missing_grid_wait)
{
    expect_sm90(BUG90_NO_GRID_WAIT, "writes global memory before griddepcontrol.wait");
}

Test(planted, arrival_left_over)
{
    expect_sm90(BUG90_ARRIVAL_LEFT, "barrier 5 has 128 of 256 threads");
}

Test(planted, register_budget)
{
    expect_sm90(BUG90_REGISTERS, "registers are free in the block");
}

/* Only what was released before a phase was complete is known to those who waited for it. */
Test(planted, read_of_an_open_phase)
{
    expect_sm90(BUG90_OPEN_PHASE, "race: reads shared|race: overwrites shared");
}
