/* --precision fp8 on the soft GPU: blocks of real width and the demo checkpoint against BF16, files in FP8; what is refused. The op:
 * test_fp8_linear.c. --verbose prints the errors that were measured. */
#include "support/judge.h"
#include "support/models.h"
#include "support/support.h"

#include "../engine/memory.h"
#include "../kernels/cuda/cuda.h"
#include "../kernels/soft/softgpu.h"
#include "../weights/checkpoint.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

static struct klein_error err;

/* The device's name: "soft CHIP" is the soft GPU as that chip from now on, "soft CHIP quick" without its look for races, "truncating"
 * with sums of FP8 as Hopper is said to make them: 13 fraction bits, the rest cut off. */
static const char *device_of(const char *spec)
{
    struct softgpu_config c;
    if (strncmp(spec, "soft ", 5)) return spec;
    cr_assert(softgpu_config_from_env(&c));
    cr_assert(sscanf(spec, "soft %15s", c.arch) == 1);
    c.check_races = !strstr(spec, " quick");
    c.truncate_fp8 = strstr(spec, " truncating") != NULL;
    cr_assert(softgpu_configure(&c));
    return "soft";
}

static size_t bytes_of(struct tensor t)
{
    return (size_t)t.rows * (size_t)t.cols * dtype_size(t.dtype);
}

/* ---- networks ---------------------------------------------------------------------------------------------------------- */

enum { TAPS = 8 };
#define ERROR 0.03 /* relative L2 to BF16 that is allowed */

struct taps {
    struct tapped {
        char name[64];
        struct tensor t;
    } tap[TAPS];
    int n;
};

/* Keeps velocities and outputs of blocks. */
static void keep(void *user, const struct klein_tap *tap)
{
    struct taps *taps = user;
    if (strncmp(tap->name, "velocity.", 9) && strncmp(tap->name, "step.", 5)) return;
    cr_assert(taps->n < TAPS && tap->ndim >= 2);
    int rows = 1, cols = (int)tap->shape[tap->ndim - 1];
    for (int i = 0; i + 1 < tap->ndim; i++) rows *= (int)tap->shape[i];
    struct tapped *to = &taps->tap[taps->n++];
    snprintf(to->name, sizeof to->name, "%s", tap->name);
    to->t = tensor_of(malloc((size_t)rows * (size_t)cols * sizeof(float)), DT_F32, rows, cols);
    cr_assert(to->t.ptr);
    memcpy(to->t.ptr, tap->data, bytes_of(to->t));
}

/* Relative L2 of what was tapped in two runs. */
static void compare(const char *what, const struct taps *fp8, const struct taps *bf16, double limit)
{
    cr_assert(fp8->n == bf16->n && fp8->n > 0);
    for (int i = 0; i < fp8->n; i++) {
        const struct tapped *a = &fp8->tap[i], *b = &bf16->tap[i];
        cr_assert(!strcmp(a->name, b->name));
        double l2 = relative_l2(a->t, b->t);
        cr_log_info("%s: %s: relative L2 to BF16 %.4f", what, a->name, l2);
        cr_expect(l2 <= limit, "%s: %s: relative L2 %g, allowed %g", what, a->name, l2, limit);
        cr_expect(l2 > 1e-3, "%s: %s is the same as in BF16: nothing was in FP8", what, a->name);
    }
}

static void taps_free(struct taps *taps)
{
    for (int i = 0; i < taps->n; i++) free(taps->tap[i].t.ptr);
}

/* A double and a single block as wide as those of klein 4B, all else small, with random weights. */
static struct model_config wide_config(void)
{
    struct model_config c, small;
    OK(config_named("klein-4b", &c, &err));
    OK(config_named("tiny", &small, &err));
    c.dit.double_blocks = c.dit.single_blocks = 1;
    c.text = small.text;
    c.vae = small.vae;
    c.dit.text_width = small.dit.text_width;
    c.text_length = 32;
    OK(config_finish(&c, "wide", &err));
    return c;
}

