#include "support/alloc.h"
#include "support/op_cases.h"
#include "support/support.h"

#include "../base/arena.h"
#include "../engine/run.h"
#include "../kernels/cpu/cpu.h"

#include <math.h>
#include <omp.h>
#include <pthread.h>
#include <stdlib.h>

static struct device *open_device(const char *name, int threads)
{
    struct klein_error err;
    struct device *dev;
    OK(device_open(name, &(struct device_options){.threads = threads}, &dev, &err));
    return dev;
}

Test(device, every_backend_opens)
{
    int count = 0;
    for (const char *name; (name = device_backend(count)); count++) {
        struct klein_error err;
        struct device *dev;
        if (!strcmp(name, "cuda") && device_open(name, NULL, &dev, &err) == KLEIN_E_NO_DEVICE)
            continue; /* a machine without a GPU; test_cuda.c has the same device as "soft" */
        OK(device_open(name, NULL, &dev, &err));
        cr_expect_str_eq(dev->name, name);
        cr_expect(dev->description[0] && dev->threads >= 1);
        cr_expect(dev->act == DT_F32 || dev->act == DT_BF16);
        cr_expect_eq(dev->computes, strcmp(name, "null") != 0);
        device_close(dev);
    }
    cr_assert_geq(count, 3);
    cr_assert_null(device_backend(-1));
    device_close(NULL);
}

Test(device, unknown_names_are_refused)
{
    struct klein_error err;
    struct device *dev = (struct device *)1;
    FAILS(device_open("gpu9", NULL, &dev, &err), KLEIN_E_NO_DEVICE, "gpu9");
    cr_expect(strstr(err.message, "cpu") && strstr(err.message, "ref") && strstr(err.message, "null"), "%s",
              err.message);
    cr_assert_null(dev);
}

Test(device, threads)
{
    for (int threads = 1; threads < 4; threads++) {
        struct device *dev = open_device("cpu", threads);
        cr_expect_eq(dev->threads, threads);
        device_close(dev);
    }
}

Test(device, memory)
{
    const char *const names[] = {"cpu", "ref"};
    for (int i = 0; i < 2; i++) {
        struct klein_error err;
        struct device *dev = open_device(names[i], 1);
        char in[1000], out[1000] = {0};
        for (int b = 0; b < 1000; b++) in[b] = (char)b;
        char *p = dev->alloc(dev, sizeof in);
        cr_assert(p && (uintptr_t)p % ARENA_ALIGN == 0);
        OK(dev->upload(dev, p, in, sizeof in, &err));
        OK(dev->download(dev, out, p, sizeof out, &err));
        cr_expect_arr_eq(in, out, sizeof in);
        dev->free(dev, p, sizeof in);
        cr_expect_null(dev->alloc(dev, SIZE_MAX - 10));
        device_close(dev);
    }
}

struct work {
    struct device *dev;
    int failed;
    double sum; /* of all results */
};

static void *run_cases(void *argument)
{
    struct work *w = argument;
    for (int i = 0; i < op_case_count; i++) {
        enum op_id op = op_cases[i].op;
        if (op_cases[i].bench || (op != OP_linear && op != OP_attention && op != OP_conv)) continue;
        struct klein_error err;
        struct op_call call;
        op_call_make(&call, &op_cases[i], DT_BF16, DT_BF16, w->dev);
        w->failed += op_call_run(&call, &err) != KLEIN_OK;
        struct tensor y = op_call_output(&call, 0);
        for (int r = 0; r < y.rows; r++)
            for (int c = 0; c < y.cols; c++) w->sum += (double)tensor_get(y, r, c);
        free(y.ptr);
        op_call_free(&call);
    }
    return NULL;
}

/* Ops leave OpenMP's own setting, which belongs to the program, as it was. */
Test(device, program_keeps_its_threads)
{
    omp_set_num_threads(3);
    for (int threads = 1; threads < 4; threads++) {
        struct work work = {.dev = open_device("cpu", threads)};
        run_cases(&work);
        cr_expect_eq(omp_get_max_threads(), 3);
        device_close(work.dev);
    }
}

/* Two devices at work in one process at the same time, each with threads of its own. */
Test(device, two_at_once)
{
    struct work work[2] = {{.dev = open_device("cpu", 2)}, {.dev = open_device("cpu", 2)}};
    pthread_t thread[2];
    for (int i = 0; i < 2; i++) cr_assert_eq(pthread_create(&thread[i], NULL, run_cases, &work[i]), 0);
    for (int i = 0; i < 2; i++) pthread_join(thread[i], NULL);
    for (int i = 0; i < 2; i++) {
        cr_expect_eq(work[i].failed, 0);
        device_close(work[i].dev);
    }
    cr_expect(work[0].sum == work[1].sum && isfinite(work[0].sum), "%g, %g", work[0].sum, work[1].sum);
}

