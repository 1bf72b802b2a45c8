/* klein's layouts of tensor core operands (tile.h, ptx_wgmma.h, the soft GPU's mma, ldmatrix, wgmma and tensor copies) against tables that
 * CuTe's definitions gave (golden/layouts, tools/golden/cute_layouts.py). The tables decide where operands are put and where results are
 * looked for; klein only computes in between. */
#include "soft/fixture.h"

#include "../base/dtype.h"

#include <string.h>

/* ---- the tables ---------------------------------------------------------------------------------------------------- */

struct fragment {
    int rows, threads, elements, thread[128], element[128];
};

/* The file after the header line that begins with `key`, whose rest goes to header. */
static FILE *table_at(const char *file, const char *key, char *header, int size)
{
    FILE *f = fopen(file, "r");
    cr_assert(f, "%s", file);
    while (fgets(header, size, f))
        if (!strncmp(header, key, strlen(key))) {
            memmove(header, header + strlen(key), strlen(header + strlen(key)) + 1);
            return f;
        }
    cr_assert(0, "%s: no %s", file, key);
    return NULL;
}

static int take(FILE *f)
{
    int v;
    cr_assert_eq(fscanf(f, "%d", &v), 1);
    return v;
}

static struct fragment fragment_of(const char *name, const char *operand)
{
    struct fragment t;
    char key[64], header[128];
    snprintf(key, sizeof key, "%s %s ", name, operand);
    FILE *f = table_at(GOLDEN("layouts/fragments.txt"), key, header, sizeof header);
    cr_assert_eq(sscanf(header, "%d rows, %d threads, %d elements", &t.rows, &t.threads, &t.elements), 3);
    cr_assert(t.threads <= 128 && t.elements <= 128);
    for (int i = 0; i < t.threads; i++) t.thread[i] = take(f);
    for (int i = 0; i < t.elements; i++) t.element[i] = take(f);
    fclose(f);
    return t;
}

static int row_of(const struct fragment *t, int thread, int element)
{
    return (t->thread[thread] + t->element[element]) % t->rows;
}

static int col_of(const struct fragment *t, int thread, int element)
{
    return (t->thread[thread] + t->element[element]) / t->rows;
}

struct tile {
    int swizzle, mn, element, lines, chunks; /* element: bytes */
    uint64_t fields;                         /* of the descriptor */
    int at[64][16];
};

static struct tile tile_of(int swizzle, int mn, int element)
{
    struct tile t = {.swizzle = swizzle, .mn = mn, .element = element};
    char key[64], header[128];
    unsigned leading, stride, base, type;
    snprintf(key, sizeof key, "%d %s %d bytes per element, ", swizzle, mn ? "mn" : "k", element);
    FILE *f = table_at(GOLDEN("layouts/shared.txt"), key, header, sizeof header);
    cr_assert_eq(sscanf(header, "%d lines, %d chunks, descriptor %u %u %u %u", &t.lines, &t.chunks, &leading,
                        &stride, &base, &type),
                 6);
    cr_assert(t.lines == 64 && t.chunks <= 16);
    t.fields = (uint64_t)leading << 16 | (uint64_t)stride << 32 | (uint64_t)base << 49 | (uint64_t)type << 62;
    for (int l = 0; l < t.lines; l++)
        for (int c = 0; c < t.chunks; c++) t.at[l][c] = take(f);
    fclose(f);
    return t;
}

/* Where element (mn, k) lies, in bytes. */
static int place(const struct tile *t, int mn, int k)
{
    int line = t->mn ? k : mn, byte = (t->mn ? mn : k) * t->element;
    return t->at[line][byte / 16] + byte % 16;
}

/* ---- operands ------------------------------------------------------------------------------------------------------- */

static int value(int operand, int row, int k)
{
    return (int)(4 * number((uint64_t)(operand * 1000000 + row * 1000 + k)));
}

/* A small integer as bf16 (2 bytes) or e4m3 (1). */
static void put(void *to, int bytes, int v)
{
    if (bytes == 2) {
        bf16 h = bf16_from_f32((float)v);
        memcpy(to, &h, 2);
        return;
    }
    for (int code = 0; code < 256; code++)
        if (f32_from_f8e4m3((uint8_t)code) == (float)v) {
            *(uint8_t *)to = (uint8_t)code;
            return;
        }
    cr_assert(0, "%d is no e4m3", v);
}

static float product(int row, int col, int k)
{
    float sum = 0;
    for (int i = 0; i < k; i++) sum += (float)(value(0, row, i) * value(1, col, i));
    return sum;
}

