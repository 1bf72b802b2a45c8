/* klein tune and the table that it writes: what is measured, what the engine then picks, and what it does with a bad table. About 10 s. */
#include "support/program.h"

#include "../engine/group.h"
#include "../host/tune.h"

#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

static const char shape[] = "linear BF16 4x256 @ 128 plain"; /* of the tiny model at 32x32 */
static const struct tuned_for chip = {"0.1.0", "Some GPU/2", 90, 132, 13000};

static void setup(void)
{
    unsetenv("KLEIN_TUNE");
    setenv("XDG_CACHE_HOME", test_dir(), 1);
    test_device("soft sm_90a");
}
TestSuite(tune, .init = setup);

static json_t *row(const char *key, const char *kernel)
{
    return json_pack("{s:s, s:s, s:[]}", "shape", key, "kernel", kernel, "candidates");
}

static void write_text(const char *path, const char *text)
{
    FILE *f = fopen(path, "w");
    cr_assert(f && fputs(text, f) >= 0 && !fclose(f), "%s", path);
}

/* ---- the table -------------------------------------------------------------------------------------------- */

Test(tune, table_comes_back)
{
    struct klein_error err;
    char path[TUNED_PATH];
    struct tuned *t = tuned_new(&chip), *back;
    OK(tuned_path(&chip, path, &err));
    cr_assert(strstr(path, "/klein/tune-Some-GPU-2-sm90.json"), "%s", path);
    OK(tuned_read(path, &chip, &back, &err));
    cr_assert(!back, "there is none yet");
    OK(tuned_add(t, row("a", "conv_sm80_128x8"), &err));
    OK(tuned_add(t, row("b", "attention_sm80_64x64"), &err));
    OK(tuned_add(t, row("a", "conv_simple"), &err));
    OK(tuned_write(t, path, &err));
    tuned_free(t);
    OK(tuned_read(path, &chip, &back, &err));
    cr_assert(back->n == 2);
    cr_assert_str_eq(tuned_kernel(back, "a"), "conv_simple");
    cr_assert_str_eq(tuned_kernel(back, "b"), "attention_sm80_64x64");
    cr_assert(!tuned_kernel(back, "c") && !tuned_kernel(NULL, "a"));
    tuned_free(back);
    char folder[256];
    snprintf(folder, sizeof folder, "%s/klein", test_dir());
    cr_assert_eq(program_count_files(folder), 1, "a temporary file is left");
}

Test(tune, bad_tables_are_refused)
{
    struct klein_error err;
    struct tuned *t = tuned_new(&chip), *back;
    char path[256];
    snprintf(path, sizeof path, "%s/table.json", test_dir());
    OK(tuned_write(t, path, &err));
    struct tuned_for other = chip;
    other.driver = 12040;
    FAILS(tuned_read(path, &other, &back, &err), KLEIN_E_INPUT, "driver 13000, this is 12040");
    other = chip, other.version = "0.2.0";
    FAILS(tuned_read(path, &other, &back, &err), KLEIN_E_INPUT, "klein 0.1.0, this is 0.2.0");
    other = chip, other.gpu = "Some GPU";
    FAILS(tuned_read(path, &other, &back, &err), KLEIN_E_INPUT, "gpu Some GPU/2, this is Some GPU");
    other = chip, other.multiprocessors = 114;
    FAILS(tuned_read(path, &other, &back, &err), KLEIN_E_INPUT, "multiprocessors 132, this is 114");
    other = chip, other.arch = 80;
    FAILS(tuned_read(path, &other, &back, &err), KLEIN_E_INPUT, "arch 90, this is 80");
    json_array_append_new(json_object_get(t->file, "shapes"), row("a", "conv_of_tomorrow"));
    OK(tuned_write(t, path, &err));
    FAILS(tuned_read(path, &chip, &back, &err), KLEIN_E_INPUT, "no kernel \"conv_of_tomorrow\"");
    cr_assert(!back);
    static const char *const texts[] = {
        "", "{", "[]", "{}", "{\"klein\": \"0.1.0\"", "null", "{\"klein\": 7, \"shapes\": 3}", "\xff\xfe"};
    for (size_t i = 0; i < sizeof texts / sizeof *texts; i++) {
        write_text(path, texts[i]);
        FAILS(tuned_read(path, &chip, &back, &err), KLEIN_E_INPUT, "klein tune makes the table anew");
        cr_assert(!back && !strchr(err.message, '\n'));
    }
    tuned_free(t);
}