Test(device, peak)
{
    struct device *dev = open_device("cpu", 1);
    double f32 = cpu_peak_flops(dev, DT_F32), bf16 = cpu_peak_flops(dev, DT_BF16);
    for (int i = 0; i < 9 && bf16 <= 0.75 * f32; i++)
        bf16 = cpu_peak_flops(dev, DT_BF16); /* others' work beside it */
    cr_expect(f32 > 1e9 && f32 < 1e13, "%g FLOP/s per thread", f32);
    cr_expect(bf16 > 0.75 * f32, "%g in bf16, which may be widened, %g in f32", bf16, f32);
    device_close(dev);
}

/* How bf16 is multiplied: the faster way, and always the same one; or as KLEIN_PRODUCTS says. */
Test(device, products)
{
    struct klein_error err;
    struct device *dev = open_device("cpu", 1);
    const int instructions = dev->act == DT_BF16;
    const enum products chosen = cpu_of(dev)->products;
    cr_expect_eq(strstr(dev->description, "AMX") != NULL, chosen == PRODUCTS_AMX, "%s", dev->description);
    device_close(dev);
    cr_expect(instructions || chosen == PRODUCTS_F32);
    for (int i = 0; i < 10; i++) {
        dev = open_device("cpu", 1);
        cr_expect_eq(cpu_of(dev)->products, chosen, "open %d", i);
        device_close(dev);
    }
    setenv("KLEIN_PRODUCTS", "f32", 1);
    dev = open_device("cpu", 1);
    cr_expect_eq(cpu_of(dev)->products, PRODUCTS_F32);
    cr_expect_eq(dev->act, instructions ? DT_BF16 : DT_F32, "activations stay what they are");
    cr_expect_eq(strstr(dev->description, "bf16 multiplied in f32") != NULL, instructions, "%s",
                 dev->description);
    device_close(dev);
    setenv("KLEIN_PRODUCTS", "bf16", 1);
    if (instructions) {
        dev = open_device("cpu", 1);
        cr_expect_eq(cpu_of(dev)->products, PRODUCTS_BF16);
        cr_expect(strstr(dev->description, chosen == PRODUCTS_AMX ? "AMX by oneDNN" : "AVX-512 BF16"), "%s",
                  dev->description);
        device_close(dev);
    } else {
        FAILS(device_open("cpu", NULL, &dev, &err), KLEIN_E_UNSUPPORTED, "KLEIN_PRODUCTS");
    }
    setenv("KLEIN_PRODUCTS", "amx", 1);
    dev = open_device("cpu", 1);
    cr_expect_eq(cpu_of(dev)->products, PRODUCTS_AMX);
    cr_expect_eq(strstr(dev->description, "AMX emulated") != NULL, chosen != PRODUCTS_AMX, "%s",
                 dev->description);
    device_close(dev);
    setenv("KLEIN_PRODUCTS", "fp16", 1);
    FAILS(device_open("cpu", NULL, &dev, &err), KLEIN_E_USAGE, "\"fp16\": it must be amx, bf16 or f32");
}

/* Opens `name`, runs the call on it, closes it. */
static enum klein_status run_once(const char *name, struct op_call *call, struct klein_error *err)
{
    struct device *dev;
    TRY(device_open(name, &(struct device_options){.threads = 1}, &dev, err));
    call->dev = dev;
    enum klein_status status = op_call_run(call, err);
    device_close(dev);
    return status;
}

Test(device, every_failing_allocation_is_an_error)
{
    struct klein_error err;
    struct device *ref = open_device("ref", 1);
    const char *const names[] = {"cpu", "ref", "null"};
    static const struct {
        enum op_id op;
        const char *name;
    } table[] = {{OP_linear, "f32 weight"},    {OP_linear, "qkv mlp"},     {OP_attention, "odd"},
                 {OP_conv, "3x3 f16 weights"}, {OP_gn_stats, "one pixel"}, {OP_gn_apply, "one pixel"}};
    for (size_t t = 0; t < sizeof table / sizeof table[0]; t++)
        for (int i = 0; i < op_case_count; i++) {
            if (op_cases[i].op != table[t].op || strcmp(op_cases[i].name, table[t].name)) continue;
            struct op_call call;
            op_call_make(&call, &op_cases[i], DT_BF16, DT_BF16, ref);
            for (int d = 0; d < 3; d++) EACH_ALLOCATION_FAILS(run_once(names[d], &call, &err), );
            call.dev = ref;
            op_call_free(&call);
        }
    device_close(ref);
}

/* null */

struct seen {
    int calls;
    enum op_id last;
    double flops, bytes;
    char shape[96];
};

static void observe(struct run *r, enum op_id op, const struct op_cost *cost, double seconds)
{
    struct seen *s = r->hook_user;
    s->calls++;
    s->last = op;
    s->flops += cost->flops;
    s->bytes += cost->bytes;
    memcpy(s->shape, cost->shape, sizeof s->shape);
}

static struct tensor some(struct device *dev, enum dtype type, int rows, int cols)
{
    return tensor_of(dev->alloc(dev, (size_t)rows * (size_t)cols * dtype_size(type)), type, rows, cols);
}

