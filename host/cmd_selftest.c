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
enum { PICTURES = 2, SMALLEST = 64, SMALL = 128, LARGE = 1024 };

struct selftest {
    const struct settings *s;
    char name[32]; /* of the device */
    struct device *dev;
    struct cuda_facts gpu;
    int is_gpu;
    double begin, most_work;
    int cases, failed, left_out;
    struct picture {
        struct selftest_request r;
        int failed;
        char text[512]; /* why */
    } picture[PICTURES];
    int pictures, pictures_failed;
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

static void print_row(const struct selftest *t, enum op_id op, enum dtype act, const struct row *r)
{
    char time[24] = "-";
    if (!t->is_gpu || !t->gpu.soft) snprintf(time, sizeof time, "%.2f ms", 1e3 * r->seconds);
    printf("%-10s %-5s %5d %6d %8d %9.0f %%  %11s  %s\n", op_name(op), dtype_name(act), r->cases, r->failed,
           r->left_out, 100 * r->excess, time, r->worst ? r->worst : "");
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
    if (!t->s->json) print_row(t, op, act, &row);
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
    if (t->cases) return KLEIN_OK;
    return fail(err, KLEIN_E_USAGE, "no case is left to run by --only, --without and --quick");
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
    if ((t->is_gpu && t->gpu.soft) || t->s->quick)
        puts("left out: activations in F32; the picture in 1024x1024");
    if (t->s->only || t->s->without)
        puts("left out: the cases that --only and --without say, and the picture");
}

/* --- pictures -------------------------------------------------------------------------------------------- */

static void judge(struct picture *p, const struct klein_error *e)
{
    const struct selftest_request *r = &p->r;
    const double limit = SELFTEST_REQUEST_FACTOR * r->cpu_error;
    p->failed = 1;
    if (e->status)
        snprintf(p->text, sizeof p->text, "the picture, %dx%d: %.400s", r->size, r->size, e->message);
    else if (!(r->error <= limit))
        snprintf(p->text, sizeof p->text,
                 "the picture, %dx%d: latents are off by %.3g (relative L2 against F32), limit %.3g", r->size,
                 r->size, r->error, limit);
    else if (!r->same)
        snprintf(p->text, sizeof p->text, "the picture, %dx%d: other bytes with %s", r->size, r->size,
                 r->different);
    else
        p->failed = 0;
}

static void print_picture(const struct picture *p)
{
    const struct selftest_request *r = &p->r;
    putchar('\n');
    if (p->failed) printf("FAILED  %s\n", p->text);
    if (!r->cpu_error) return;
    printf("\"a red balloon on a wooden table\", %dx%d, 4 steps, demo checkpoint, BF16\n", r->size, r->size);
    printf("  latents: relative L2 %.4g from F32 on the processor; limit %.4g, twice the %.4g of BF16 on the "
           "processor\n",
           r->error, SELFTEST_REQUEST_FACTOR * r->cpu_error, r->cpu_error);
    printf("  picture: bytes differ by at most %d from the processor's in BF16\n", r->largest_difference);
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
    json_t *o = json_pack("{s:b, s:i, s:f, s:f, s:f, s:i, s:b, s:b}", "passed", !p->failed, "size", r->size,
                          "relative_l2", isfinite(r->error) ? r->error : -1, "limit",
                          SELFTEST_REQUEST_FACTOR * r->cpu_error, "relative_l2_cpu_bf16", r->cpu_error,
                          "largest_byte_difference", r->largest_difference, "graphs", r->graphs,
                          "graphs_same_bytes", r->same);
    if (o && p->failed) json_object_set_new(o, "failure", json_string(p->text));
    if (o && !r->soft)
        json_object_set_new(o, "seconds",
                            json_pack("[f, f, f]", r->seconds[0], r->seconds[1], r->seconds[2]));
    return o;
}

static enum klein_status run_picture(struct selftest *t, int size, int soft, int graphs,
                                     struct klein_error *err)
{
    struct picture *p = &t->picture[t->pictures++];
    struct klein_error e = {0};
    p->r = (struct selftest_request){
        .model = model_demo(), .device = t->name, .size = size, .soft = soft, .graphs = graphs};
    show(t, size == LARGE ? "the demo picture, large" : "the demo picture");
    if (!p->r.model)
        fail(&e, KLEIN_E_MODEL_MISSING,
             "the demo checkpoint is not there: neither installed nor in the source tree");
    else
        selftest_request_run(&p->r, &e);
    show(t, "");
    if (e.status == KLEIN_E_CANCELLED) return fail(err, e.status, "%s", e.message);
    judge(p, &e);
    t->pictures_failed += p->failed;
    if (!t->s->json) print_picture(p);
    return KLEIN_OK;
}

static enum klein_status run_pictures(struct selftest *t, struct klein_error *err)
{
    const int soft = t->is_gpu && t->gpu.soft, graphs = t->dev->graphs != NULL;
    device_close(t->dev); /* the model opens it again: its memory is free then */
    t->dev = NULL;
    TRY(run_picture(t, t->s->quick ? SMALLEST : SMALL, soft, graphs, err));
    return soft || t->s->quick ? KLEIN_OK : run_picture(t, LARGE, soft, graphs, err);
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
    json_t *pictures = json_array();
    for (int i = 0; i < t->pictures; i++) json_array_append_new(pictures, picture_json(&t->picture[i]));
    if (json_object_set_new(o, "pictures", pictures)) failed = 1;
    failed |= !o || json_dumpf(o, stdout, JSON_COMPACT);
    putchar('\n');
    json_decref(o);
    return failed ? fail(err, KLEIN_E_NO_MEMORY, "cannot make the JSON result") : KLEIN_OK;
}

static enum klein_status summarise(struct selftest *t, struct klein_error *err)
{
    int partly = t->s->only || t->s->without;
    int failed = t->failed || t->pictures_failed;
    if (!t->s->json)
        printf("\n%s: %d case%s, %d failed, %d left out%s; %.1f s\n", failed ? "FAILED" : "PASSED", t->cases,
               t->cases == 1 ? "" : "s", t->failed, t->left_out,
               partly               ? ""
               : t->pictures_failed ? "; the picture failed"
                                    : "; the picture is right",
               clock_seconds() - t->begin);
    return failed ? fail(err, KLEIN_E_NUMERIC, "this device does not compute right: %d failed case%s%s",
                         t->failed, t->failed == 1 ? "" : "s", t->pictures_failed ? ", and the picture" : "")
                  : KLEIN_OK;
}

static enum klein_status test(struct selftest *t, struct klein_error *err)
{
    char why[KLEIN_MESSAGE_MAX], description[sizeof t->dev->description];
    TRY(choose_device(t, why, err));
    memcpy(description, t->dev->description, sizeof description);
    if (!t->s->json) print_head(t, why);
    TRY(run_ops(t, err));
    if (!t->s->json) print_left_out(t);
    if (!t->s->only && !t->s->without) TRY(run_pictures(t, err));
    if (t->s->json) TRY(print_json(t, description, err));
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
     .help = "only BF16, a smaller picture, and on the soft GPU no large cases; it says what it leaves out"},
    {0, "only", "TEXT", CLI_TEXT, AT(only),
     .help = "only cases with this in their name (\"linear\", \"conv 3x3\"), and no picture"},
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
        "may be twice that of the plain evaluation in the same number format. Exit code 0: all is right; 1: "
        "something is not.",
    .examples = "klein selftest\n"
                "klein selftest --device soft --quick\n"
                "klein selftest --device cuda:1 --only attention\n",
    .groups = groups,
    .settings_size = sizeof(struct settings),
    .run = run,
};