static struct gpu *launched(struct gpu *g, const char *kernel, unsigned threads, unsigned shared,
                            const void *args)
{
    OK(gpu_launch(g, &(struct launch){.kernel = kernel, .threads = threads, .shared = shared, .args = args},
                  &err));
    return g;
}

static void *device_space(struct gpu *g, size_t bytes)
{
    void *p;
    OK(gpu_alloc(g, bytes, &p, &err));
    return p;
}

/* ---- mma.sync ------------------------------------------------------------------------------------------------------- */

static void check_mma(struct gpu *g, const char *name, int bytes)
{
    struct fragment a = fragment_of(name, "a"), b = fragment_of(name, "b"), c = fragment_of(name, "c");
    cr_assert(a.elements * bytes == 16 && b.elements * bytes == 8 && c.elements == 4);
    char in_a[32][16], in_b[32][8];
    float d[32][4];
    for (int t = 0; t < 32; t++) {
        for (int e = 0; e < a.elements; e++)
            put(&in_a[t][e * bytes], bytes, value(0, row_of(&a, t, e), col_of(&a, t, e)));
        for (int e = 0; e < b.elements; e++)
            put(&in_b[t][e * bytes], bytes, value(1, row_of(&b, t, e), col_of(&b, t, e)));
    }
    struct layout_args args = {.a = to_device(g, in_a, sizeof in_a),
                               .b = to_device(g, in_b, sizeof in_b),
                               .y = device_space(g, sizeof d),
                               .kind = bytes == 1 ? LAYOUT_E4M3 : LAYOUT_BF16};
    OK(gpu_download(launched(g, "layouts_sm80_mma", 32, 0, &args), d, args.y, sizeof d, &err));
    for (int t = 0; t < 32; t++)
        for (int e = 0; e < 4; e++)
            cr_assert_eq(d[t][e], product(row_of(&c, t, e), col_of(&c, t, e), 32 / bytes),
                         "%s: thread %d, element %d", name, t, e);
}

Test(layouts, mma)
{
    struct gpu *g = open_gpu("sm_89", 1, SOFTGPU_LATE);
    check_mma(g, "mma_m16n8k16_bf16", 2);
    check_mma(g, "mma_m16n8k32_e4m3", 1);
    close_gpu(g);
}

/* Elements are numbered as the table does: 8 per row, and a row per thread that has its address. */
static int number_of(const struct fragment *t, int thread, int element)
{
    return t->thread[thread] + t->element[element];
}

Test(layouts, matrices)
{
    struct gpu *g = open_gpu("sm_90a", 1, SOFTGPU_LATE);
    struct fragment load = fragment_of("ldmatrix_x4", "registers"),
                    trans = fragment_of("ldmatrix_x4_trans", "registers"),
                    store = fragment_of("stmatrix_x4", "registers");
    uint16_t rows[256], loaded[2][4][32][2], stored[32][8];
    for (int i = 0; i < 256; i++) rows[i] = (uint16_t)(1000 + i);
    struct unit_args unit = {.a = to_device(g, rows, sizeof rows), .y = device_space(g, sizeof loaded)};
    OK(gpu_download(launched(g, "units_sm80_ldmatrix", 32, 512, &unit), loaded, unit.y, sizeof loaded, &err));
    for (int t = 0; t < 32; t++)
        for (int e = 0; e < 8; e++) {
            cr_assert_eq(loaded[0][e / 2][t][e % 2], 1000 + number_of(&load, t, e), "thread %d, element %d",
                         t, e);
            cr_assert_eq(loaded[1][e / 2][t][e % 2], 1000 + number_of(&trans, t, e),
                         "trans: thread %d, element %d", t, e);
            stored[t][e] = (uint16_t)(1000 + number_of(&store, t, e));
        }
    struct layout_args args = {.a = to_device(g, stored, sizeof stored), .y = device_space(g, sizeof rows)};
    OK(gpu_download(launched(g, "layouts_sm90_stmatrix", 32, 512, &args), stored, args.y, sizeof stored,
                    &err));
    cr_assert(!memcmp(stored, rows, sizeof rows));
    close_gpu(g);
}

/* load_a and load_b of tile.h, with ldmatrix, from a tile that the table of wgmma's 128-byte swizzle laid out: every byte arrives in the
 * register that the table of fragments says. Bytes name their row, then their place in the row. */
