/* klein selftest: whether this build computes right on this device: every op against the specification, then a picture. */
#include "commands.h"
#include "build_commit.h"
#include "selftest.h"
#include "shared_options.h"
#include "signals.h"

#include "../base/clock.h"
#include "../engine/klein.h"
#include "../kernels/check/op_cases.h"
#include "../kernels/cuda/cuda.h"

#include <jansson.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

struct settings {
    const char *device, *only, *without;
    int quick, json;
};

/* Seconds that a case may take on a GPU, the specification on the host included, before the device counts as hanging. */
enum { DEADLINE = 120 };
/* op_case_work of the cases that --quick leaves out on the soft GPU, which executes some ten million multiplications a second. */
static const double most_work_quick = 8e6;

/* Sizes of the demo picture. The large one, for GPUs only, has the tiles and waves of real requests; a size that the demo model never
 * saw changes what it shows and not what is right. */
enum { PICTURES = 3, SMALLEST = 64, SMALL = 128, LARGE = 1024 };

struct selftest {
    const struct settings *s;
    char name[32]; /* of the device */
    struct device *dev;
    struct cuda_facts gpu;
    int is_gpu, e4m3;
    double begin, most_work;
    int cases, failed, left_out;
    struct picture {
        struct selftest_request r;
        char name[48]; /* as --only has it: "picture FP8, 128x128" */
        int left_out, failed;
        char text[512]; /* why */
    } picture[PICTURES];
    int pictures, pictures_made, pictures_failed;
    json_t *ops, *failures, *left;
};

/* The cases of one op in one dtype. */
struct row {
    int cases, failed, left_out;
    double excess, seconds;
    const char *worst; /* name of the case */
};

/* --- the device ------------------------------------------------------------------------------------------ */

static enum klein_status open_device(struct selftest *t, struct klein_error *err)
{
    TRY(device_open(t->name, &(struct device_options){0}, &t->dev, err));
    if (!t->dev->computes)
        return fail(err, KLEIN_E_NO_DEVICE, "device \"%s\" computes nothing: there is nothing to test",
                    t->name);
    t->is_gpu = cuda_facts(t->dev, &t->gpu);
    t->e4m3 = t->is_gpu && t->dev->e4m3;
    return KLEIN_OK;
}

/* The one asked for, else the first GPU, else the soft GPU. */
static enum klein_status choose_device(struct selftest *t, char why[KLEIN_MESSAGE_MAX],
                                       struct klein_error *err)
{
    struct klein_error none = {0};
    const char *wanted = t->s->device;
    *why = 0;
    snprintf(t->name, sizeof t->name, "%s", wanted ? wanted : "cuda");
    if (wanted && strlen(wanted) >= sizeof t->name)
        return fail(err, KLEIN_E_NO_DEVICE, "device \"%s\" does not exist", wanted);
    if (wanted) return open_device(t, err);
    if (open_device(t, &none) == KLEIN_OK) return KLEIN_OK;
    memcpy(why, none.message, KLEIN_MESSAGE_MAX);
    snprintf(t->name, sizeof t->name, "soft");
    return open_device(t, err);
}

/* What nvidia-smi calls the driver; "" if the system does not say. */
static void read_driver(char *out, size_t size)
{
    FILE *f = fopen("/proc/driver/nvidia/version", "r");
    *out = 0;
    if (!f) return;
    if (!fgets(out, (int)size, f)) *out = 0;
    out[strcspn(out, "\n")] = 0;
    fclose(f);
}

static void print_head(const struct selftest *t, const char *why)
{
    char driver[256];
    printf("klein %s, commit %s\n", klein_version(), KLEIN_COMMIT);
    printf("device  %s: %s\n", t->name, t->dev->description);
    if (t->is_gpu && t->gpu.soft) puts("        soft GPU: executed on the host, times mean nothing");
    if (*why) printf("        because there is no GPU that can be used: %s\n", why);
    if (t->is_gpu && !t->gpu.soft) {
        read_driver(driver, sizeof driver);
        printf("driver  CUDA %d.%d%s%s\n", t->gpu.cuda / 1000, t->gpu.cuda % 1000 / 10, *driver ? "; " : "",
               driver);
        printf("clock   at most %d MHz\n", t->gpu.clock_khz / 1000);
    }
    if (t->is_gpu) printf("kernels %d of %d files run here\n", t->gpu.loaded, t->gpu.modules);
    fflush(stdout);
}

/* --- progress -------------------------------------------------------------------------------------------- */