static void one_step(const struct model_config *config, const char *device, enum klein_precision precision,
                     struct taps *taps)
{
    struct checkpoint *c;
    struct klein *k;
    struct klein_result result;
    struct klein_open_options o = {
        .size = sizeof o, .device = device_of(device), .threads = 1, .precision = precision};
    struct klein_request q = {.size = sizeof q,
                              .prompt = "",
                              .width = 64,
                              .height = 64,
                              .steps = 1,
                              .seed = 3,
                              .tap = keep,
                              .tap_user = taps,
                              .tap_blocks = 1};
    OK(checkpoint_random(config, DT_BF16, 11, &c, &err));
    OK(context_open(c, &o, &k, &err));
    OK(klein_generate(k, &q, &result, &err));
    klein_result_free(&result);
    klein_close(k);
}

Test(fp8, blocks_of_real_width)
{
    /* Where sums may be cut and go over all of k they are: where x has scales per row. */
    static const char *const chips[] = {"soft sm_89 quick truncating", "soft sm_90a quick"};
    struct model_config c = wide_config();
    struct taps bf16 = {.n = 0};
    one_step(&c, "cpu", KLEIN_PRECISION_BF16, &bf16);
    for (int i = 0; i < 2; i++) {
        struct taps fp8 = {.n = 0};
        one_step(&c, chips[i], KLEIN_PRECISION_FP8, &fp8);
        compare(chips[i], &fp8, &bf16, ERROR);
        taps_free(&fp8);
    }
    taps_free(&bf16);
}

static struct klein *open_nano(const char *device, enum klein_precision precision)
{
    struct klein *k;
    struct klein_open_options o = {.size = sizeof o,
                                   .model = KLEIN_SOURCE_DIR "/weights/nano",
                                   .device = device_of(device),
                                   .threads = 1,
                                   .precision = precision};
    OK(klein_open(&o, &k, &err));
    return k;
}

static struct klein_request balloon(uint64_t seed)
{
    return (struct klein_request){
        .size = sizeof(struct klein_request), .prompt = "a red balloon on a wooden table", .seed = seed};
}

static int stop_after_a_step(void *user, const struct klein_progress *p)
{
    return p->stage == KLEIN_STAGE_DENOISE && p->step > 0;
}

static void first_velocity(const char *device, enum klein_precision precision, uint64_t seed,
                           struct taps *taps)
{
    struct klein *k = open_nano(device, precision);
    struct klein_request q = balloon(seed);
    struct klein_result result;
    q.tap = keep, q.tap_user = taps, q.progress = stop_after_a_step;
    FAILS(klein_generate(k, &q, &result, &err), KLEIN_E_CANCELLED, "cancelled");
    cr_assert(taps->n == 1 && !strcmp(taps->tap[0].name, "velocity.0"));
    klein_close(k);
}

static void check_velocity(const char *device, uint64_t seeds)
{
    for (uint64_t seed = 1; seed <= seeds; seed++) {
        struct taps bf16 = {.n = 0}, fp8 = {.n = 0};
        first_velocity(device, KLEIN_PRECISION_BF16, seed, &bf16);
        first_velocity(device, KLEIN_PRECISION_FP8, seed, &fp8);
        compare(device, &fp8, &bf16, ERROR);
        taps_free(&bf16), taps_free(&fp8);
    }
}

Test(fp8, first_velocity_sm_89)
{
    check_velocity("soft sm_89", 2);
}

Test(fp8, first_velocity_sm_90a)
{
    check_velocity("soft sm_90a", 2);
}

Test(fp8, first_velocity_with_truncated_sums)
{
    check_velocity("soft sm_90a truncating", 1);
}

/* Ada is said to cut them, too, and where x has scales per row gemm_sm89 begins no new sum before the end of k. */
Test(fp8, first_velocity_with_truncated_sums_sm_89)
{
    check_velocity("soft sm_89 truncating", 1);
}