Test(tune, no_place_for_the_table)
{
    struct klein_error err;
    char path[TUNED_PATH];
    setenv("XDG_CACHE_HOME", "not/absolute", 1);
    setenv("HOME", "/home/x", 1);
    OK(tuned_path(&chip, path, &err));
    cr_assert_str_eq(path, "/home/x/.cache/klein/tune-Some-GPU-2-sm90.json");
    unsetenv("HOME");
    FAILS(tuned_path(&chip, path, &err), KLEIN_E_OUTPUT, "set HOME");
    struct tuned *t = tuned_new(&chip);
    FAILS(tuned_write(t, "/proc/klein/table.json", &err), KLEIN_E_OUTPUT, "/proc/klein");
    tuned_free(t);
}

/* ---- measuring -------------------------------------------------------------------------------------------- */

static const struct op_table *right;

/* As the GPU, but for a kernel that leaves its last rows unwritten. */
static enum klein_status wrong_linear(struct device *dev, const struct linear_args *a,
                                      struct klein_error *err)
{
    struct gpu *g = gpu_of(dev);
    struct linear_args less = *a;
    if (g->tuned && !strcmp(g->tuned->row->kernel, "gemm_sm80_linear_128x128_s2")) {
        less.x = tensor_rows(a->x, 0, a->x.rows - 2);
        less.y = tensor_rows(a->y, 0, a->y.rows - 2);
        TRY(right->linear(dev, &less, err)); /* another shape: the rules' kernel */
        less.x = tensor_rows(a->x, a->x.rows - 2, 2);
        less.y = tensor_rows(a->y, a->y.rows - 2, 2);
        less.x.ptr = a->x.ptr;
        TRY(right->linear(dev, &less, err));
        less = *a;
        void (*picked)(void *, enum op_id, const char *, const void *, const char *) = g->picked;
        picked(g->picked_user, OP_linear, shape, NULL, "gemm_sm80_linear_128x128_s2");
        return KLEIN_OK;
    }
    return right->linear(dev, a, err);
}

static struct tune_shapes shapes_of_tiny(struct device *dev)
{
    struct klein_error err;
    struct model_config config;
    struct tune_shapes shapes;
    const struct klein_request request = {.size = sizeof request, .width = 32, .height = 32, .steps = 1};
    OK(config_named("tiny", &config, &err));
    OK(tune_shapes_find(dev, &config, 0, &request, 1, &shapes, &err));
    return shapes;
}

static struct tune_shape *find(struct tune_shapes *s, const char *key)
{
    for (int i = 0; i < s->n; i++)
        if (!strcmp(s->shape[i].key, key)) return &s->shape[i];
    cr_assert_fail("no shape \"%s\"", key);
    return NULL;
}