static void show(const struct selftest *t, const char *what)
{
    if (t->s->json || !isatty(STDERR_FILENO)) return;
    fprintf(stderr, "\r\033[K%s", what);
    fflush(stderr);
}

/* --- ops ------------------------------------------------------------------------------------------------- */

static void add_failure(struct selftest *t, const char *text)
{
    t->failed++;
    show(t, "");
    if (!t->s->json) printf("FAILED  %s\n", text);
    fflush(stdout);
    json_array_append_new(t->failures, json_string(text));
}

/* Whether a failure may have broken the device's context, so that it has to be opened anew. */
static int may_be_broken(enum klein_status status)
{
    return status != KLEIN_E_UNSUPPORTED && status != KLEIN_E_NO_MEMORY;
}

static enum klein_status run_case(struct selftest *t, const struct op_case *c, enum dtype act,
                                  struct row *row, struct klein_error *err)
{
    struct op_verdict v;
    struct klein_error e = {0};
    char what[128], text[KLEIN_MESSAGE_MAX + 160];
    snprintf(what, sizeof what, "%s %s, %s", op_name(c->op), dtype_name(act), c->name);
    show(t, what);
    if (t->is_gpu && !t->gpu.soft) signals_deadline(DEADLINE, what);
    enum klein_status status = op_case_judge(c, act, t->dev, &v, &e);
    signals_deadline(0, "");
    row->cases++;
    row->seconds += v.seconds;
    if (v.excess > row->excess) {
        row->excess = v.excess;
        row->worst = c->name;
    }
    if (status == KLEIN_OK && v.excess <= 1) return KLEIN_OK;
    row->failed++;
    snprintf(text, sizeof text, "%s: %s", what, e.message);
    add_failure(t, status == KLEIN_OK ? v.text : text);
    if (status == KLEIN_OK || !may_be_broken(status)) return KLEIN_OK;
    device_close(t->dev);
    t->dev = NULL;
    if (open_device(t, err) == KLEIN_OK) return KLEIN_OK;
    struct klein_error why = *err;
    *err = (struct klein_error){0};
    return fail(err, why.status,
                "the device cannot be used any more after %s: %s; --without \"%s\" goes on with the others",
                what, why.message, c->name);
}

static void print_row(const struct selftest *t, const char *what, const char *dtype, const struct row *r)
{
    char time[24] = "-";
    if (!t->is_gpu || !t->gpu.soft) snprintf(time, sizeof time, "%.2f ms", 1e3 * r->seconds);
    printf("%-10s %-5s %5d %6d %8d %9.0f %%  %11s  %s\n", what, dtype, r->cases, r->failed, r->left_out,
           100 * r->excess, time, r->worst ? r->worst : "");
    fflush(stdout);
}

static json_t *row_json(const struct selftest *t, enum op_id op, enum dtype act, const struct row *r)
{
    json_t *o =
        json_pack("{s:s, s:s, s:i, s:i, s:i, s:s?}", "op", op_name(op), "dtype", dtype_name(act), "cases",
                  r->cases, "failed", r->failed, "left_out", r->left_out, "worst_case", r->worst);
    if (o && isfinite(r->excess)) json_object_set_new(o, "worst_of_limit", json_real(r->excess));
    if (o && !(t->is_gpu && t->gpu.soft)) json_object_set_new(o, "seconds", json_real(r->seconds));
    return o;
}

static int wanted(const struct settings *s, const struct op_case *c)
{
    char name[128];
    snprintf(name, sizeof name, "%s %s", op_name(c->op), c->name);
    return !c->bench && (!s->only || strstr(name, s->only)) && !(s->without && strstr(name, s->without));
}

static enum klein_status run_op(struct selftest *t, enum op_id op, enum dtype act, struct klein_error *err)
{
    struct row row = {0};
    for (int i = 0; i < op_case_count && !err->status; i++) {
        const struct op_case *c = &op_cases[i];
        if (c->op != op || !wanted(t->s, c)) continue;
        if (signals_received()) {
            fail(err, KLEIN_E_CANCELLED, "cancelled");
        } else if (op_case_work(c) > t->most_work) {
            char text[128];
            snprintf(text, sizeof text, "%s %s, %s", op_name(op), dtype_name(act), c->name);
            json_array_append_new(t->left, json_string(text));
            row.left_out++;
        } else {
            run_case(t, c, act, &row, err);
        }
    }
    t->cases += row.cases;
    t->left_out += row.left_out;
    if (!row.cases && !row.left_out) return err->status;
    show(t, "");
    if (!t->s->json) print_row(t, op_name(op), dtype_name(act), &row);
    json_array_append_new(t->ops, row_json(t, op, act, &row));
    return err->status;
}