Test(null, reports_and_checks)
{
    struct klein_error err;
    struct device *dev = open_device("null", 0);
    struct seen seen = {0};
    struct run r = {.dev = dev, .observe = observe, .hook_user = &seen};
    struct linear_args a = {.y = some(dev, DT_BF16, 768, 3072), .x = some(dev, DT_BF16, 768, 9216)};
    a.group[0].w = weight_of(some(dev, DT_BF16, 3072, 9216));
    run_linear(&r, &a);
    cr_assert(run_ok(&r), "%s", r.err.message);
    cr_expect_eq(seen.calls, 1);
    cr_expect_eq(seen.last, OP_linear);
    cr_expect_str_eq(seen.shape, "768x9216 @ 3072");
    cr_expect_eq(seen.flops, 2.0 * 768 * 9216 * 3072);
    cr_expect_eq(seen.bytes, 2.0 * (768 * 3072 + 768 * 9216 + 3072 * 9216));
    a.y.cols--;
    FAILS(dev->ops->linear(dev, &a, &err), KLEIN_E_INTERNAL, "linear");
    run_linear(&r, &a);
    cr_expect_eq(r.err.status, KLEIN_E_INTERNAL);
    cr_expect_eq(seen.calls, 1);
    char out[4] = {1, 2, 3, 4};
    OK(dev->download(dev, out, a.x.ptr, sizeof out, &err));
    cr_expect_arr_eq(out, "\0\0\0\0", 4);
    cr_expect_neq(a.x.ptr, a.y.ptr);
    device_close(dev);
}

/* The products and attentions of one step of klein-4B: what the model description counts, from the ops' own costs. */
struct klein4b {
    struct device *dev;
    struct run *r;
    int text, image, target; /* tokens */
};

static void linear(struct klein4b *k, int rows, int in, int out, int split)
{
    struct linear_args a = {
        .y = some(k->dev, DT_BF16, rows, out), .x = some(k->dev, DT_BF16, rows, in), .split = split};
    for (int g = 0; g < 2; g++) a.group[g].w = weight_of(some(k->dev, DT_BF16, out, in));
    run_linear(k->r, &a);
}

static void attention(struct klein4b *k, int tokens)
{
    struct tensor t = some(k->dev, DT_BF16, tokens, 3072);
    run_attention(k->r, &(struct attention_args){.o = some(k->dev, DT_BF16, tokens, 3072),
                                                 .q = t,
                                                 .k = t,
                                                 .v = t,
                                                 .heads = 24,
                                                 .kv_heads = 24,
                                                 .head_dim = 128,
                                                 .scale = 1});
}

static void swiglu(struct klein4b *k, int rows, int in, int out, int split)
{
    struct linear_args a = {.y = some(k->dev, DT_BF16, rows, out),
                            .x = some(k->dev, DT_BF16, rows, in),
                            .split = split,
                            .epilogue = LINEAR_SWIGLU};
    for (int g = 0; g < 2; g++) a.group[g].w = weight_of(some(k->dev, DT_BF16, 2 * out, in));
    run_linear(k->r, &a);
}

static void step(struct klein4b *k)
{
    int d = 3072, s = k->text + k->image;
    linear(k, k->image, 128, d, 0);
    linear(k, k->text, 7680, d, 0);
    for (int i = 0; i < 5; i++) {
        linear(k, s, d, 3 * d, k->text);
        attention(k, s);
        linear(k, s, d, d, k->text);
        swiglu(k, s, d, 3 * d, k->text);
        linear(k, s, 3 * d, d, k->text);
    }
    for (int i = 0; i < 20; i++) {
        linear(k, s, d, 9 * d, 0);
        attention(k, s);
        linear(k, s, 4 * d, d, 0);
    }
    linear(k, k->target, d, 128, 0);
    linear(k, 1, 256, d, 0);
    linear(k, 1, d, d, 0);
    linear(k, 1, d, 6 * d, 0);
    linear(k, 1, d, 6 * d, 0);
    linear(k, 1, d, 3 * d, 0);
    linear(k, 1, d, 2 * d, 0);
}

Test(null, klein_4b_counts_as_published)
{
    static const struct {
        int pixels, references; /* of 1024x1024 */
        double tflop;
    } table[] = {{256, 0, 4.92},  {256, 1, 37.13},  {512, 0, 10.17},
                 {512, 2, 88.78}, {1024, 0, 34.82}, {2048, 4, 544.45}};
    for (size_t i = 0; i < sizeof table / sizeof table[0]; i++) {
        struct seen seen = {0};
        int target = table[i].pixels / 16 * (table[i].pixels / 16);
        struct device *dev = open_device("null", 0);
        struct run r = {.dev = dev, .observe = observe, .hook_user = &seen};
        struct klein4b k = {dev, &r, 512, target + 4096 * table[i].references, target};
        step(&k);
        cr_assert(run_ok(&r), "%s", r.err.message);
        cr_expect(fabs(seen.flops / 1e12 - table[i].tflop) <= 0.005,
                  "%dx%d with %d references: %.3f TFLOP, expected %.2f", table[i].pixels, table[i].pixels,
                  table[i].references, seen.flops / 1e12, table[i].tflop);
        device_close(k.dev);
    }
}