Test(tune, wrong_kernels_are_named_and_left_out)
{
    struct klein_error err;
    struct device *dev;
    OK(device_open("soft", &(struct device_options){0}, &dev, &err));
    struct tune_shapes shapes = shapes_of_tiny(dev);
    struct tune_shape *s = find(&shapes, shape);
    right = dev->ops;
    struct op_table ops = *right;
    ops.linear = wrong_linear;
    dev->ops = &ops;
    OK(tune_measure(dev, s, 1, "gemm_sm80_linear_128x128_s3", &err));
    int wrong = 0, without = 0;
    for (int i = 0; i < s->candidates; i++) {
        const struct tune_candidate *c = &s->candidate[i];
        without += !strcmp(c->kernel, "gemm_sm80_linear_128x128_s3");
        if (strcmp(c->kernel, "gemm_sm80_linear_128x128_s2")) {
            cr_assert(!c->excluded[0] && c->seconds > 0, "%s: %s", c->kernel, c->excluded);
        } else {
            wrong++;
            cr_assert(strstr(c->excluded, "WRONG: output 0 is off"), "\"%s\"", c->excluded);
        }
    }
    cr_assert(wrong == 1 && !without && s->candidates >= 6);
    for (int i = 0; i < s->candidates; i++) s->candidate[i].seconds = i ? 0.99 : 1;
    cr_assert_str_eq(tune_best(s)->kernel, s->built_in, "one percent is noise");
    s->candidate[s->candidates - 1].seconds = 0.9;
    cr_assert_str_eq(tune_best(s)->kernel, s->candidate[s->candidates - 1].kernel);
    tune_shapes_free(&shapes);
    device_close(dev);
}

/* ---- another library --------------------------------------------------------------------------------------- */

static const char lt_standin[] = KLEIN_BINARY_DIR "/tests/libcublaslt_standin.so",
                  dnn_standin[] = KLEIN_BINARY_DIR "/tests/libcudnn_standin.so";

static struct tune_peers open_peers(struct device *dev, const char *lt, const char *dnn, const char *without)
{
    struct tune_peers p;
    unsetenv("KLEIN_CUBLASLT");
    unsetenv("KLEIN_CUDNN");
    if (lt) setenv("KLEIN_CUBLASLT", lt, 1);
    if (dnn) setenv("KLEIN_CUDNN", dnn, 1);
    tune_peers_open(&p, gpu_of(dev), without);
    return p;
}

static void no_peers(struct device *dev, const char *lt, const char *dnn, const char *without,
                     const char *no_lt, const char *no_dnn)
{
    struct tune_peers p = open_peers(dev, lt, dnn, without);
    cr_assert(strstr(p.no_lt, no_lt) && !p.lt.library, "%s", p.no_lt);
    cr_assert(strstr(p.no_dnn, no_dnn) && !p.dnn.library, "%s", p.no_dnn);
    tune_peers_close(&p);
}

Test(tune, libraries_that_do_not_do)
{
    struct klein_error err;
    struct device *dev;
    OK(device_open("soft", &(struct device_options){0}, &dev, &err));
    no_peers(dev, NULL, NULL, NULL, "libcublasLt.so.13 was not found, as it does not run on the soft GPU",
             "libcudnn.so.9 was not found, as it does not run on the soft GPU");
    no_peers(dev, "/no/such/library", "/no/such/library", NULL,
             "/no/such/library was not found: install cuBLASLt (KLEIN_CUBLASLT=FILE says where it is)",
             "/no/such/library was not found: install cuDNN 9 (KLEIN_CUDNN=FILE says where it is)");
    no_peers(dev, "libm.so.6", "libm.so.6", NULL, "cuBLASLt has no cublasLtCreate",
             "cuDNN has no cudnnGetVersion");
    no_peers(dev, lt_standin, dnn_standin, "conv_simple,cudnn,cublaslt", "cuBLASLt is left out",
             "cuDNN is left out");
    setenv("KLEIN_STANDIN", "old", 1);
    no_peers(dev, NULL, dnn_standin, NULL, "", "cuDNN 8.9.7 is too old: 9 is needed");
    setenv("KLEIN_STANDIN", "dead", 1);
    no_peers(dev, NULL, dnn_standin, NULL, "", "cuDNN: create: EXECUTION_FAILED");
    device_close(dev);
}