static void check_picture(const char *device)
{
    json_t *wanted = json_pack("{s:s, s:s, s:s}", "colour", "red", "kind", "balloon", "place", "table");
    struct klein *k = open_nano(device, KLEIN_PRECISION_FP8);
    struct klein_model_info info;
    struct klein_result result;
    struct klein_request q = balloon(1);
    klein_model_info(k, &info);
    cr_assert(!strcmp(info.precision, "fp8") && !strcmp(info.dtype, "bf16"));
    OK(klein_generate(k, &q, &result, &err));
    struct judge *judge = judge_open();
    struct shown seen = judge_see(judge, &result.images[0]);
    const enum attribute asked[] = {COLOUR, KIND, PLACE};
    for (int i = 0; i < 3; i++) {
        const char *value = shown_value(asked[i], seen.value[asked[i]]),
                   *want = json_string_value(json_object_get(wanted, attribute_names[asked[i]]));
        cr_expect(!strcmp(value, want), "%s: %s is %s, not %s", device, attribute_names[asked[i]], value,
                  want);
    }
    judge_close(judge);
    klein_result_free(&result);
    klein_close(k);
    json_decref(wanted);
}

Test(fp8, picture_sm_89)
{
    check_picture("soft sm_89 quick"); /* races are looked for elsewhere */
}

Test(fp8, picture_sm_90a)
{
    check_picture("soft sm_90a quick");
}

static uint64_t picture(struct klein *k, enum klein_graph graph)
{
    struct klein_result result;
    struct klein_request q = balloon(2);
    q.width = q.height = 32, q.steps = 2, q.graph = graph;
    OK(klein_generate(k, &q, &result, &err));
    uint64_t hash = result.latent_hashes[0] * 31 + fnv1a(result.images[0].rgb, 32 * 32 * 3);
    klein_result_free(&result);
    return hash;
}

Test(fp8, graphs_give_the_same_bytes)
{
    static const char *const chips[] = {"soft sm_89", "soft sm_90a"};
    for (int c = 0; c < 2; c++) {
        struct klein *k = open_nano(chips[c], KLEIN_PRECISION_FP8);
        const uint64_t want = picture(k, KLEIN_GRAPH_OFF);
        for (int i = 0; i < 2; i++) /* captured, replayed */
            for (int graph = KLEIN_GRAPH_STAGES; graph <= KLEIN_GRAPH_REQUEST; graph++)
                cr_assert(picture(k, (enum klein_graph)graph) == want, "%s: graph %d, call %d", chips[c],
                          graph, i);
        klein_close(k);
    }
}

static void look(void *user, const struct klein_tap *tap)
{
    *(int *)user += !strncmp(tap->name, "step.0.single.", 14);
}

/* The last block, which makes k and v alone of text and references unless somebody looks at it: the same bytes, also from scales per row
 * and per 128 columns. */
Test(fp8, last_block)
{
    static const char *const chips[] = {"soft sm_89", "soft sm_90a"};
    static const uint8_t rgb[64 * 64 * 3] = {200, 100};
    const struct klein_image reference = {64, 64, (uint8_t *)rgb};
    for (int c = 0; c < 2; c++) {
        uint64_t latents[2];
        int seen = 0;
        struct klein *k = open_nano(chips[c], KLEIN_PRECISION_FP8);
        for (int looked_at = 0; looked_at < 2; looked_at++) {
            struct klein_result result;
            struct klein_request q = balloon(2);
            q.width = q.height = 32, q.steps = 1;
            q.references = &reference, q.n_references = 1;
            if (looked_at) q.tap = look, q.tap_user = &seen, q.tap_blocks = 1;
            OK(klein_generate(k, &q, &result, &err));
            latents[looked_at] = result.latent_hashes[0];
            klein_result_free(&result);
        }
        cr_assert(seen == 2 && latents[0] == latents[1], "%s: the latents differ", chips[c]);
        klein_close(k);
    }
}

/* ---- what is placed, and what is refused ------------------------------------------------------------------------------- */

