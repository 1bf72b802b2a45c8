#include "tuned.h"

#include "attention/attention_pick.h"
#include "conv/conv_pick.h"
#include "gemm/gemm_pick.h"

#include <ctype.h>
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

/* ---- where ---------------------------------------------------------------------------------------------- */

enum klein_status tuned_path(const struct tuned_for *f, char out[TUNED_PATH], struct klein_error *err)
{
    const char *cache = getenv("XDG_CACHE_HOME"), *home = getenv("HOME");
    const int xdg = cache && *cache == '/'; /* relative ones count as not set */
    if (!xdg && (!home || *home != '/'))
        return fail(err, KLEIN_E_OUTPUT,
                    "no place for the table of tuned kernels: set HOME or XDG_CACHE_HOME");
    char gpu[128];
    snprintf(gpu, sizeof gpu, "%s", f->gpu);
    for (char *p = gpu; *p; p++)
        if (!isalnum((unsigned char)*p)) *p = '-';
    int n = snprintf(out, TUNED_PATH, "%s%s/klein/tune-%s-sm%d.json", xdg ? cache : home,
                     xdg ? "" : "/.cache", gpu, f->arch);
    return n < TUNED_PATH ? KLEIN_OK : fail(err, KLEIN_E_OUTPUT, "the path of the user's cache is too long");
}

/* ---- the table ------------------------------------------------------------------------------------------ */

static int is_kernel(const char *name)
{
    for (int i = 0; gemm_variant(i); i++)
        if (!strcmp(gemm_variant(i)->name, name)) return 1;
    for (int i = 0; attention_variant(i); i++)
        if (!strcmp(attention_variant(i)->name, name)) return 1;
    for (int i = 0; conv_variant(i); i++)
        if (!strcmp(conv_variant(i)->name, name)) return 1;
    return 0;
}

static json_t *shapes_of(const struct tuned *t)
{
    return json_object_get(t->file, "shapes");
}

/* The rows of the file's shapes. */
static enum klein_status list_rows(struct tuned *t, struct klein_error *err)
{
    const json_t *shapes = shapes_of(t), *shape;
    size_t i, n = json_array_size(shapes);
    struct tuned_row *row = calloc(n + 1, sizeof *row);
    if (!row) return fail(err, KLEIN_E_NO_MEMORY, "no memory for %zu tuned shapes", n);
    free(t->row);
    t->row = row;
    t->n = (int)n;
    json_array_foreach(shapes, i, shape)
    {
        row[i] = (struct tuned_row){json_string_value(json_object_get(shape, "shape")),
                                    json_string_value(json_object_get(shape, "kernel")), shape};
        if (!row[i].key || !row[i].kernel)
            return fail(err, KLEIN_E_INPUT, "shape %zu of it has no name or no kernel", i);
        if (!is_kernel(row[i].kernel))
            return fail(err, KLEIN_E_INPUT, "this klein has no kernel \"%.60s\", which it names",
                        row[i].kernel);
    }
    return KLEIN_OK;
}

struct tuned *tuned_new(const struct tuned_for *f)
{
    struct klein_error none = {0};
    struct tuned *t = calloc(1, sizeof *t);
    if (!t) return NULL;
    t->file = json_pack("{s:s, s:s, s:i, s:i, s:i, s:[]}", "klein", f->version, "gpu", f->gpu, "arch",
                        f->arch, "multiprocessors", f->multiprocessors, "driver", f->driver, "shapes");
    if (t->file && list_rows(t, &none) == KLEIN_OK) return t;
    tuned_free(t);
    return NULL;
}

void tuned_free(struct tuned *t)
{
    if (!t) return;
    json_decref(t->file);
    free(t->row);
    free(t);
}

const struct tuned_row *tuned_find(const struct tuned *t, const char *key)
{
    for (int i = 0; t && i < t->n; i++)
        if (!strcmp(t->row[i].key, key)) return &t->row[i];
    return NULL;
}

const char *tuned_kernel(const struct tuned *t, const char *key)
{
    const struct tuned_row *row = tuned_find(t, key);
    return row ? row->kernel : NULL;
}

