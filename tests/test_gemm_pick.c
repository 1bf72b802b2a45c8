/* Which kernel computes a product by the rules, and how much scratch memory op linear needs. Nothing is launched. */
#include "support/support.h"

#include "../kernels/gemm/gemm_pick.h"
#include "../kernels/gemm/linear_launch.h"

#include <stdlib.h>
#include <string.h>

static struct klein_error err;

static struct gemm_shape shape_of(int arch, int multiprocessors, int shared_max, int kinds, int first_rows,
                                  int second_rows, int w_rows)
{
    return (struct gemm_shape){.arch = arch,
                               .multiprocessors = multiprocessors,
                               .shared_max = shared_max,
                               .kinds = kinds,
                               .type = DT_BF16,
                               .rows = {first_rows, second_rows},
                               .segments = 1,
                               .w_rows = {w_rows}};
}

Test(kernels_linear, pick)
{
    static const struct {
        int arch, multiprocessors, shared_max, kinds, rows[2], w_rows;
        const char *name;
    } picks[] = {
        {80, 108, 166912, GEMM_QKV, {4608, 0}, 27648, "gemm_sm80_qkv_128x128_s2"}, /* 1024 x 1024 */
        {80, 108, 166912, GEMM_LINEAR, {512, 4096}, 3072, "gemm_sm80_linear_128x128_s2"},
        {80,
         108,
         166912,
         GEMM_LINEAR,
         {768, 0},
         3072,
         "gemm_sm80_linear_64x128_s2"}, /* 144 large tiles: 2 rounds */
        {89, 128, 101376, GEMM_QKV, {4608, 0}, 27648, "gemm_sm80_qkv_128x128_s3"},
        {120, 170, 101376, GEMM_QKV, {4608, 0}, 27648, "gemm_sm80_qkv_128x128_s3"},
        {90, 132, 232448, GEMM_LINEAR, {512, 4096}, 3072, "gemm_linear_sm90_128x256"},
        {90, 132, 232448, GEMM_LINEAR, {4608, 0}, 3072, "gemm_linear_sm90_192x192"},
        {90, 132, 232448, GEMM_LINEAR, {512, 0}, 2560, "gemm_linear_sm90_64x192"}, /* the encoder */
        {90, 132, 232448, GEMM_QKV, {4608, 0}, 27648, "gemm_qkv_sm90_128x256"},
        {90, 132, 232448, 1 << LINEAR_SEGMENT_PLAIN, {4608, 0}, 27648, "gemm_linear_sm90_192x192"},
        {100, 148, 232448, GEMM_QKV, {4608, 0}, 27648, "gemm_sm80_qkv_128x128_s3"},
    };
    const struct gemm_variant *v;
    struct gemm_shape s;
    for (size_t i = 0; i < sizeof picks / sizeof *picks; i++) {
        s = shape_of(picks[i].arch, picks[i].multiprocessors, picks[i].shared_max, picks[i].kinds,
                     picks[i].rows[0], picks[i].rows[1], picks[i].w_rows);
        OK(gemm_pick(&s, NULL, &v, &err));
        cr_expect(!strcmp(v->name, picks[i].name), "row %zu: %s", i, v->name);
    }
    static const struct {
        int rows, w_rows;
        const char *name;
    } by_128[] = {{4608, 3072, "gemm_linear_e4m3_groups_sm90_128x192"},
                  {2304, 3072, "gemm_linear_e4m3_groups_sm90_128x144"}, /* 396 tiles: 3 rounds */
                  {1536, 3072, "gemm_linear_e4m3_groups_sm90_128x144"}, /* 264 */
                  {512, 3072, "gemm_linear_e4m3_groups_sm90_128x128"}};
    for (size_t i = 0; i < sizeof by_128 / sizeof *by_128; i++) {
        s = shape_of(90, 132, 232448, 1 << LINEAR_SEGMENT_RESIDUAL, by_128[i].rows, 0, by_128[i].w_rows);
        s.type = DT_F8E4M3, s.groups = 1;
        OK(gemm_pick(&s, NULL, &v, &err));
        cr_expect(!strcmp(v->name, by_128[i].name), "by 128, row %zu: %s", i, v->name);
    }
    enum { PLAIN = 1 << LINEAR_SEGMENT_PLAIN, SWIGLU = 1 << LINEAR_SEGMENT_SWIGLU };
    static const struct {
        int kinds, e4m3_y, groups, rows;
        const char *name;
    } to_e4m3[] = {{PLAIN, PLAIN, 0, 4608, "gemm_to_e4m3_sm90_linear_128x256"},
                   {PLAIN, PLAIN, 0, 512, "gemm_to_e4m3_sm90_linear_128x128"},
                   {PLAIN, PLAIN, 1, 4608, "gemm_to_e4m3_sm90_linear_groups_128x128"},
                   {GEMM_QKV, GEMM_QKV, 0, 512, "gemm_to_e4m3_sm90_qkv_128x256"},
                   {GEMM_QKV, PLAIN, 0, 512, "gemm_to_e4m3_sm90_qkv_128x256"},
                   {GEMM_QKV, SWIGLU, 0, 512, "gemm_qkv_e4m3_sm90_128x256"},
                   {GEMM_QKV, 0, 0, 512, "gemm_qkv_e4m3_sm90_128x128"}};
    for (size_t i = 0; i < sizeof to_e4m3 / sizeof *to_e4m3; i++) {
        s = shape_of(90, 132, 232448, to_e4m3[i].kinds, to_e4m3[i].rows, 0, 3072);
        s.type = DT_F8E4M3, s.groups = to_e4m3[i].groups, s.e4m3_y = to_e4m3[i].e4m3_y;
        OK(gemm_pick(&s, NULL, &v, &err));
        cr_expect(!strcmp(v->name, to_e4m3[i].name), "to e4m3, row %zu: %s", i, v->name);
    }
    FAILS(gemm_pick(&s, "gemm_to_e4m3_sm90_qkv_128x256", &v, &err), KLEIN_E_UNSUPPORTED, "takes F8_E4M3");
    static const struct {
        int arch, multiprocessors, kinds, e4m3_y, groups, rows, w_rows;
        const char *name;
    } by_mma[] = {
        {89, 128, GEMM_QKV, SWIGLU, 0, 4608, 27648, "gemm_sm89_qkv_128x256_s2"},
        {120, 170, GEMM_QKV, SWIGLU, 0, 4608, 18432, "gemm_sm89_qkv_128x256_s2"},
        {100, 148, GEMM_QKV, SWIGLU, 0, 4608, 27648, "gemm_sm89_qkv_64x256_s2"}, /* has no other */
        {89, 128, GEMM_QKV, SWIGLU, 0, 64, 18432, "gemm_sm89_qkv_64x256_s2"},
        {89, 128, GEMM_QKV, 0, 0, 512, 6144, "gemm_sm89_qkv_64x128_s2"},
        {89, 128, 1 << LINEAR_SEGMENT_RESIDUAL, 0, 1, 4608, 3072, "gemm_sm89_linear_groups_128x128_s3"},
        {100, 148, 1 << LINEAR_SEGMENT_RESIDUAL, 0, 1, 256, 3072, "gemm_sm89_linear_groups_64x128_s2"},
        {120, 170, PLAIN, PLAIN, 1, 512, 3072, "gemm_to_e4m3_sm89_linear_groups_128x128_s3"},
        {89, 128, GEMM_QKV, GEMM_QKV, 0, 4608, 3072, "gemm_to_e4m3_sm89_qkv_64x256_s2"}};
    for (size_t i = 0; i < sizeof by_mma / sizeof *by_mma; i++) {
        s = shape_of(by_mma[i].arch, by_mma[i].multiprocessors, 101376, by_mma[i].kinds, by_mma[i].rows, 0,
                     by_mma[i].w_rows);
        s.type = DT_F8E4M3, s.groups = by_mma[i].groups, s.e4m3_y = by_mma[i].e4m3_y;
        OK(gemm_pick(&s, NULL, &v, &err));
        cr_expect(!strcmp(v->name, by_mma[i].name), "by mma.sync, row %zu: %s", i, v->name);
    }
    s = shape_of(90, 132, 232448, GEMM_QKV, 512, 0, 3072);
    s.type = DT_BF16, s.e4m3_y = PLAIN;
    FAILS(gemm_pick(&s, NULL, &v, &err), KLEIN_E_UNSUPPORTED, "results in F8_E4M3 on sm_90");
    s = shape_of(80, 108, 166912, GEMM_QKV, 130, 65, 300);
    OK(gemm_pick(&s, "gemm_sm80_linear_64x128_s2,gemm_sm80_qkv_128x128_s3", &v, &err));
    cr_assert(v == gemm_variant(3) && gemm_variant(-1) == NULL && gemm_variant(99) == NULL);
    cr_assert(gemm_tiles(v, &s) == (2 + 1) * 3);
    FAILS(gemm_pick(&s, "gemm_sm81", &v, &err), KLEIN_E_INPUT, "KLEIN_GEMM=gemm_sm81: no such kernel");
    FAILS(gemm_pick(&s, "gemm_sm80_qkv_128x128_s3,gemm_sm80_qkv", &v, &err), KLEIN_E_INPUT, "no such kernel");
    FAILS(gemm_pick(&s, "gemm_sm80_linear_128x128_s3", &v, &err), KLEIN_E_UNSUPPORTED,
          "no kernel of gemm_sm80_linear_128x128_s3 takes BF16 products with QKV");
    s.type = DT_F8E4M3;
    FAILS(gemm_pick(&s, NULL, &v, &err), KLEIN_E_UNSUPPORTED, "no kernel takes F8_E4M3 products");
    s.arch = 89;
    OK(gemm_pick(&s, NULL, &v, &err));
    s.type = DT_BF16;
    s.arch = 75;
    FAILS(gemm_pick(&s, "", &v, &err), KLEIN_E_UNSUPPORTED, "no kernel takes BF16 products with QKV");
}

Test(kernels_linear, scratch_is_bounded)
{
    struct tensor x = tensor_of(NULL, DT_BF16, 4608, 3072), w = tensor_of(NULL, DT_BF16, 27648, 3072),
                  y = tensor_of(NULL, DT_BF16, 4608, 27648), few = x;
    few.rows = 3;
    cr_assert(linear_scratch(&(struct linear_args){.x = x, .y = y, .group[0].w = weight_of(w)}) == 32u << 20);
    cr_assert(linear_scratch(&(struct linear_args){.x = few, .y = y, .group[0].w = weight_of(w)}) ==
              3u * 27648 * 4);
}