Test(fp8, only_the_blocks_are_quantised)
{
    struct klein *k = open_nano("soft sm_89", KLEIN_PRECISION_FP8);
    const struct dit *d = &k->model->dit;
    const struct tensor blocks[] = {d->doubles[0].stream[DIT_TEXT].qkv.part[2],
                                    d->doubles[1].stream[DIT_IMAGE].proj,
                                    d->doubles[0].stream[DIT_IMAGE].mlp_in,
                                    d->doubles[0].stream[DIT_TEXT].mlp_out,
                                    d->singles[0].in,
                                    d->singles[1].out};
    const struct tensor others[] = {d->x_embedder, d->context_embedder,     d->time_in,
                                    d->time_out,   d->modulation[DIT_TEXT], d->modulation_single,
                                    d->proj_out,   d->final_scale};
    for (size_t i = 0; i < sizeof blocks / sizeof *blocks; i++)
        cr_assert(blocks[i].dtype == DT_F8E4M3 && blocks[i].scale, "matrix %zu of the blocks", i);
    for (size_t i = 0; i < sizeof others / sizeof *others; i++)
        cr_assert(others[i].dtype == DT_BF16 && !others[i].scale, "matrix %zu beside the blocks", i);
    klein_close(k);
}

static void refused(const char *device, enum klein_dtype dtype, int precision, enum klein_status status,
                    const char *text)
{
    struct klein *k;
    struct klein_open_options o = {.size = sizeof o,
                                   .model = KLEIN_SOURCE_DIR "/weights/nano",
                                   .device = device_of(device),
                                   .threads = 1,
                                   .dtype = dtype,
                                   .precision = (enum klein_precision)precision};
    FAILS(klein_open(&o, &k, &err), status, text);
    cr_assert(!k);
}

Test(fp8, refused_where_it_cannot_be)
{
    refused("cpu", KLEIN_DTYPE_AUTO, KLEIN_PRECISION_FP8, KLEIN_E_UNSUPPORTED,
            "\"cpu\" does not multiply FP8");
    refused("ref", KLEIN_DTYPE_AUTO, KLEIN_PRECISION_FP8, KLEIN_E_UNSUPPORTED,
            "\"ref\" does not multiply FP8");
    refused("soft sm_89", KLEIN_DTYPE_F32, KLEIN_PRECISION_FP8, KLEIN_E_UNSUPPORTED, "in F32");
    refused("soft sm_80", KLEIN_DTYPE_AUTO, KLEIN_PRECISION_FP8, KLEIN_E_UNSUPPORTED,
            "needs sm_89 (Ada) or later");
    refused("cpu", KLEIN_DTYPE_AUTO, 7, KLEIN_E_USAGE, "no precision 7");
}

/* ---- files in FP8 (model 2.3) ------------------------------------------------------------------------------------------ */

static uint8_t e4m3_of(float f) /* nearest, ties to even; finite */
{
    const float a = fminf(fabsf(f), 448);
    const int e = a < 0x1p-6f ? -6 : ilogbf(a), m = (int)lrintf(ldexpf(a, 3 - e)); /* m: 0 .. 16 */
    return (uint8_t)((f < 0 ? 0x80 : 0) | (m < 8 ? m : (e + 7) * 8 + m - 8));
}

/* What files and ref are quantised by: every number of e4m3, what lies about halfway between two, what is too large. */
Test(fp8, rounds_to_nearest)
{
    for (int i = 0; i < 0x7e; i++) {
        const float at = f32_from_f8e4m3((uint8_t)i), half = (at + f32_from_f8e4m3((uint8_t)(i + 1))) / 2;
        const float near[] = {at, nextafterf(half, 0), half, nextafterf(half, 1000)};
        for (int j = 0; j < 4; j++)
            for (int sign = -1; sign <= 1; sign += 2) {
                const float f = (float)sign * near[j];
                cr_assert(f8e4m3_from_f32(f) == (e4m3_of(f) | (signbit(f) ? 0x80 : 0)), "%a became %#x",
                          (double)f, f8e4m3_from_f32(f));
            }
    }
    cr_assert(f8e4m3_from_f32(1e30f) == 0x7e && f8e4m3_from_f32(-INFINITY) == 0xfe);
    cr_assert((f8e4m3_from_f32(NAN) & 0x7f) == 0x7f && f8e4m3_from_f32(0x1p-149f) == 0);
}