enum klein_status tuned_add(struct tuned *t, json_t *shape, struct klein_error *err)
{
    const char *key = json_string_value(json_object_get(shape, "shape"));
    const struct tuned_row *old = key ? tuned_find(t, key) : NULL;
    int failed = old ? json_array_set_new(shapes_of(t), (size_t)(old - t->row), shape)
                     : json_array_append_new(shapes_of(t), shape);
    return failed ? fail(err, KLEIN_E_NO_MEMORY, "no memory for a tuned shape") : list_rows(t, err);
}

/* ---- the file ------------------------------------------------------------------------------------------- */

static enum klein_status check_text(const json_t *file, const char *name, const char *expected,
                                    struct klein_error *err)
{
    const char *text = json_string_value(json_object_get(file, name));
    if (text && !strcmp(text, expected)) return KLEIN_OK;
    return fail(err, KLEIN_E_INPUT, "it is of %s %.60s, this is %s", name, text ? text : "(not said)",
                expected);
}

static enum klein_status check_number(const json_t *file, const char *name, int expected,
                                      struct klein_error *err)
{
    const json_t *number = json_object_get(file, name);
    if (json_is_integer(number) && json_integer_value(number) == expected) return KLEIN_OK;
    return fail(err, KLEIN_E_INPUT, "it is of %s %lld, this is %d", name,
                (long long)json_integer_value(number), expected);
}

static enum klein_status check_file(struct tuned *t, const struct tuned_for *f, struct klein_error *err)
{
    TRY(check_text(t->file, "klein", f->version, err));
    TRY(check_text(t->file, "gpu", f->gpu, err));
    TRY(check_number(t->file, "arch", f->arch, err));
    TRY(check_number(t->file, "multiprocessors", f->multiprocessors, err));
    TRY(check_number(t->file, "driver", f->driver, err));
    if (!json_is_array(shapes_of(t))) return fail(err, KLEIN_E_INPUT, "it has no shapes");
    return list_rows(t, err);
}

static enum klein_status load(const char *path, const struct tuned_for *f, struct tuned *t,
                              struct klein_error *err)
{
    json_error_t e;
    FILE *in = fopen(path, "rb");
    if (!in) return fail(err, KLEIN_E_INPUT, "%s", strerror(errno));
    t->file = json_loadf(in, JSON_REJECT_DUPLICATES, &e);
    fclose(in);
    if (!t->file) return fail(err, KLEIN_E_INPUT, "line %d: %.80s", e.line, e.text);
    return check_file(t, f, err);
}

enum klein_status tuned_read(const char *path, const struct tuned_for *f, struct tuned **out,
                             struct klein_error *err)
{
    struct klein_error why = {0};
    *out = NULL;
    if (access(path, F_OK) && errno == ENOENT) return KLEIN_OK;
    struct tuned *t = calloc(1, sizeof *t);
    if (!t) return fail(err, KLEIN_E_NO_MEMORY, "no memory for tuned kernels");
    if (load(path, f, t, &why) == KLEIN_OK) {
        *out = t;
        return KLEIN_OK;
    }
    tuned_free(t);
    return fail(err, KLEIN_E_INPUT,
                "the tuned kernels in %s are not used (%s); the built-in choice is. klein tune makes the "
                "table anew",
                path, why.message);
}

static enum klein_status make_folders(char *path, struct klein_error *err)
{
    for (char *slash = strchr(path + 1, '/'); slash; slash = strchr(slash + 1, '/')) {
        *slash = 0;
        const int failed = mkdir(path, 0777) && errno != EEXIST;
        if (failed) fail(err, KLEIN_E_OUTPUT, "cannot make the folder \"%s\": %s", path, strerror(errno));
        *slash = '/';
        if (failed) return err->status;
    }
    return KLEIN_OK;
}

enum klein_status tuned_write(const struct tuned *t, const char *path, struct klein_error *err)
{
    char temporary[TUNED_PATH + 32];
    snprintf(temporary, sizeof temporary, "%s.%ld", path, (long)getpid());
    TRY(make_folders(temporary, err));
    FILE *out = fopen(temporary, "wb");
    int failed = !out || json_dumpf(t->file, out, JSON_INDENT(1)) || fputc('\n', out) == EOF;
    if (out) failed |= fclose(out) != 0;
    failed = failed || rename(temporary, path);
    if (!failed) return KLEIN_OK;
    fail(err, KLEIN_E_OUTPUT, "cannot write \"%s\": %s", path, strerror(errno));
    unlink(temporary);
    return err->status;
}