/* Measures s with the stand-in being `how`. excluded: how that ends; NULL: well. */
static void peer_is(struct device *dev, struct tune_peers *p, struct tune_shape *s, const char *how,
                    const char *excluded)
{
    struct klein_error err;
    s->peer = s->alone = 0;
    s->peer_excluded[0] = 0;
    setenv("KLEIN_STANDIN", how, 1);
    OK(tune_peer(dev, p, s, 2, &err));
    unsetenv("KLEIN_STANDIN");
    cr_assert(excluded ? strstr(s->peer_excluded, excluded) && s->peer == 0 && s->alone == 0
                       : !s->peer_excluded[0] && s->peer > 0 && (s->op != OP_conv || s->alone > 0),
              "%s", s->peer_excluded);
}

Test(tune, cublaslt_is_compared_with)
{
    struct klein_error err;
    struct device *dev;
    OK(device_open("soft", &(struct device_options){0}, &dev, &err));
    struct tune_peers peers = open_peers(dev, lt_standin, NULL, NULL);
    for (int fp8 = 0; fp8 < 2; fp8++) {
        struct tune_shape s = {.op = OP_linear,
                               .shape.gemm = {.type = fp8 ? DT_F8E4M3 : DT_BF16,
                                              .rows = {60, 40},
                                              .segments = 2,
                                              .w_rows = {128, 72},
                                              .k = 96}};
        peer_is(dev, &peers, &s, "right", NULL);
        peer_is(dev, &peers, &s, "wrong", "WRONG: ");
        peer_is(dev, &peers, &s, "none", "has no kernel for 100x96 @ 200");
    }
    tune_peers_close(&peers);
    device_close(dev);
}

Test(tune, cudnn_is_compared_with)
{
    static const struct op_case cases[] = {
        {"3x3", OP_conv, .h = 9, .w = 12, .k = 24, .n = 40, .ksize = 3, .groups = 8,
         .options = WITH_BIAS | WITH_NORM | WITH_RESIDUAL | WITH_STATS},
        {"rgb in", OP_conv, .h = 7, .w = 10, .k = 3, .n = 16, .ksize = 3, .options = WITH_BIAS},
        {"rgb out", OP_conv, .h = 10, .w = 7, .k = 16, .n = 3, .ksize = 3},
        {"upsample", OP_conv, .h = 5, .w = 6, .k = 8, .n = 16, .ksize = 3, .options = UPSAMPLE},
        {"stride 2", OP_conv, .h = 8, .w = 6, .k = 16, .n = 8, .ksize = 3, .stride = 2},
        {"1x1", OP_conv, .h = 5, .w = 9, .k = 12, .n = 24, .ksize = 1},
    };
    struct klein_error err;
    struct device *dev;
    OK(device_open("soft", &(struct device_options){0}, &dev, &err));
    struct tune_peers peers = open_peers(dev, NULL, dnn_standin, NULL);
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        struct tune_shape s = {.op = OP_conv, .c = cases[i], .built_in = "conv_simple"};
        peer_is(dev, &peers, &s, "right", NULL);
        peer_is(dev, &peers, &s, "wrong", "WRONG: output 0 is off our convolution's");
        peer_is(dev, &peers, &s, "none", "cuDNN has no kernel for ");
        peer_is(dev, &peers, &s, "fails", "cuDNN: convolution: EXECUTION_FAILED");
    }
    struct tune_shape other = {.op = OP_attention};
    OK(tune_peer(dev, &peers, &other, 1, &err));
    cr_assert(!tune_peer_library(&other) && !other.peer && !other.peer_excluded[0]);
    cr_assert(!gpu_of(dev)->tuned);
    tune_peers_close(&peers);
    device_close(dev);
}

/* ---- the command, and the engine -------------------------------------------------------------------------- */

/* What an open model's device picks for the shape above; what opening warned of in *warning. */
static const char *engine_picks(char warning[KLEIN_MESSAGE_MAX])
{
    struct klein_error err;
    struct klein *k;
    const struct klein_open_options options = {
        .size = sizeof options, .model = GOLDEN_MODEL("tiny"), .device = "soft"};
    OK(klein_open(&options, &k, &err));
    struct tune_shapes shapes = shapes_of_tiny(k->device);
    const char *kernel = find(&shapes, shape)->built_in; /* a name of the pick table's */
    snprintf(warning, KLEIN_MESSAGE_MAX, "%s", k->warning.message);
    tune_shapes_free(&shapes);
    klein_close(k);
    return kernel;
}

