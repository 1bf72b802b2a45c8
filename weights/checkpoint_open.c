/* Where the parts of a model are, what its config files say, and whether both agree. */
#include "json.h"
#include "parts.h"

#include <errno.h>
#include <limits.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <strings.h>
#include <sys/stat.h>
#include <unistd.h>

struct place {
    char path[PATH_MAX];
    int is_file;
    int overridden;
};

struct places {
    char root[PATH_MAX]; /* the folder of the model as a whole: klein.json, model_index.json, tokenizer */
    struct place part[PART_COUNT];
};

enum kind { ABSENT, A_FILE, A_FOLDER };

static enum kind kind_of(const char *path)
{
    struct stat st;
    return stat(path, &st) ? ABSENT : S_ISDIR(st.st_mode) ? A_FOLDER : A_FILE;
}

static enum klein_status join(char out[PATH_MAX], const char *folder, const char *name,
                              struct klein_error *err)
{
    if (snprintf(out, PATH_MAX, "%s/%s", folder, name) < PATH_MAX) return KLEIN_OK;
    return fail(err, KLEIN_E_MODEL_MISSING, "%.200s...: the path is too long", folder);
}

static const char *base_name(const char *path)
{
    const char *slash = strrchr(path, '/');
    return slash ? slash + 1 : path;
}

/* Paths of PATH_MAX and more never come here: the system knows no file of such a name. */
static void copy_path(char out[PATH_MAX], const char *path)
{
    size_t n = strnlen(path, PATH_MAX - 1);
    memmove(out, path, n);
    out[n] = 0;
}

/* The folder that holds `path`. */
static void parent(char out[PATH_MAX], const char *path)
{
    copy_path(out, path);
    size_t n = strlen(out);
    while (n > 1 && out[n - 1] == '/') out[--n] = 0;
    char *slash = strrchr(out, '/');
    if (!slash)
        strcpy(out, ".");
    else
        slash[slash == out] = 0;
}

/* --- where ------------------------------------------------------------------------------------------------
 */

static enum klein_status place_override(struct place *p, enum checkpoint_part which, const char *path,
                                        struct klein_error *err)
{
    char inner[PATH_MAX];
    if (kind_of(path) == ABSENT) return fail(err, KLEIN_E_MODEL_MISSING, "%s: %s", path, strerror(errno));
    if (kind_of(path) == A_FILE) { /* one of another kind is the mistake, not what is missing beside it */
        struct st_file *f;
        TRY(st_open(path, &f, err));
        st_close(f);
    }
    TRY(join(inner, path, checkpoint_part_name(which), err));
    if (kind_of(inner) == A_FOLDER) path = inner; /* a whole model was given: its part is meant */
    copy_path(p->path, path);
    p->overridden = 1;
    return KLEIN_OK;
}

static enum klein_status find_places(const struct checkpoint_paths *paths, struct places *w,
                                     struct klein_error *err)
{
    const char *overrides[PART_COUNT] = {paths->transformer, paths->text_encoder, paths->vae},
               *model = paths->model;
    enum kind kind = model ? kind_of(model) : ABSENT;
    if (model && kind == ABSENT) return fail(err, KLEIN_E_MODEL_MISSING, "%s: %s", model, strerror(errno));
    if (kind == A_FOLDER) copy_path(w->root, model);
    if (kind == A_FILE) {
        parent(w->root, model);
        if (!paths->transformer) overrides[PART_TRANSFORMER] = model;
    }
    for (int i = 0; i < PART_COUNT; i++) {
        struct place *p = &w->part[i];
        const char *name = checkpoint_part_name((enum checkpoint_part)i);
        if (overrides[i])
            TRY(place_override(p, (enum checkpoint_part)i, overrides[i], err));
        else if (!model)
            return fail(err, KLEIN_E_USAGE, "neither a model nor a %s was given", name);
        else
            TRY(join(p->path, w->root, name, err));
        if (kind_of(p->path) == ABSENT)
            return fail(err, KLEIN_E_MODEL_MISSING,
                        "%s: %s; give a model folder that has it, or the %s by itself", p->path,
                        strerror(errno), name);
        p->is_file = kind_of(p->path) == A_FILE;
    }
    if (!model) parent(w->root, w->part[PART_TRANSFORMER].path);
    return KLEIN_OK;
}

static int has_tokenizer(const char *folder)
{
    char file[PATH_MAX + 16];
    snprintf(file, sizeof file, "%s/tokenizer.json", folder);
    if (kind_of(file) == A_FILE) return 1;
    snprintf(file, sizeof file, "%s/vocab.json", folder);
    if (kind_of(file) != A_FILE) return 0;
    snprintf(file, sizeof file, "%s/merges.txt", folder);
    return kind_of(file) == A_FILE;
}

/* Inside or beside a text encoder folder that was given by itself, else in the model's folder, else around a
 * text encoder file. */
static enum klein_status find_tokenizer(struct checkpoint *c, const struct places *w, struct klein_error *err)
{
    const struct place *text = &w->part[PART_TEXT];
    char around[PATH_MAX], above[PATH_MAX], candidate[PATH_MAX];
    if (text->is_file)
        parent(around, text->path);
    else
        copy_path(around, text->path);
    parent(above, around);
    int own_first = text->overridden && !text->is_file;
    const char *folders[3] = {own_first ? around : w->root, own_first ? above : around,
                              own_first ? w->root : above};
    for (int i = 0; i < 3; i++) {
        TRY(join(candidate, folders[i], "tokenizer", err));
        const char *found = has_tokenizer(candidate)    ? candidate
                            : has_tokenizer(folders[i]) ? folders[i]
                                                        : NULL;
        if (!found) continue;
        c->tokenizer_dir = strdup(found);
        return c->tokenizer_dir ? KLEIN_OK : fail(err, KLEIN_E_NO_MEMORY, "%s: no memory", found);
    }
    return KLEIN_OK;
}

