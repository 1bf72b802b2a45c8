/* Tensor copies, wgmma and dependent launches on the soft GPU, against what the PTX ISA says, worked out here once more. */
#include "soft/fixture.h"

/* ---- tensor copies ------------------------------------------------------------------------------------------------ */

/* 5.5.7: in each 128 bytes, line number l of the pattern, chunk c of 16 bytes lies at c ^ l; of l as many bits count as the span has
 * chunks (CuTe: Swizzle<3,4,3>, <2,4,3>, <1,4,3>). */
static int swizzled(int offset, int span)
{
    static const int lines[] = {[0] = 1, [2] = 2, [4] = 4, [8] = 8};
    int line = offset / 128 % lines[span / 16], chunk = offset / 16 % 8;
    return offset / 128 * 128 + (chunk ^ line) * 16 + offset % 16;
}

/* Loads a box of f32 or bytes from a tensor and compares every byte in shared memory. */
static void check_load(struct gpu *g, int rank, const uint64_t *dims, const uint32_t *box, const int *at,
                       int swizzle)
{
    enum { ELEMENT = 4 };
    size_t count = 1, bytes = ELEMENT, strides[5] = {1};
    for (int d = 0; d < rank; d++) {
        strides[d] = count;
        count *= dims[d];
        bytes *= box[d];
    }
    float *x = malloc(count * sizeof *x), *y = malloc(bytes);
    for (size_t i = 0; i < count; i++) x[i] = (float)(i + 1);
    void *dx = to_device(g, x, count * sizeof *x), *dy;
    OK(gpu_alloc(g, bytes, &dy, &err));
    struct tensor_box map = {.ptr = dx, .dtype = DT_F32, .rank = rank, .swizzle = swizzle};
    struct unit_sm90_args args = {.y = dy, .rank = rank, .bytes = (int)bytes};
    for (int d = 0; d < rank; d++) {
        map.dims[d] = dims[d];
        map.box[d] = box[d];
        if (d) map.strides[d - 1] = strides[d] * ELEMENT;
        args.at[d] = at[d];
    }
    OK(gpu_tensor_map(g, &map, &args.a, &err));
    OK(gpu_launch(
        g, &(struct launch){.kernel = "units_sm90_load", .threads = 128, .shared = 33792, .args = &args},
        &err));
    OK(gpu_download(g, y, dy, bytes, &err));
    for (size_t i = 0; i < bytes / ELEMENT; i++) {
        size_t rest = i, from = 0;
        int inside = 1;
        for (int d = 0; d < rank; d++) {
            int64_t c = at[d] + (int64_t)(rest % box[d]);
            rest /= box[d];
            inside = inside && c >= 0 && c < (int64_t)dims[d];
            from += (size_t)c * strides[d];
        }
        float expected = inside ? x[from] : 0, got = y[swizzled((int)i * ELEMENT, swizzle) / ELEMENT];
        cr_assert(got == expected, "rank %d swizzle %d: element %zu is %g, not %g", rank, swizzle, i, got,
                  expected);
    }
    gpu_free(g, dx);
    gpu_free(g, dy);
    free(x);
    free(y);
}

Test(soft_sm90, tensor_loads)
{
    for (uint64_t seed = 0; seed < 3; seed++) {
        struct gpu *g = open_gpu("sm_90a", seed, (enum softgpu_async)seed);
        check_load(g, 2, (uint64_t[]){64, 100}, (uint32_t[]){32, 64}, (int[]){32, 10}, 128);
        check_load(g, 2, (uint64_t[]){60, 100}, (uint32_t[]){32, 64}, (int[]){40, 70},
                   128); /* clipped on both sides */
        check_load(g, 2, (uint64_t[]){64, 100}, (uint32_t[]){16, 64}, (int[]){16, 3}, 64);
        check_load(g, 2, (uint64_t[]){64, 100}, (uint32_t[]){8, 128}, (int[]){8, 3}, 32);
        check_load(g, 2, (uint64_t[]){64, 100}, (uint32_t[]){64, 20}, (int[]){-8, -5},
                   0); /* before the beginning */
        check_load(g, 3, (uint64_t[]){32, 10, 12}, (uint32_t[]){32, 8, 4}, (int[]){0, -1, 10}, 128);
        check_load(g, 3, (uint64_t[]){64, 9, 7}, (uint32_t[]){32, 8, 4}, (int[]){32, 3, -1},
                   128); /* rows of a convolution's window */
        close_gpu(g);
    }
}