static json_t *shape_of(json_t *result)
{
    json_t *s;
    size_t i;
    json_array_foreach(json_object_get(result, "shapes"), i,
                       s) if (!strcmp(json_string_value(json_object_get(s, "shape")), shape)) return s;
    cr_assert_fail("no shape");
    return NULL;
}

Test(tune, the_engine_picks_what_was_measured)
{
    char path[TUNED_PATH], warning[KLEIN_MESSAGE_MAX];
    SAYS(RUN("tune", "-m", GOLDEN_MODEL("tiny"), "--size", "32x32", "--device", "cpu"), 4, "is no GPU");
    SAYS(RUN("tune", "-m", GOLDEN_MODEL("tiny"), "--config", "tiny", "--device", "soft"), 2,
         "exclude each other");
    setenv("KLEIN_CONV", "conv_simple", 1);
    SAYS(RUN("tune", "--config", "tiny", "--device", "soft"), 2,
         "KLEIN_CONV=conv_simple leaves nothing to choose");
    unsetenv("KLEIN_CONV");
#define TUNE "tune", "-m", GOLDEN_MODEL("tiny"), "--size", "32x32", "-s", "1", "--device", "soft"
    struct outcome o = OK_RUN(TUNE, "--list");
    cr_assert(strstr(o.out, "(not there)") && strstr(o.out, "built in: ") && !strstr(o.out, "measured"));
    SAYS(RUN(TUNE, "--only", "no such"), 2, "no shape has \"no such\" in it");

    o = OK_RUN(TUNE, "--only", shape, "--without", "cublaslt");
    cr_assert(strstr(o.out, "cuBLASLt is left out: products by our own kernels only"), "%s", o.out);
    cr_assert(strstr(OK_RUN(TUNE, "--only", shape).out,
                     "it does not run on the soft GPU: products by our own kernels only"));
    setenv("KLEIN_CUBLASLT", lt_standin, 1);
    json_t *result = program_json(OK_RUN(TUNE, "--only", shape, "--json")), *s = shape_of(result);
    cr_assert(json_number_value(json_object_get(json_array_get(json_object_get(s, "peers"), 0), "seconds")) >
              0);
    unsetenv("KLEIN_CUBLASLT");
    cr_assert(json_is_true(json_object_get(s, "measured")) && json_is_true(json_object_get(result, "soft")));
    cr_assert(json_array_size(json_object_get(s, "candidates")) >= 6);
    snprintf(path, sizeof path, "%s", json_string_value(json_object_get(result, "table")));
    json_decref(result);
    o = OK_RUN(TUNE, "--list");
    cr_assert(strstr(o.out, "cuBLASLt's product alone ") && strstr(o.out, "measured: ") &&
                  strstr(o.out, "built in: ") && strstr(o.out, "times mean nothing") &&
                  strstr(o.out, "the engine does not use them"),
              "%s", o.out);

    /* Times of the soft GPU are chance: the test decides what was the fastest. */
    static const char *const kernels[] = {"gemm_sm80_linear_64x128_s2", "gemm_linear_sm90_128x128"};
    for (int i = 0; i < 2; i++) {
        json_t *table = json_load_file(path, 0, NULL);
        json_object_set_new(json_array_get(json_object_get(table, "shapes"), 0), "kernel",
                            json_string(kernels[i]));
        cr_assert(json_array_size(json_object_get(table, "shapes")) == 1 && !json_dump_file(table, path, 0));
        json_decref(table);
        cr_assert_str_eq(engine_picks(warning), kernels[i]);
        cr_assert_str_eq(warning, "");
    }

    char built_in[64];
    setenv("KLEIN_TUNE", "off", 1);
    snprintf(built_in, sizeof built_in, "%s", engine_picks(warning));
    cr_assert(strcmp(built_in, kernels[1]) && !*warning);
    unsetenv("KLEIN_TUNE");
    write_text(path, "{\"klein\": ");
    cr_assert_str_eq(engine_picks(warning), built_in);
    cr_assert(strstr(warning, "the tuned kernels in ") && strstr(warning, "are not used (line 1"), "%s",
              warning);
    SAYS(RUN(TUNE, "--list"), 0, "are not used");
    if (SANITIZED) return;
    o = OK_RUN("generate", "-m", GOLDEN_MODEL("tiny"), "a", "--size", "32x32", "-s", "1", "--device", "soft",
               "-o", "a.png");
    cr_assert(strstr(o.err, "klein: warning: the tuned kernels in ") &&
                  !strstr(strstr(o.err, "tuned") + 1, "tuned"),
              "one line: %s", o.err);
}