static void check_tile(struct gpu *g, const char *name, int bytes, int which)
{
    struct fragment a = fragment_of(name, "a"), b = fragment_of(name, "b");
    struct tile tile = tile_of(128, 0, bytes);
    static uint8_t image[8192], y[4][32][2][64];
    for (int row = 0; row < 64; row++)
        for (int byte = 0; byte < 128; byte++)
            image[tile.at[row][byte / 16] + byte % 16] = (uint8_t)(which ? byte : row);
    struct layout_args args = {.a = to_device(g, image, sizeof image), .y = device_space(g, sizeof y)};
    OK(gpu_download(launched(g, "layouts_sm80_tile", 32, 8192, &args), y, args.y, sizeof y, &err));
    for (int step = 0; step < 4; step++)
        for (int t = 0; t < 32; t++)
            for (int i = 0; i < 64; i++) {
                int e = i % 16 / bytes, byte = 32 * step + col_of(&a, t, e) * bytes + i % bytes;
                int row = 16 * (i / 16) + row_of(&a, t, e);
                cr_assert_eq(y[step][t][0][i], which ? byte : row, "%s: a, step %d, thread %d, byte %d", name,
                             step, t, i);
                e = i % 8 / bytes, byte = 32 * step + col_of(&b, t, e) * bytes + i % bytes;
                row = 8 * (i / 8) + row_of(&b, t, e);
                cr_assert_eq(y[step][t][1][i], which ? byte : row, "%s: b, step %d, thread %d, byte %d", name,
                             step, t, i);
            }
}

Test(layouts, tiles_into_fragments)
{
    struct gpu *g = open_gpu("sm_89", 1, SOFTGPU_LATE);
    for (int which = 0; which < 2; which++) {
        check_tile(g, "mma_m16n8k16_bf16", 2, which);
        check_tile(g, "mma_m16n8k32_e4m3", 1, which);
    }
    close_gpu(g);
}

/* ---- tensor copies -------------------------------------------------------------------------------------------------- */

/* A matrix of `lines` rows, as much of it as the pattern is wide, loaded by the copy engine, lies as the table says. */
static void check_copy(struct gpu *g, int swizzle, int mn, int element)
{
    struct tile t = tile_of(swizzle, mn, element);
    int width = t.chunks * 16; /* bytes of a row in global memory */
    static uint8_t x[64][256], y[64 * 128];
    for (int r = 0; r < 64; r++)
        for (int i = 0; i < width; i++)
            ((uint8_t *)x)[r * width + i] = (uint8_t)(number((uint64_t)(r * 256 + i)) * 127);
    struct tensor_box box = {.ptr = to_device(g, x, sizeof x),
                             .dtype = element == 2 ? DT_BF16 : DT_U8,
                             .rank = 2,
                             .dims = {(uint64_t)(width / element), 64},
                             .strides = {(uint64_t)width},
                             .box = {(uint32_t)(swizzle / element), 64},
                             .swizzle = swizzle};
    struct unit_sm90_args args = {.y = device_space(g, sizeof y), .rank = 2, .bytes = 64 * swizzle};
    OK(gpu_tensor_map(g, &box, &args.a, &err));
    for (int from = 0; from < width;
         from += swizzle) { /* boxes one after the other, as the tables have them */
        args.at[0] = from / element;
        OK(gpu_download(launched(g, "units_sm90_load", 128, 33792, &args), y, args.y, (size_t)args.bytes,
                        &err));
        for (int r = 0; r < 64; r++)
            for (int i = 0; i < swizzle; i += 16)
                cr_assert(!memcmp(y + t.at[r][(from + i) / 16] - from * 64,
                                  (uint8_t *)x + r * width + from + i, 16),
                          "swizzle %d %s, %d bytes: line %d, byte %d", swizzle, mn ? "mn" : "k", element, r,
                          from + i);
    }
}

Test(layouts, tensor_copies)
{
    struct gpu *g = open_gpu("sm_90a", 1, SOFTGPU_LATE);
    for (int swizzle = 32; swizzle <= 128; swizzle *= 2) {
        check_copy(g, swizzle, 0, 2);
        check_copy(g, swizzle, 0, 1);
        check_copy(g, swizzle, 1, 2);
    }
    close_gpu(g);
}

/* ---- wgmma ---------------------------------------------------------------------------------------------------------- */

/* The table's tile with value(operand, mn, k) in it. */
static void fill(void *image, const struct tile *t, int operand, int mn, int k)
{
    for (int i = 0; i < mn; i++)
        for (int j = 0; j < k; j++) put((char *)image + place(t, i, j), t->element, value(operand, i, j));
}