enum { FILE_TENSORS = 128 };
enum scales { ONE_SCALE, SCALE_PER_ROW, NO_SCALE, BAD_SCALE };

/* A layer of an official FP8 file: weight, weight_scale, input_scale; or the same numbers as F32 in `plain`. Returns how many tensors. */
static int quantise_layer(const struct st_tensor *from, enum scales kind, struct st_tensor *fp8,
                          struct st_tensor *plain, char names[2][160])
{
    const size_t rows = (size_t)from->shape[0], cols = (size_t)from->shape[1],
                 scales = kind == SCALE_PER_ROW ? rows : 1;
    uint8_t *q = malloc(rows * cols);
    float *scale = malloc((rows + 1) * sizeof *scale), *values = malloc(rows * cols * sizeof *values),
          largest = 0;
    cr_assert(q && scale && values);
    for (size_t i = 0; i < rows * cols; i++)
        largest = fmaxf(largest, fabsf(f32_load(from->data, from->dtype, i)));
    for (size_t r = 0; r <= rows; r++)
        scale[r] = largest / 448 * (kind == SCALE_PER_ROW ? 1 + (float)(r % 5) : 1);
    for (size_t i = 0; i < rows * cols; i++) {
        q[i] = e4m3_of(f32_load(from->data, from->dtype, i) / scale[i / cols]);
        values[i] = f32_from_f8e4m3(q[i]) * scale[i / cols];
    }
    if (kind == BAD_SCALE) scale[0] = -1;
    int stem = (int)(strlen(from->name) - strlen("weight"));
    snprintf(names[0], 160, "%.*sweight_scale", stem, from->name);
    snprintf(names[1], 160, "%.*sinput_scale", stem, from->name);
    *plain = fp8[0] = *from;
    plain->dtype = DT_F32, plain->data = values;
    fp8[0].dtype = DT_F8E4M3, fp8[0].data = q;
    fp8[1] = (struct st_tensor){.name = names[0], .dtype = DT_F32, .data = scale};
    if (kind == SCALE_PER_ROW) fp8[1].ndim = 1, fp8[1].shape[0] = (int64_t)scales;
    fp8[2] = (struct st_tensor){.name = names[1], .dtype = DT_F32, .data = scale + rows};
    if (kind == NO_SCALE) fp8[1] = fp8[2];
    return kind == NO_SCALE ? 2 : 3;
}

/* Larger elements first: all are aligned then. */
static void write_file(const char *path, const struct st_tensor *t, int n)
{
    struct st_tensor ordered[FILE_TENSORS];
    struct st_writer *w;
    int at = 0;
    for (size_t size = 4; size; size /= 2)
        for (int i = 0; i < n; i++)
            if (dtype_size(t[i].dtype) == size) ordered[at++] = t[i];
    cr_assert(at == n);
    OK(st_write_begin(path, ordered, n, NULL, &w, &err));
    OK(st_write_finish(w, &err));
}

/* The small model's transformer with BFL's names, at `fp8` with those matrices of its blocks in FP8 that have `part` in their names; with the
 * same numbers at `plain`. */