/* Of the decoder: a plain shape, and one that is enlarged. */
Test(tune, convolutions_beside_cudnn)
{
#define TUNE_CONV TUNE, "--only", "conv BF16 8x8, 3x3 @ 128 to 128"
    setenv("KLEIN_CUDNN", dnn_standin, 1);
    json_t *result = program_json(OK_RUN(TUNE_CONV, "--json")), *s;
    size_t i;
    int n = 0;
    json_array_foreach(json_object_get(result, "shapes"), i, s)
    {
        const json_t *peer = json_array_get(json_object_get(s, "peers"), 0);
        if (!json_is_true(json_object_get(s, "measured"))) continue;
        cr_assert_str_eq(json_string_value(json_object_get(peer, "library")), "cuDNN");
        cr_assert(json_number_value(json_object_get(peer, "seconds")) > 0 &&
                  json_number_value(json_object_get(peer, "ours")) > 0);
        n++;
    }
    json_decref(result);
    cr_assert_eq(n, 2);
    struct outcome o = OK_RUN(TUNE, "--list");
    cr_assert(strstr(o.out, "; cuDNN's convolution alone ") && strstr(o.out, ", ours alone ") &&
                  strstr(o.out, "; cuDNN's convolution of the enlarged image alone "),
              "%s", o.out);
    setenv("KLEIN_STANDIN", "fails", 1);
    o = OK_RUN(TUNE_CONV);
    cr_assert(strstr(o.err, "8x8, 3x3 @ 128 to 128: cuDNN is not compared with: cuDNN: convolution: "
                            "EXECUTION_FAILED") &&
                  strstr(o.out, "measured: ") && !strstr(o.out, "alone "),
              "%s%s", o.out, o.err);
}

/* ---- several cards ----------------------------------------------------------------------------------------- */

struct watched {
    const struct tune_shapes *shapes;
    int seen[64];
    char unknown[TUNED_KEY];
};

static void on_pick(void *user, enum op_id op, const char *key, const void *s, const char *kernel)
{
    struct watched *w = user;
    for (int i = 0; i < w->shapes->n; i++)
        if (!strcmp(w->shapes->shape[i].key, key)) {
            w->seen[i] = 1;
            return;
        }
    snprintf(w->unknown, sizeof w->unknown, "%s", key);
}

