#include "parts.h"
#include "json.h"
#include "layout.h"

#include <limits.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>

#define INDEX_MAX (64 << 20) /* bytes */

static enum klein_status no_memory(const struct part *p, struct klein_error *err)
{
    return fail(err, KLEIN_E_NO_MEMORY, "%s: no memory for its list of tensors", p->path);
}

static int by_name(const void *a, const void *b)
{
    return strcmp(((const struct source *)a)->name, ((const struct source *)b)->name);
}

static struct source *find_among(struct source *sorted, int n, const char *name)
{
    struct source key = {.name = (char *)name};
    return n ? bsearch(&key, sorted, (size_t)n, sizeof key, by_name) : NULL;
}

static enum klein_status add_source(struct part *p, struct source s, const char *name,
                                    struct klein_error *err)
{
    if (p->sources == p->capacity) {
        int capacity = p->capacity ? 2 * p->capacity : 256;
        struct source *more = realloc(p->source, (size_t)capacity * sizeof *more);
        if (!more) return no_memory(p, err);
        p->source = more;
        p->capacity = capacity;
    }
    s.name = strdup(name);
    if (!s.name) return no_memory(p, err);
    p->source[p->sources++] = s;
    return KLEIN_OK;
}

/* Is a name wanted of a further file, when `had` (sorted) sources are there already? */
static int wanted(const struct part *p, const char *name, int had)
{
    return !had || (strncmp(name, "decoder.", 8) && strncmp(name, "post_quant_conv.", 16) &&
                    !find_among(p->source, had, name));
}

static enum klein_status add_file(struct part *p, const char *path, int had, struct klein_error *err)
{
    struct st_file **more = realloc(p->file, (size_t)(p->files + 1) * sizeof(*more));
    if (!more) return no_memory(p, err);
    p->file = more;
    TRY(st_open(path, &p->file[p->files], err));
    const struct st_file *f = p->file[p->files++];
    for (int i = 0; i < st_count(f); i++) {
        const struct st_tensor *t = st_get(f, i);
        struct source s = {.file = f, .tensor = t, .pieces = 1};
        struct layout layout;
        int translated = layout_translate(p->which, t->name, &layout);
        if (translated) s.pieces = layout.n;
        if (s.pieces > 1 && (t->ndim < 1 || t->shape[0] % s.pieces))
            return fail(err, KLEIN_E_MODEL_CORRUPT, "%s: tensor %.120s: its rows do not divide by %d", path,
                        t->name, s.pieces);
        for (; s.piece < s.pieces; s.piece++) {
            const char *name = translated ? layout.name[s.piece] : t->name;
            if (wanted(p, name, had)) TRY(add_source(p, s, name, err));
        }
    }
    return KLEIN_OK;
}

static int already_open(const struct part *p, const char *path)
{
    for (int i = 0; i < p->files; i++)
        if (!strcmp(st_path(p->file[i]), path)) return i + 1;
    return 0;
}

/* {"weight_map": {tensor: file in the same folder}} */
static enum klein_status add_shards(struct part *p, const char *folder, const char *index, const json_t *root,
                                    int text_layers, int had, struct klein_error *err)
{
    const char *tensor;
    json_t *value, *map = json_object_get(root, "weight_map");
    if (!json_object_size(map))
        return fail(err, KLEIN_E_MODEL_CORRUPT, "%s: \"weight_map\" is missing or empty", index);
    json_object_foreach(map, tensor, value)
    {
        const char *shard = json_string_value(value);
        if (!shard || !*shard || *shard == '.' || strpbrk(shard, "/\\"))
            return fail(err, KLEIN_E_MODEL_CORRUPT, "%s: tensor %.120s is not in a file of this folder",
                        index, tensor);
        if (layout_ignored(p->which, tensor, text_layers)) continue;
        char path[PATH_MAX];
        if (snprintf(path, sizeof path, "%s/%s", folder, shard) >= (int)sizeof path)
            return fail(err, KLEIN_E_MODEL_CORRUPT, "%s: tensor %.120s is in a file with an endless name",
                        index, tensor);
        if (!already_open(p, path)) TRY(add_file(p, path, had, err));
        if (!st_find(p->file[already_open(p, path) - 1], tensor))
            return fail(err, KLEIN_E_MODEL_CORRUPT, "%s: tensor %.120s is not in %.120s", index, tensor,
                        shard);
    }
    return KLEIN_OK;
}

enum klein_status part_open(struct part *p, const char *path, int text_layers, struct klein_error *err)
{
    static const char *const families[] = {"diffusion_pytorch_model", "model"};
    struct stat st;
    int had = p->sources;
    if (!p->path && !(p->path = strdup(path))) return fail(err, KLEIN_E_NO_MEMORY, "%s: no memory", path);
    if (stat(path, &st) || !S_ISDIR(st.st_mode))
        return add_file(p, path, had, err); /* which says what is wrong */
    for (int i = 0; i < 2; i++) {
        char file[PATH_MAX];
        snprintf(file, sizeof file, "%s/%s.safetensors", path, families[i]);
        if (!stat(file, &st)) return add_file(p, file, had, err);
        snprintf(file, sizeof file, "%s/%s.safetensors.index.json", path, families[i]);
        if (stat(file, &st)) continue;
        json_t *root;
        TRY(js_read(file, INDEX_MAX, 8, &root, err));
        enum klein_status status = add_shards(p, path, file, root, text_layers, had, err);
        json_decref(root);
        return status;
    }
    return fail(err, KLEIN_E_MODEL_MISSING,
                "%s: has neither diffusion_pytorch_model.safetensors nor model.safetensors nor an index of "
                "their shards",
                path);
}

enum klein_status part_sort(struct part *p, struct klein_error *err)
{
    if (p->sources) qsort(p->source, (size_t)p->sources, sizeof *p->source, by_name);
    for (int i = 1; i < p->sources; i++) {
        const struct source *a = &p->source[i - 1], *b = &p->source[i];
        if (!strcmp(a->name, b->name))
            return fail(err, KLEIN_E_MODEL_CORRUPT,
                        "%s: tensor %.120s is there twice: %.120s in %s, %.120s in %s", p->path, a->name,
                        a->tensor->name, st_path(a->file), b->tensor->name, st_path(b->file));
    }
    return KLEIN_OK;
}

void part_close(struct part *p)
{
    for (int i = 0; i < p->sources; i++) free(p->source[i].name);
    for (int i = 0; i < p->files; i++) st_close(p->file[i]);
    free(p->source);
    free(p->file);
    free(p->path);
    *p = (struct part){.which = p->which};
}

struct source *part_find(const struct part *p, const char *name)
{
    return find_among(p->source, p->sources, name);
}

int64_t source_dim(const struct source *s, int d)
{
    return s->tensor->shape[d] / (d == 0 ? s->pieces : 1);
}