static enum klein_status run_ops(struct selftest *t, struct klein_error *err)
{
    int soft = t->is_gpu && t->gpu.soft;
    t->most_work = soft && t->s->quick ? most_work_quick : INFINITY;
    if (!t->s->json)
        printf("\n%-10s %-5s %5s %6s %8s %11s  %11s  %s\n", "OP", "DTYPE", "CASES", "FAILED", "LEFT OUT",
               "OF LIMIT", soft ? "" : "TIME", "WORST CASE");
    for (int f32 = 0; f32 < (soft || t->s->quick ? 1 : 2); f32++)
        for (int op = 0; op < OP_COUNT; op++) TRY(run_op(t, (enum op_id)op, f32 ? DT_F32 : DT_BF16, err));
    return KLEIN_OK;
}

/* --- pictures -------------------------------------------------------------------------------------------- */

static void add_picture(struct selftest *t, int size, int fp8, int left_out)
{
    struct picture p = {.left_out = left_out,
                        .r = {.model = model_demo(),
                              .device = t->name,
                              .size = size,
                              .fp8 = fp8,
                              .soft = t->is_gpu && t->gpu.soft,
                              .graphs = t->dev->graphs != NULL}};
    snprintf(p.name, sizeof p.name, "picture %s, %dx%d", fp8 ? "FP8" : "BF16", size, size);
    if (t->s->without || (t->s->only && !strstr(p.name, t->s->only))) return;
    t->picture[t->pictures++] = p;
    t->pictures_made += !left_out;
}

/* FP8 is compared in one size, that of its limit; on the soft GPU that takes minutes. */
static void choose_pictures(struct selftest *t)
{
    const int soft = t->is_gpu && t->gpu.soft, quick = t->s->quick;
    add_picture(t, quick ? SMALLEST : SMALL, 0, 0);
    add_picture(t, LARGE, 0, soft || quick);
    if (t->e4m3) add_picture(t, SMALL, 1, soft && quick);
}

static void judge(struct picture *p, const struct klein_error *e)
{
    char why[400];
    const char *wrong = e->status ? e->message : selftest_request_judge(&p->r, why, sizeof why);
    p->failed = wrong != NULL;
    if (wrong) snprintf(p->text, sizeof p->text, "%s: %.400s", p->name, wrong);
}

static void print_error(const struct selftest_request *r)
{
    if (r->fp8) {
        printf("  first velocity: relative L2 %.4g from BF16 on this device; limit %.4g\n", r->error,
               r->limit);
        return;
    }
    printf("  latents: relative L2 %.4g from F32 on the processor; limit %.4g, twice the %.4g of BF16 on the "
           "processor\n",
           r->error, r->limit, r->cpu_error);
    printf("  picture: bytes differ by at most %d from the processor's in BF16\n", r->largest_difference);
}

static void print_picture(const struct picture *p)
{
    const struct selftest_request *r = &p->r;
    putchar('\n');
    if (p->failed) printf("FAILED  %s\n", p->text);
    if (!r->limit) return;
    printf("\"a red balloon on a wooden table\", %dx%d, 4 steps, demo checkpoint, %s\n", r->size, r->size,
           r->fp8 ? "FP8" : "BF16");
    print_error(r);
    if (!r->graphs)
        puts("  graphs: this device has none");
    else
        printf("  graphs of stages and of the request, as ops, captured and replayed: %s\n",
               r->same ? "the same bytes as without" : r->different);
    if (!r->soft) printf("  time: %.2f ms op by op%s", 1e3 * r->seconds[0], r->graphs ? "" : "\n");
    if (!r->soft && r->graphs)
        printf(", %.2f ms with graphs of stages, %.2f ms as one graph\n", 1e3 * r->seconds[1],
               1e3 * r->seconds[2]);
    fflush(stdout);
}