/* Of 15 tokens one card has 7, the other 8. */
Test(tune, shapes_of_shares_are_those_that_a_group_asks_for, .disabled = SANITIZED)
{
    static const int gpus[] = {0, 1};
    const struct klein_open_options options = {.size = sizeof options,
                                               .model = KLEIN_SOURCE_DIR "/weights/nano",
                                               .device = "soft",
                                               .gpus = gpus,
                                               .n_gpus = 2,
                                               .parallel = KLEIN_PARALLEL_ULYSSES};
    const struct klein_request request = {
        .size = sizeof request, .prompt = "a green heart", .width = 48, .height = 80, .steps = 1};
    struct klein_error err;
    struct klein *k;
    struct tune_shapes shapes;
    struct watched watched[2];
    struct klein_result result;
    setenv("KLEIN_SOFT", "sm_90a:2", 1);
    OK(klein_open(&options, &k, &err));
    OK(tune_shapes_find(k->device, k->model->cfg, 0, &request, 2, &shapes, &err));
    cr_assert(shapes.n <= 64);
    for (int i = 0; i < 2; i++) {
        struct gpu *g = gpu_of(k->group->member[i]->device);
        watched[i] = (struct watched){.shapes = &shapes};
        g->picked = on_pick;
        g->picked_user = &watched[i];
    }
    OK(klein_generate(k, &request, &result, &err));
    for (int i = 0; i < 2; i++) cr_assert_str_eq(watched[i].unknown, "");
    for (int i = 0; i < shapes.n; i++)
        cr_assert(watched[0].seen[i] || watched[1].seen[i], "nobody asks for %s", shapes.shape[i].key);
    klein_result_free(&result);
    klein_close(k);
    tune_shapes_free(&shapes);
}

/* The first band of an image, its norm by the statistics of two. */
Test(tune, shares_are_measured)
{
    setenv("KLEIN_CUDNN", dnn_standin, 1);
    static const char *const only[] = {
        "conv BF16 4x2, 3x3 @ 128 to 128", "conv BF16 8x4, 3x3 @ 128 to 128, up",
        "attention BF16 8 queries, 16 keys", "linear BF16 256+2x256 @ 256+256"};
    SAYS(RUN(TUNE, "--gpus", "3"), 2, "2 attention heads, which 3 devices cannot share evenly");
    for (int i = 0; i < 4; i++) {
        json_t *result = program_json(OK_RUN(TUNE, "--gpus", "2", "--only", only[i], "--json")), *s;
        size_t j;
        int n = 0;
        cr_assert_eq(json_integer_value(json_object_get(result, "gpus")), 2);
        json_array_foreach(json_object_get(result, "shapes"), j, s)
        {
            const json_t *list = json_object_get(s, "candidates"), *c;
            size_t of;
            if (!strstr(json_string_value(json_object_get(s, "shape")), only[i])) continue;
            json_array_foreach(list, of, c) cr_assert(json_object_get(c, "seconds"), "%s",
                                                      json_string_value(json_object_get(c, "excluded")));
            if (i < 2) cr_assert(json_object_get(json_array_get(json_object_get(s, "peers"), 0), "ours"));
            n++;
        }
        cr_assert_eq(n, 1, "%s", only[i]);
        json_decref(result);
    }
    cr_assert(strstr(OK_RUN(TUNE, "--gpus", "2", "--list").out, "shares of 2 GPUs"));
}

/* In FP8: what attention and SwiGLU write in e4m3, with scales per 128 columns, and what multiplies it. */
static void check_groups(const char *chip, size_t kernels)
{
    setenv("KLEIN_SOFT", chip, 1);
    json_t *result = program_json(OK_RUN("tune", "--config", "tiny", "--size", "32x32", "-s", "1", "--device",
                                         "soft", "--precision", "fp8", "--only", "F8_E4M3 by 128", "--json"));
    json_t *s;
    size_t i;
    int n = 0;
    json_array_foreach(json_object_get(result, "shapes"), i, s)
    {
        if (!strstr(json_string_value(json_object_get(s, "shape")), "F8_E4M3 by 128")) continue;
        const char *kernel = json_string_value(json_object_get(s, "kernel"));
        cr_assert(json_is_true(json_object_get(s, "measured")) &&
                      json_array_size(json_object_get(s, "candidates")) == kernels &&
                      strstr(kernel, "_groups_"),
                  "%s", kernel);
        n++;
    }
    cr_assert_eq(n, 4); /* proj, mlp2, lin2, and lin2 of the target's rows in the last block */
    json_decref(result);
}

Test(tune, e4m3_by_groups, .disabled = SANITIZED)
{
    check_groups("sm_90a", 5); /* three by wgmma, two by mma.sync */
    check_groups("sm_89", 2);
}