/* --- what they are
 * ------------------------------------------------------------------------------------------ */

static enum klein_status read_config(struct model_config *c, enum config_file which, const char *folder,
                                     const char *name, int required, struct klein_error *err)
{
    char path[PATH_MAX], *text;
    size_t n;
    TRY(join(path, folder, name, err));
    if (!required && kind_of(path) == ABSENT) return KLEIN_OK;
    TRY(js_file(path, CONFIG_JSON_MAX, &text, &n, err));
    enum klein_status status = config_parse(which, text, n, path, c, err);
    free(text);
    return status;
}

/* -1 if the name of a single file does not tell. */
static int distilled_by_name(const char *file)
{
    const char *name = base_name(file);
    if (strcasestr(name, "base")) return 0;
    return strcasestr(name, "klein") ? 1 : -1;
}

/* Distilled or base is a fact about the transformer: the caller's word counts, else the name of a single
 * file, else klein.json and model_index.json beside the transformer. */
static enum klein_status find_variant(struct model_config *c, const struct checkpoint_paths *paths,
                                      const struct places *w, struct klein_error *err)
{
    const struct place *t = &w->part[PART_TRANSFORMER];
    char folder[PATH_MAX];
    copy_path(folder, w->root);
    if (t->overridden) parent(folder, t->path);
    if (paths->model && paths->transformer) { /* klein.json spoke of the model's own transformer */
        c->distilled = -1;
        memset(c->license, 0, sizeof c->license);
    }
    if (t->is_file && distilled_by_name(t->path) >= 0) c->distilled = distilled_by_name(t->path);
    TRY(read_config(c, CONFIG_MODEL_INDEX, folder, "model_index.json", 0, err));
    const int said = c->distilled;
    if (paths->variant) c->distilled = paths->variant == 1;
    if (said >= 0 && said != c->distilled) { /* klein.json's are of the other variant: this one's own */
        c->default_steps = 0;
        c->default_guidance = 0;
    }
    if (c->distilled < 0)
        return fail(
            err, KLEIN_E_USAGE,
            "%s: nothing tells whether this transformer is distilled or base; say --distilled or --base",
            t->path);
    return KLEIN_OK;
}

static enum klein_status read_configs(struct model_config *c, const struct checkpoint_paths *paths,
                                      const struct places *w, struct klein_error *err)
{
    static const enum config_file files[PART_COUNT] = {CONFIG_TRANSFORMER, CONFIG_TEXT, CONFIG_VAE};
    config_defaults(c);
    TRY(read_config(c, CONFIG_KLEIN, w->root, "klein.json", 0, err));
    TRY(find_variant(c, paths, w, err));
    TRY(read_config(c, CONFIG_SCHEDULER, w->root, "scheduler/scheduler_config.json", 0, err));
    for (int i = 0; i < PART_COUNT; i++)
        if (!w->part[i].is_file) TRY(read_config(c, files[i], w->part[i].path, "config.json", 1, err));
    return KLEIN_OK;
}

/* --- opening
 * ------------------------------------------------------------------------------------------------ */

static enum klein_status open_part(struct checkpoint *c, enum checkpoint_part which, const struct places *w,
                                   struct klein_error *err)
{
    struct part *p = &c->part[which];
    const struct place *place = &w->part[which];
    const struct text_config *t = &c->config.text;
    int text_layers = t->outputs[t->n_outputs - 1];
    TRY(part_open(p, place->path, text_layers, err));
    TRY(part_sort(p, err));
    if (which == PART_VAE && place->overridden && !part_find(p, "encoder.conv_in.weight")) {
        /* A decoder by itself: the encoder and the statistics are the model's. */
        char rest[PATH_MAX];
        TRY(join(rest, w->root, checkpoint_part_name(PART_VAE), err));
        if (kind_of(rest) == ABSENT)
            return fail(err, KLEIN_E_MODEL_MISSING, "%s: has no encoder, and there is no %s to take it from",
                        place->path, rest);
        TRY(part_open(p, rest, text_layers, err));
        TRY(part_sort(p, err));
    }
    if (place->is_file) return infer_config(p, &c->config, err);
    char file[PATH_MAX];
    TRY(join(file, place->path, "config.json", err));
    return infer_compare(p, &c->config, file, err);
}

static enum klein_status open_checkpoint(struct checkpoint *c, const struct checkpoint_paths *paths,
                                         struct places *w, struct klein_error *err)
{
    TRY(find_places(paths, w, err));
    TRY(read_configs(&c->config, paths, w, err));
    for (int i = 0; i < PART_COUNT; i++) TRY(open_part(c, (enum checkpoint_part)i, w, err));
    TRY(find_tokenizer(c, w, err));
    return config_finish(&c->config, paths->model ? paths->model : w->part[PART_TRANSFORMER].path, err);
}

enum klein_status checkpoint_open(const struct checkpoint_paths *paths, struct checkpoint **out,
                                  struct klein_error *err)
{
    struct checkpoint *c;
    struct places *w = calloc(1, sizeof *w);
    *out = NULL;
    if (!w || checkpoint_new(&(struct model_config){0}, &c, err)) {
        free(w);
        return fail(err, KLEIN_E_NO_MEMORY, "no memory for a checkpoint");
    }
    enum klein_status status = open_checkpoint(c, paths, w, err);
    free(w);
    if (status) {
        checkpoint_close(c);
        return status;
    }
    *out = c;
    return KLEIN_OK;
}