static const char *write_fp8(enum scales kind, const char *part, const char *fp8, const char *plain)
{
    static struct st_tensor to[FILE_TENSORS], same[FILE_TENSORS];
    static char names[FILE_TENSORS][2][160];
    static int models;
    struct model_config config = small_config();
    char name[16];
    snprintf(name, sizeof name, "m%d", models++);
    const char *dir = small_model(name, &config, 0), *bfl = in_test_dir("klein-bfl.safetensors");
    struct st_file *f;
    int n = 0, count;
    edit_json(in_test_dir("%s/klein.json", name), "text_length", "64"); /* to be quick */
    write_bfl_transformer(dir, bfl);
    if (strstr(part, "to_q")) /* q, k and v by themselves: diffusers' names */
        bfl = in_test_dir("%s/transformer/diffusion_pytorch_model.safetensors", name);
    OK(st_open(bfl, &f, &err));
    count = st_count(f);
    for (int i = 0; i < count; i++) {
        const struct st_tensor *t = st_get(f, i);
        cr_assert(n + 3 <= FILE_TENSORS);
        if (t->ndim == 2 && strstr(t->name, "_blocks.") && strstr(t->name, part))
            n += quantise_layer(t, kind, &to[n], &same[i], names[i]);
        else
            to[n++] = same[i] = *t;
    }
    write_file(fp8, to, n);
    write_file(plain, same, count);
    st_close(f);
    return dir;
}

static enum klein_status open_file(const char *dir, const char *transformer, const char *device,
                                   enum klein_dtype dtype, enum klein_precision precision, struct klein **k)
{
    struct klein_open_options o = {.size = sizeof o,
                                   .model = dir,
                                   .transformer = transformer,
                                   .device = device_of(device),
                                   .threads = 1,
                                   .dtype = dtype,
                                   .precision = precision};
    return klein_open(&o, k, &err);
}

static uint64_t file_picture(struct klein *k, struct taps *taps)
{
    struct klein_result result;
    struct klein_request q = balloon(4);
    q.width = q.height = 32, q.steps = 1;
    if (taps) q.tap = keep, q.tap_user = taps;
    OK(klein_generate(k, &q, &result, &err));
    uint64_t hash = result.latent_hashes[0];
    klein_result_free(&result);
    return hash;
}

/* The first velocity on that chip from a file in FP8 is near that from one with the same numbers. */
static void check_file_on(const char *chip, const char *dir, const char *fp8, const char *plain,
                          const char *what)
{
    struct taps on_gpu = {.n = 0}, in_bf16 = {.n = 0};
    struct klein *k;
    struct klein_model_info info;
    OK(open_file(dir, fp8, chip, KLEIN_DTYPE_AUTO, KLEIN_PRECISION_BF16, &k));
    file_picture(k, &on_gpu);
    klein_model_info(k, &info);
    cr_assert(!strcmp(info.precision, "fp8"));
    struct memory_need need; /* counted as what it is: what "auto" chooses by */
    struct cuda_facts facts;
    memory_of_weights(k->checkpoint, DT_BF16, 0, &need);
    cr_assert(cuda_facts(k->device, &facts) && memory_weights(&need) == facts.weights,
              "%zu bytes planned, %zu placed", memory_weights(&need), facts.weights);
    klein_close(k);
    OK(open_file(dir, plain, chip, KLEIN_DTYPE_AUTO, KLEIN_PRECISION_BF16, &k));
    file_picture(k, &in_bf16);
    klein_close(k);
    compare(what, &on_gpu, &in_bf16, ERROR);
    taps_free(&on_gpu), taps_free(&in_bf16);
}

/* On the processor, in F32, an FP8 file is what its numbers are; the GPU also quantises x. */
static void check_file(enum scales kind)
{
    const char *fp8 = in_test_dir("klein-fp8.safetensors"), *plain = in_test_dir("klein-plain.safetensors"),
               *dir = write_fp8(kind, "", fp8, plain);
    struct klein *k;
    struct klein_model_info info;
    OK(open_file(dir, fp8, "cpu", KLEIN_DTYPE_F32, KLEIN_PRECISION_BF16, &k));
    const uint64_t hash = file_picture(k, NULL);
    klein_model_info(k, &info);
    cr_assert(!strcmp(info.precision, "f32"));
    klein_close(k);
    OK(open_file(dir, plain, "cpu", KLEIN_DTYPE_F32, KLEIN_PRECISION_BF16, &k));
    cr_assert(file_picture(k, NULL) == hash, "a file in FP8 gives another picture than one with its numbers");
    klein_close(k);
    OK(open_file(dir, fp8, "soft sm_89", KLEIN_DTYPE_AUTO, KLEIN_PRECISION_BF16, &k));
    const struct tensor qkv = k->model->dit.doubles[0].stream[DIT_IMAGE].qkv.part[1];
    cr_assert(qkv.dtype == DT_F8E4M3 && qkv.scale && k->model->dit.proj_out.dtype == DT_BF16);
    klein_close(k);
    check_file_on("soft sm_89", dir, fp8, plain, "a file in FP8, sm_89");
    check_file_on("soft sm_90a", dir, fp8, plain, "a file in FP8, sm_90a");
}