static void check_wgmma(struct gpu *g, enum layout_wgmma kind, int swizzle)
{
    const int bytes = kind == LAYOUT_SS_E4M3 ? 1 : 2, mn = kind == LAYOUT_SS_MN || kind == LAYOUT_RS_MN;
    const int registers = kind == LAYOUT_RS || kind == LAYOUT_RS_MN, n = mn ? 128 : 64;
    struct fragment c = fragment_of(n == 64 ? "wgmma_m64n64k16_bf16" : "wgmma_m64n256k16_bf16", "c");
    struct tile a = tile_of(mn ? 128 : swizzle, 0, bytes), b = tile_of(swizzle, mn, bytes);
    const int steps = a.chunks / 2, k = steps * 32 / bytes;
    static char image_a[8192], image_b[16384];
    static float y[128][64];
    fill(image_b, &b, 1, n, k);
    if (registers) {
        struct fragment r = fragment_of("wgmma_m64n64k16_bf16", "a");
        for (int step = 0; step < steps; step++)
            for (int t = 0; t < 128; t++)
                for (int e = 0; e < 8; e++)
                    put(image_a + 2048 * step + 16 * t + 2 * e, 2,
                        value(0, row_of(&r, t, e), 16 * step + col_of(&r, t, e)));
    } else {
        fill(image_a, &a, 0, 64, k);
    }
    struct layout_wgmma_args args = {.a = to_device(g, image_a, sizeof image_a),
                                     .b = to_device(g, image_b, sizeof image_b),
                                     .y = device_space(g, sizeof y),
                                     .own = device_space(g, 16),
                                     .a_fields = a.fields,
                                     .b_fields = b.fields,
                                     .a_step = steps > 1 ? place(&a, 0, 32 / bytes) : 0,
                                     .b_step = steps > 1 ? place(&b, 0, 32 / bytes) : 0,
                                     .steps = steps,
                                     .kind = kind,
                                     .n = n};
    uint64_t own[2];
    OK(gpu_download(launched(g, "layouts_sm90_wgmma", 128, 24576, &args), y, args.y,
                    sizeof(float) * 64 * (size_t)n, &err));
    OK(gpu_download(g, own, args.own, sizeof own, &err));
    for (int t = 0; t < 128; t++)
        for (int e = 0; e < n / 2; e++)
            cr_assert_eq(((float *)y)[t * (n / 2) + e], product(row_of(&c, t, e), col_of(&c, t, e), k),
                         "kind %d, swizzle %d: thread %d, element %d", kind, swizzle, t, e);
    if (swizzle == 128 && !registers)
        cr_assert_eq(own[0], a.fields, "kind %d: %lx, %lx", kind, own[0], a.fields);
    if (swizzle == 128) cr_assert_eq(own[1], b.fields, "kind %d: %lx, %lx", kind, own[1], b.fields);
}

Test(layouts, wgmma)
{
    struct gpu *g = open_gpu("sm_90a", 1, SOFTGPU_LATE);
    for (int swizzle = 32; swizzle <= 128; swizzle *= 2) {
        check_wgmma(g, LAYOUT_SS, swizzle);
        check_wgmma(g, LAYOUT_SS_E4M3, swizzle);
        check_wgmma(g, LAYOUT_SS_MN, swizzle);
        check_wgmma(g, LAYOUT_RS_MN, swizzle);
    }
    check_wgmma(g, LAYOUT_RS, 128);
    close_gpu(g);
}

/* What ptx_wgmma.h and ptx_sm80.h say about the fragments, in the words of their comments, against the tables. */
Test(layouts, as_documented)
{
    struct fragment a = fragment_of("mma_m16n8k16_bf16", "a"), c = fragment_of("mma_m16n8k16_bf16", "c"),
                    narrow = fragment_of("wgmma_m64n64k16_bf16", "c"),
                    wide = fragment_of("wgmma_m64n256k16_bf16", "c"),
                    wide_a = fragment_of("wgmma_m64n64k16_bf16", "a");
    for (int t = 0; t < 128; t++) {
        int lane = t % 32, warp = t / 32;
        for (int i = 0; i < 128; i++) {
            cr_assert_eq(row_of(&wide, t, i), 16 * warp + lane / 4 + 8 * (i / 2 % 2));
            cr_assert_eq(col_of(&wide, t, i), 8 * (i / 4) + 2 * (lane % 4) + i % 2);
            if (i < 32) cr_assert_eq(narrow.thread[t] + narrow.element[i], wide.thread[t] + wide.element[i]);
        }
        for (int i = 0; i < 8; i++) { /* a in registers: per warp the fragment of mma */
            cr_assert_eq(row_of(&wide_a, t, i), 16 * warp + row_of(&a, lane, i));
            cr_assert_eq(col_of(&wide_a, t, i), col_of(&a, lane, i));
        }
        for (int i = 0; i < 4; i++) {
            cr_assert_eq(row_of(&c, lane, i), lane / 4 + 8 * (i / 2));
            cr_assert_eq(col_of(&c, lane, i), 2 * (lane % 4) + i % 2);
        }
    }
}
