#include "bench.h"
#include "table.h"

#include <stdlib.h>
#include <string.h>

/* Medians closer than this are the same: clocks and neighbours do as much. */
static const double tolerance = 0.03;

static double number(const json_t *o, const char *key)
{
    return json_number_value(json_object_get(o, key));
}

/* Whether two results are of the same work on the same device. */
static int comparable(const json_t *a, const json_t *b)
{
    static const char *const keys[] = {
        "model",     "random", "width",       "height", "steps",    "images", "reference_sizes", "dtype",
        "precision", "device", "description", "gpus",   "parallel", "graph",  "threads"};
    for (size_t i = 0; i < sizeof keys / sizeof *keys; i++) {
        const json_t *x = json_object_get(a, keys[i]), *y = json_object_get(b, keys[i]);
        if (!x || !y || !json_equal((json_t *)x, (json_t *)y)) return 0;
    }
    return 1;
}

/* The last result in the file that can be compared; NULL: none. */
static enum klein_status read_result(const char *path, const json_t *like, json_t **out,
                                     struct klein_error *err)
{
    FILE *f = fopen(path, "r");
    char *line = NULL;
    size_t size = 0;
    *out = NULL;
    if (!f) return fail(err, KLEIN_E_INPUT, "cannot read \"%s\"", path);
    while (getline(&line, &size, f) > 0) {
        json_t *o = json_loads(line, 0, NULL);
        if (o && comparable(o, like)) {
            json_decref(*out);
            *out = json_incref(o);
        }
        json_decref(o);
    }
    free(line);
    fclose(f);
    return *out ? KLEIN_OK
                : fail(err, KLEIN_E_INPUT,
                       "%s has no result of this request on this device, one JSON object a line as --json "
                       "prints",
                       path);
}

/* The shortest (sign 1) or longest (-1) of the runs. */
static double extreme(const json_t *stage, int sign)
{
    const json_t *runs = json_object_get(stage, "runs"), *run;
    double best = 0;
    size_t i;
    json_array_foreach(runs, i, run)
    {
        double t = json_number_value(run);
        if (i == 0 || sign * t < sign * best) best = t;
    }
    return best;
}

/* 1: slower, -1: faster, 0: the same. More than the tolerance, and no run of one within the runs of the other. */
static int verdict(const json_t *before, const json_t *now)
{
    double a = number(before, "seconds"), b = number(now, "seconds");
    if (b > a * (1 + tolerance) && extreme(now, 1) > extreme(before, -1)) return 1;
    if (a > b * (1 + tolerance) && extreme(before, 1) > extreme(now, -1)) return -1;
    return 0;
}

enum klein_status bench_compare(const char *path, const json_t *now, FILE *out, struct klein_error *err)
{
    static const char *const words[] = {"faster", "the same", "SLOWER"};
    json_t *before;
    const json_t *stages = json_object_get(now, "stages"), *stage;
    const char *name;
    struct table t;
    int slower = 0;
    TRY(read_result(path, now, &before, err));
    const json_t *old_stages = json_object_get(before, "stages");
    table_begin(&t, "lrrrl");
    table_cell(&t, "STAGE");
    table_cell(&t, "BEFORE S");
    table_cell(&t, "NOW S");
    table_cell(&t, "CHANGE");
    table_cell(&t, "VERDICT");
    json_object_foreach((json_t *)stages, name, stage)
    {
        const json_t *old = json_object_get(old_stages, name);
        double a = number(old, "seconds"), b = number(stage, "seconds");
        if (!(number(stage, "flop") > 0) || !(a > 0) || !(b > 0))
            continue; /* without ops: nothing but the clock's noise */
        int v = verdict(old, stage);
        slower += v > 0;
        table_cell(&t, "%s", name);
        table_cell(&t, "%.5f", a);
        table_cell(&t, "%.5f", b);
        table_cell(&t, "%+.1f %%", 100 * (b / a - 1));
        table_cell(&t, "%s", words[v + 1]);
    }
    fprintf(out, "\nagainst %s:\n", path);
    int ok = table_print(&t, out);
    json_decref(before);
    if (!ok) return fail(err, KLEIN_E_NO_MEMORY, "no memory for a table");
    return slower ? fail(err, KLEIN_E_NUMERIC, "slower than before in %d of the stages", slower) : KLEIN_OK;
}