static json_t *picture_json(const struct picture *p)
{
    const struct selftest_request *r = &p->r;
    json_t *o =
        json_pack("{s:b, s:i, s:s, s:f, s:f, s:b, s:b}", "passed", !p->failed, "size", r->size, "precision",
                  r->fp8 ? "fp8" : "bf16", "relative_l2", isfinite(r->error) ? r->error : -1, "limit",
                  r->limit, "graphs", r->graphs, "graphs_same_bytes", r->same);
    if (o && !r->fp8) {
        json_object_set_new(o, "relative_l2_cpu_bf16", json_real(r->cpu_error));
        json_object_set_new(o, "largest_byte_difference", json_integer(r->largest_difference));
    }
    if (o && p->failed) json_object_set_new(o, "failure", json_string(p->text));
    if (o && !r->soft)
        json_object_set_new(o, "seconds",
                            json_pack("[f, f, f]", r->seconds[0], r->seconds[1], r->seconds[2]));
    return o;
}

static enum klein_status run_picture(struct selftest *t, struct picture *p, struct klein_error *err)
{
    struct klein_error e = {0};
    show(t, p->name);
    if (!p->r.model)
        fail(&e, KLEIN_E_MODEL_MISSING,
             "the demo checkpoint is not there: neither installed nor in the source tree");
    else
        selftest_request_run(&p->r, &e);
    show(t, "");
    if (e.status == KLEIN_E_CANCELLED) return fail(err, e.status, "%s", e.message);
    judge(p, &e);
    t->pictures_failed += p->failed;
    return KLEIN_OK;
}

/* Those of one number format, and their row in the table. */
static enum klein_status run_pictures_in(struct selftest *t, int fp8, struct klein_error *err)
{
    struct row row = {0};
    for (int i = 0; i < t->pictures; i++) {
        struct picture *p = &t->picture[i];
        if (p->r.fp8 != fp8) continue;
        row.left_out += p->left_out;
        if (p->left_out) continue;
        TRY(run_picture(t, p, err));
        const double excess = p->failed && p->r.error <= p->r.limit ? INFINITY : p->r.error / p->r.limit;
        row.cases++;
        row.failed += p->failed;
        row.seconds += p->r.seconds[0];
        if (excess <= row.excess) continue;
        row.excess = excess;
        row.worst = p->name;
    }
    if (!t->s->json && row.cases + row.left_out) print_row(t, "picture", fp8 ? "FP8" : "BF16", &row);
    return KLEIN_OK;
}

static enum klein_status run_pictures(struct selftest *t, struct klein_error *err)
{
    device_close(t->dev); /* the model opens it again: its memory is free then */
    t->dev = NULL;
    TRY(run_pictures_in(t, 0, err));
    return run_pictures_in(t, 1, err);
}

/* What this run does not cover. */
static void print_left_out(const struct selftest *t)
{
    const char *name;
    size_t i;
    json_t *item;
    if (t->left_out) {
        printf("left out, more than %.0f million multiplications:", t->most_work / 1e6);
        json_array_foreach(t->left, i, item)
        {
            name = json_string_value(item);
            printf("%s %s", i ? ";" : "", name ? name : "?");
        }
        puts("");
    }
    if ((t->is_gpu && t->gpu.soft) || t->s->quick) puts("left out: activations in F32");
    for (int i = 0; i < t->pictures; i++)
        if (t->picture[i].left_out) printf("left out: %s\n", t->picture[i].name);
    if (t->is_gpu && !t->e4m3) puts("left out: pictures in FP8, which needs sm_89 (Ada) or later");
    if (t->s->only || t->s->without) puts("left out: the cases and pictures that --only and --without say");
}

/* --- the command ----------------------------------------------------------------------------------------- */

static enum klein_status print_json(struct selftest *t, const char *description, struct klein_error *err)
{
    char driver[256];
    read_driver(driver, sizeof driver);
    json_t *o =
        json_pack("{s:s, s:s, s:s, s:s, s:b, s:i, s:s, s:b, s:b, s:i, s:i, s:i, s:O, s:O, s:O, s:f}",
                  "version", klein_version(), "commit", KLEIN_COMMIT, "device", t->name, "description",
                  description, "soft", t->is_gpu && t->gpu.soft, "cuda", t->is_gpu ? t->gpu.cuda : 0,
                  "driver", driver, "quick", t->s->quick, "passed", !t->failed && !t->pictures_failed,
                  "cases", t->cases, "failed", t->failed, "left_out", t->left_out, "ops", t->ops, "failures",
                  t->failures, "left_out_cases", t->left, "wall_seconds", clock_seconds() - t->begin);
    int failed = !o;
    json_t *pictures = json_array(), *left = json_array();
    for (int i = 0; i < t->pictures; i++) {
        const struct picture *p = &t->picture[i];
        json_array_append_new(p->left_out ? left : pictures,
                              p->left_out ? json_string(p->name) : picture_json(p));
    }
    failed |= json_object_set_new(o, "pictures", pictures);
    failed |= json_object_set_new(o, "left_out_pictures", left);
    failed |= !o || json_dumpf(o, stdout, JSON_COMPACT);
    putchar('\n');
    json_decref(o);
    return failed ? fail(err, KLEIN_E_NO_MEMORY, "cannot make the JSON result") : KLEIN_OK;
}