Test(fp8, files_with_a_scale_per_matrix)
{
    check_file(ONE_SCALE);
}

Test(fp8, files_with_a_scale_per_row)
{
    check_file(SCALE_PER_ROW);
}

/* Files in which only some matrices are in FP8: what makes the operand of one may be in BF16 (dit.c), the streams of a double block may
 * differ. */
Test(fp8, files_with_some_layers_in_fp8)
{
    static const char *const parts[] = {"attn.qkv", "attn.proj", "mlp.0",     "mlp.2",
                                        "linear1",  "linear2",   "img_mlp.2", "txt_attn.qkv"};
    const char *fp8 = in_test_dir("klein-fp8.safetensors"), *plain = in_test_dir("klein-plain.safetensors");
    for (size_t i = 0; i < sizeof parts / sizeof *parts; i++) {
        const char *dir = write_fp8(ONE_SCALE, parts[i], fp8, plain);
        char what[64];
        for (int chip = i < 6; chip < 2; chip++) { /* on sm_89 no kernel but adaLN's writes e4m3 */
            snprintf(what, sizeof what, "only %s in FP8, sm_%s", parts[i], chip ? "90a" : "89");
            check_file_on(chip ? "soft sm_90a quick" : "soft sm_89 quick", dir, fp8, plain, what);
        }
    }
}

Test(fp8, files_that_are_refused)
{
    const char *fp8 = in_test_dir("klein-fp8.safetensors"), *plain = in_test_dir("klein-plain.safetensors"),
               *dir = write_fp8(NO_SCALE, "", fp8, plain);
    struct klein *k;
    FAILS(open_file(dir, fp8, "cpu", KLEIN_DTYPE_AUTO, KLEIN_PRECISION_BF16, &k), KLEIN_E_UNSUPPORTED,
          "double_blocks.0.img_attn.qkv.weight is F8_E4M3 without a weight_scale");
    write_fp8(BAD_SCALE, "", fp8, plain);
    FAILS(open_file(dir, fp8, "cpu", KLEIN_DTYPE_AUTO, KLEIN_PRECISION_BF16, &k), KLEIN_E_MODEL_CORRUPT,
          "weight_scale has a scale of -1");
    write_fp8(ONE_SCALE, "", fp8, plain);
    FAILS(open_file(dir, fp8, "soft sm_80", KLEIN_DTYPE_AUTO, KLEIN_PRECISION_BF16, &k), KLEIN_E_UNSUPPORTED,
          "needs sm_89 (Ada) or later");
    FAILS(open_file(dir, fp8, "soft sm_89", KLEIN_DTYPE_F32, KLEIN_PRECISION_BF16, &k), KLEIN_E_UNSUPPORTED,
          "--dtype bf16");
    FAILS(open_file(dir, fp8, "cpu", KLEIN_DTYPE_AUTO, KLEIN_PRECISION_FP8, &k), KLEIN_E_UNSUPPORTED,
          "does not multiply FP8");
    write_fp8(ONE_SCALE, "to_q", fp8, plain);
    FAILS(open_file(dir, fp8, "cpu", KLEIN_DTYPE_AUTO, KLEIN_PRECISION_BF16, &k), KLEIN_E_UNSUPPORTED,
          "transformer_blocks.0.attn.to_k.weight is BF16 and that of to_q is F8_E4M3");
}