Test(soft_sm90, tensor_maps_are_checked)
{
    struct gpu *g = open_gpu("sm_90a", 0, SOFTGPU_LATE);
    char *p = to_device(g, (char[65536]){0}, 65536);
    const struct tensor_box good = {.ptr = p,
                                    .dtype = DT_BF16,
                                    .rank = 2,
                                    .dims = {64, 64},
                                    .strides = {128},
                                    .box = {64, 64},
                                    .swizzle = 128};
    struct tensor_map map;
    struct tensor_box b = good;
    OK(gpu_tensor_map(g, &b, &map, &err));
#define REFUSED(change, text)                                                                                \
    do {                                                                                                     \
        b = good;                                                                                            \
        change;                                                                                              \
        FAILS(gpu_tensor_map(g, &b, &map, &err), KLEIN_E_INTERNAL, text);                                    \
    } while (0)
    REFUSED(b.ptr = p + 8, "not 16-byte aligned");
    REFUSED(b.strides[0] = 136, "not a multiple of 16");
    REFUSED(b.strides[0] = 64, "smaller than what it steps over");
    REFUSED(b.box[1] = 257, "not in 1..256");
    REFUSED(b.box[0] = 0, "not in 1..256");
    REFUSED(b.box[0] = 128, "wider than the swizzle");
    REFUSED((b.box[0] = 4, b.swizzle = 0), "not a multiple of 16");
    REFUSED(b.rank = 6, "rank 6");
    REFUSED(b.dims[1] = 0, "dimension 1");
    REFUSED(b.dims[1] = 513, "goes beyond its allocation");
    REFUSED(b.ptr = &map, "is not device memory");
    close_gpu(g);
    g = open_gpu("sm_89", 0, SOFTGPU_LATE);
    p = to_device(g, (char[8192]){0}, 8192);
    b = good;
    b.ptr = p;
    FAILS(gpu_tensor_map(g, &b, &map, &err), KLEIN_E_UNSUPPORTED, "tensor maps need sm_90");
    close_gpu(g);
}

/* ---- wgmma --------------------------------------------------------------------------------------------------------- */

static void check_product(struct gpu *g, enum unit_wgmma kind, int n)
{
    const int k = kind == UNIT_WGMMA_E4M3 ? 128 : 64, mn = kind == UNIT_WGMMA_MN || kind == UNIT_WGMMA_RS_MN;
    static uint8_t a[64 * 128], b[256 * 128]; /* rows of 128 bytes */
    static float y[64 * 256], values_a[64 * 128], values_b[256 * 128];
    for (int i = 0; i < 64 * k; i++) values_a[i] = (float)((int)(4 * number((uint64_t)i + 7)));
    for (int i = 0; i < n * k; i++) values_b[i] = (float)((int)(4 * number((uint64_t)i + 70000)));
    for (int i = 0; i < 64 * k; i++) {
        if (k == 128)
            for (int v = 0; v < 256; v++)
                a[i] = f32_from_f8e4m3((uint8_t)v) == values_a[i] ? (uint8_t)v : a[i];
        else
            ((bf16 *)a)[i] = bf16_from_f32(values_a[i]);
    }
    for (int i = 0; i < n * k; i++) { /* K-major [n, k] or MN-major [k, n] */
        int at = mn ? i % k * n + i / k : i;
        if (k == 128)
            for (int v = 0; v < 256; v++)
                b[at] = f32_from_f8e4m3((uint8_t)v) == values_b[i] ? (uint8_t)v : b[at];
        else
            ((bf16 *)b)[at] = bf16_from_f32(values_b[i]);
    }
    void *da = to_device(g, a, sizeof a), *db = to_device(g, b, sizeof b), *dy;
    OK(gpu_alloc(g, sizeof y, &dy, &err));
    struct unit_sm90_args args = {.y = dy, .kind = kind, .n = n};
    struct tensor_box box = {.ptr = da,
                             .dtype = DT_U8,
                             .rank = 2,
                             .dims = {128, 64},
                             .strides = {128},
                             .box = {128, 64},
                             .swizzle = 128};
    OK(gpu_tensor_map(g, &box, &args.a, &err));
    box.ptr = db;
    box.dims[1] = box.box[1] = (uint64_t)n;
    if (mn)
        box = (struct tensor_box){.ptr = db,
                                  .dtype = DT_BF16,
                                  .rank = 2,
                                  .dims = {(uint64_t)n, 64},
                                  .strides = {(uint64_t)n * 2},
                                  .box = {64, 64},
                                  .swizzle = 128};
    OK(gpu_tensor_map(g, &box, &args.b, &err));
    OK(gpu_launch(
        g,
        &(struct launch){
            .kernel = "units_sm90_product", .threads = 128, .shared = 8192 + 32768 + 1024, .args = &args},
        &err));
    OK(gpu_download(g, y, dy, sizeof(float) * 64 * (size_t)n, &err));
    for (int i = 0; i < 64; i++)
        for (int j = 0; j < n; j++) {
            float sum = 0;
            for (int x = 0; x < k; x++) sum += values_a[i * k + x] * values_b[j * k + x];
            cr_assert(y[i * n + j] == sum, "kind %d n %d: [%d, %d] is %g, not %g", kind, n, i, j,
                      y[i * n + j], sum);
        }
    gpu_free(g, da);
    gpu_free(g, db);
    gpu_free(g, dy);
}