static enum klein_status summarise(struct selftest *t, struct klein_error *err)
{
    const int failed = t->failed || t->pictures_failed, made = t->pictures_made;
    char pictures[64] = "";
    if (t->pictures_failed)
        snprintf(pictures, sizeof pictures, "%d of %d pictures failed", t->pictures_failed, made);
    else if (made)
        snprintf(pictures, sizeof pictures, "the picture%s right", made > 1 ? "s are" : " is");
    if (!t->s->json)
        printf("\n%s: %d case%s, %d failed, %d left out%s%s; %.1f s\n", failed ? "FAILED" : "PASSED",
               t->cases, t->cases == 1 ? "" : "s", t->failed, t->left_out, *pictures ? "; " : "", pictures,
               clock_seconds() - t->begin);
    return failed ? fail(err, KLEIN_E_NUMERIC, "this device does not compute right: %d failed case%s%s%s",
                         t->failed, t->failed == 1 ? "" : "s", t->pictures_failed ? ", and " : "",
                         t->pictures_failed ? pictures : "")
                  : KLEIN_OK;
}

static enum klein_status test(struct selftest *t, struct klein_error *err)
{
    char why[KLEIN_MESSAGE_MAX], description[sizeof t->dev->description];
    TRY(choose_device(t, why, err));
    memcpy(description, t->dev->description, sizeof description);
    choose_pictures(t);
    if (!t->s->json) print_head(t, why);
    TRY(run_ops(t, err));
    if (!t->cases && !t->pictures_made)
        return fail(err, KLEIN_E_USAGE, "no case is left to run by --only, --without and --quick");
    TRY(run_pictures(t, err));
    if (t->s->json) {
        TRY(print_json(t, description, err));
    } else {
        print_left_out(t);
        for (int i = 0; i < t->pictures; i++)
            if (!t->picture[i].left_out) print_picture(&t->picture[i]);
    }
    return summarise(t, err);
}

static enum klein_status run(const void *settings, struct klein_error *err)
{
    struct selftest t = {.s = settings,
                         .begin = clock_seconds(),
                         .ops = json_array(),
                         .failures = json_array(),
                         .left = json_array()};
    signals_install();
    enum klein_status status = test(&t, err);
    show(&t, "");
    device_close(t.dev);
    json_decref(t.ops);
    json_decref(t.failures);
    json_decref(t.left);
    return status;
}

#define AT(field) offsetof(struct settings, field)
static const struct cli_option options[] = {
    {0, "device", "NAME", CLI_TEXT, AT(device), .help = "what to test; \"klein devices\" lists them",
     .standard = "cuda, else soft"},
    {0, "quick", NULL, CLI_FLAG, AT(quick),
     .help = "only BF16, a smaller picture, and on the soft GPU neither large cases nor the picture in FP8; "
             "it says what it leaves out"},
    {0, "only", "TEXT", CLI_TEXT, AT(only),
     .help = "only cases and pictures with this in their name (\"linear\", \"conv 3x3\", \"picture FP8\")"},
    {0, "without", "TEXT", CLI_TEXT, AT(without),
     .help = "no cases with this in their name, and no picture: to go on after one that hangs"},
    {0},
};

static const struct cli_group groups[] = {
    {"Selftest", options, 0},
    {NULL, json_options, AT(json)},
    {0},
};

const struct cli_command command_selftest = {
    .name = "selftest",
    .summary = "check that a device computes right",
    .about =
        "Runs every operation over a list of cases and holds the results against the specification in double "
        "precision; then makes a picture with the demo model on the device and on the processor. An error "
        "may be twice that of the plain evaluation in the same number format. On GPUs that multiply FP8 also "
        "the "
        "picture with --precision fp8, whose first velocity may be 3 % off that in BF16 on the same device. "
        "Exit code 0: all is right; 1: something is not.",
    .examples = "klein selftest\n"
                "klein selftest --device soft --quick\n"
                "klein selftest --device cuda:1 --only attention\n",
    .groups = groups,
    .settings_size = sizeof(struct settings),
    .run = run,
};