Test(soft_sm90, products_as_the_isa_says)
{
    for (uint64_t seed = 0; seed < 3; seed++) {
        struct gpu *g = open_gpu("sm_90a", seed, (enum softgpu_async)seed);
        for (int n = 64; n <= 256; n += 64) {
            check_product(g, UNIT_WGMMA_SS, n);
            check_product(g, UNIT_WGMMA_E4M3, n);
            if (n > 128) continue;
            check_product(g, UNIT_WGMMA_MN, n);
            check_product(g, UNIT_WGMMA_RS, n);
            check_product(g, UNIT_WGMMA_RS_MN, n);
        }
        close_gpu(g);
    }
}

/* ---- dependent launches --------------------------------------------------------------------------------------------- */

/* y = x + 4 by four launches, each a dependent of the one before; what went wrong, or "". */
static const char *run_chain(const char *last, int kind, uint64_t seed, enum softgpu_async mode, float *y)
{
    enum { N = 128 * 9 };
    float x[N];
    for (int i = 0; i < N; i++) x[i] = (float)i;
    struct gpu *g = open_gpu("sm_90a", seed, mode);
    void *buffers[5] = {to_device(g, x, sizeof x)};
    for (int i = 1; i < 5; i++) OK(gpu_alloc(g, sizeof x, &buffers[i], &err));
    err = (struct klein_error){0};
    enum klein_status status = KLEIN_OK;
    for (int i = 0; i < 4 && status == KLEIN_OK; i++) {
        struct unit_args args = {.y = buffers[i + 1], .x = buffers[i], .kind = i == 2 ? kind : 0};
        status = gpu_launch(g,
                            &(struct launch){.kernel = i == 3 ? last : "units_sm90_chain",
                                             .grid = {9},
                                             .threads = 128,
                                             .args = &args,
                                             .dependent = i > 0},
                            &err);
    }
    if (status == KLEIN_OK) status = gpu_download(g, y, buffers[4], sizeof x, &err);
    close_gpu(g);
    return status == KLEIN_OK ? "" : err.message;
}

Test(soft_sm90, dependent_launches)
{
    static float y[128 * 9];
    for (uint64_t seed = 0; seed < 3; seed++)
        for (int mode = 0; mode < 3; mode++) {
            const char *message = run_chain("units_sm90_chain", 0, seed, (enum softgpu_async)mode, y);
            cr_assert(!*message, "%s", message);
            for (int i = 0; i < 128 * 9; i++) cr_assert(y[i] == (float)i + 4, "y[%d] = %g", i, y[i]);
            message = run_chain("units_sm90_chain", UNIT_NO_WAIT, seed, (enum softgpu_async)mode, y);
            cr_assert(strstr(message, "no thread executed griddepcontrol.wait"), "\"%s\"", message);
            message = run_chain("units_sm90_chain", UNIT_READS_EARLY, seed, (enum softgpu_async)mode, y);
            cr_assert(strstr(message, "reads global memory before griddepcontrol.wait"), "\"%s\"", message);
            message =
                run_chain("units_sm90_chain", UNIT_READS_CONSTANT_EARLY, seed, (enum softgpu_async)mode, y);
            cr_assert(!*message, "%s", message);
        }
}

Test(soft_sm90, reading_before_the_wait_reads_nothing)
{
    static float y[128 * 9];
    int wrong = 0;
    cr_assert(!*run_chain("units_sm90_chain_early", 0, 0, SOFTGPU_LATE, y));
    for (int i = 0; i < 128 * 9; i++) wrong += !(y[i] == (float)i + 4);
    cr_assert(wrong >= 128, "%d", wrong); /* the blocks that started early */
}
