#include "parts.h"
#include "layout.h"
#include "random.h"

#include <limits.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>

/* Addresses of tensors that have no memory: not canonical on x86-64, so that using one faults at once. */
#define FAKE_ADDRESS 0x0200000000000000u
#define FAKE_ALIGN   256

const char *checkpoint_part_name(enum checkpoint_part part)
{
    static const char *const names[PART_COUNT] = {"transformer", "text_encoder", "vae"};
    return (unsigned)part < PART_COUNT ? names[part] : "?";
}

enum klein_status checkpoint_new(const struct model_config *config, struct checkpoint **out,
                                 struct klein_error *err)
{
    *out = calloc(1, sizeof **out);
    if (!*out) return fail(err, KLEIN_E_NO_MEMORY, "no memory for a checkpoint");
    for (int p = 0; p < PART_COUNT; p++) (*out)->part[p].which = (enum checkpoint_part)p;
    (*out)->config = *config;
    return KLEIN_OK;
}

enum klein_status checkpoint_shapes(const struct model_config *config, struct checkpoint **out,
                                    struct klein_error *err)
{
    TRY(checkpoint_new(config, out, err));
    (*out)->kind = SHAPES_ONLY;
    (*out)->dtype = DT_BF16;
    (*out)->next_address = FAKE_ADDRESS;
    return KLEIN_OK;
}

enum klein_status checkpoint_random(const struct model_config *config, enum dtype dtype, uint64_t seed,
                                    struct checkpoint **out, struct klein_error *err)
{
    CHECK(dtype == DT_BF16 || dtype == DT_F32);
    TRY(checkpoint_new(config, out, err));
    (*out)->kind = RANDOM;
    (*out)->dtype = dtype;
    (*out)->seed = seed;
    return KLEIN_OK;
}

void checkpoint_close(struct checkpoint *c)
{
    if (!c) return;
    for (int i = 0; i < c->n_asked; i++) {
        if (c->asked[i].memory) munmap(c->asked[i].memory, c->asked[i].bytes);
        free((char *)c->asked[i].entry.name);
        free(c->asked[i].scale);
    }
    for (int p = 0; p < PART_COUNT; p++) part_close(&c->part[p]);
    free(c->asked);
    free(c->tokenizer_dir);
    free(c);
}

const struct model_config *checkpoint_config(const struct checkpoint *c)
{
    return &c->config;
}

const char *checkpoint_tokenizer_dir(const struct checkpoint *c)
{
    return c->tokenizer_dir;
}

const char *checkpoint_license(const struct checkpoint *c)
{
    return config_license(&c->config);
}

/* --- one tensor ------------------------------------------------------------------------------------------
 */

static uint64_t hash_of(const char *name) /* FNV-1a */
{
    uint64_t h = 0xcbf29ce484222325u;
    for (; *name; name++) h = (h ^ (unsigned char)*name) * 0x100000001b3u;
    return h;
}

/* NULL after a failure. */
static struct asked *append_asked(struct checkpoint *c, enum checkpoint_part part, const char *name, int ndim,
                                  const int64_t *shape, struct klein_error *err)
{
    if (c->n_asked == c->asked_capacity) {
        int capacity = c->asked_capacity ? 2 * c->asked_capacity : 256;
        struct asked *more = realloc(c->asked, (size_t)capacity * sizeof *more);
        if (more) {
            c->asked = more;
            c->asked_capacity = capacity;
        }
    }
    char *copy = c->n_asked < c->asked_capacity ? strdup(name) : NULL;
    if (!copy) {
        fail(err, KLEIN_E_NO_MEMORY, "no memory for the list of tensors");
        return NULL;
    }
    struct asked *a = &c->asked[c->n_asked++];
    *a = (struct asked){.entry = {.part = part, .name = copy, .ndim = ndim}, .hash = hash_of(name)};
    memcpy(a->entry.shape, shape, (size_t)ndim * sizeof *shape);
    return a;
}

static const char *shape_text(char out[96], int ndim, const int64_t *shape, int64_t rows)
{
    int n = snprintf(out, 96, "[");
    for (int i = 0; i < ndim && n < 96; i++)
        n += snprintf(out + n, (size_t)(96 - n), "%s%lld", i ? ", " : "", (long long)(i ? shape[i] : rows));
    if (n < 96) snprintf(out + n, (size_t)(96 - n), "]");
    return out;
}

/* Trailing ones do not count: a 1x1 convolution is a matrix. */
static int same_shape(const struct source *s, int ndim, const int64_t *shape)
{
    for (int d = 0; d < ndim || d < s->tensor->ndim; d++)
        if ((d < ndim ? shape[d] : 1) != (d < s->tensor->ndim ? source_dim(s, d) : 1)) return 0;
    return 1;
}

/* The tensor `suffix` of the layer whose weight is `weight`, marked as used; NULL if there is none. */
static const struct st_tensor *take_beside(struct part *p, const struct source *weight, const char *suffix)
{
    char name[256];
    const char *all = weight->tensor->name, *end = strrchr(all, '.');
    int n = end ? snprintf(name, sizeof name, "%.*s.%s", (int)(end - all), all, suffix) : 0;
    if (n <= 0 || n >= (int)sizeof name) return NULL;
    const struct st_tensor *t = st_find(weight->file, name);
    for (int i = 0; t && i < p->sources; i++)
        if (p->source[i].tensor == t) p->source[i].used = 1;
    return t;
}

/* The scales of the rows of s: one number for the whole matrix or one per row. input_scale is for an x that is quantised by one number
 * known beforehand; klein quantises each row of x by its own. source: model 2.3 */
static enum klein_status take_scales(struct part *p, const struct source *s, struct asked *a,
                                     struct klein_error *err)
{
    const struct st_tensor *scale = take_beside(p, s, "weight_scale");
    const char *file = st_path(s->file), *name = s->tensor->name;
    size_t rows = (size_t)a->entry.shape[0], n = scale ? scale->bytes / sizeof(float) : 0;
    take_beside(p, s, "input_scale");
    if (!scale)
        return fail(err, KLEIN_E_UNSUPPORTED,
                    "%s: tensor %.120s is F8_E4M3 without a weight_scale beside it; use the BF16 checkpoint",
                    file, name);
    if (scale->dtype != DT_F32 || (n != 1 && n != rows * (size_t)s->pieces) || (uintptr_t)scale->data % 4)
        return fail(err, KLEIN_E_UNSUPPORTED,
                    "%s: tensor %.120s: not one F32 number, nor one for each row of the weight", file,
                    scale->name);
    const float *from = (const float *)scale->data + (n == 1 ? 0 : rows * (size_t)s->piece);
    a->scale = malloc(rows * sizeof *a->scale);
    if (!a->scale) return fail(err, KLEIN_E_NO_MEMORY, "no memory for the scales of %s", name);
    for (size_t r = 0; r < rows; r++) {
        a->scale[r] = from[n == 1 ? 0 : r];
        if (!(a->scale[r] > 0 && isfinite(a->scale[r])))
            return fail(err, KLEIN_E_MODEL_CORRUPT, "%s: tensor %.120s has a scale of %g", file, scale->name,
                        (double)a->scale[r]);
    }
    return KLEIN_OK;
}

static int is_weight_type(enum checkpoint_part part, int ndim, enum dtype type)
{
    if (type == DT_F8E4M3) return part == PART_TRANSFORMER && ndim == 2;
    return type == DT_F32 || type == DT_BF16 || type == DT_F16;
}

static enum klein_status take_from_file(struct checkpoint *c, struct asked *a, const void **data,
                                        struct klein_error *err)
{
    const enum checkpoint_part part = a->entry.part;
    const char *name = a->entry.name;
    const int ndim = a->entry.ndim;
    const int64_t *shape = a->entry.shape;
    struct part *p = &c->part[part];
    struct source *s = part_find(p, name);
    char wanted[96], found[96], alias[LAYOUT_NAME_MAX + 16] = "";
    shape_text(wanted, ndim, shape, shape[0]);
    if (!s)
        return fail(err, KLEIN_E_MODEL_CORRUPT,
                    "%s: tensor %s %s is missing; the files are incomplete or of another model", p->path,
                    name, wanted);
    CHECK(!s->used); /* the model asks for a tensor once */
    s->used = 1;
    const struct st_tensor *t = s->tensor;
    const char *file = st_path(s->file);
    if (strcmp(t->name, name)) snprintf(alias, sizeof alias, " (for %s)", name);
    if (!is_weight_type(part, ndim, t->dtype))
        return fail(err, KLEIN_E_UNSUPPORTED,
                    "%s: tensor %.120s%s is %s; quantised checkpoints of this kind are not supported, use "
                    "the BF16 one",
                    file, t->name, alias, t->dtype_text);
    if (!same_shape(s, ndim, shape))
        return fail(err, KLEIN_E_MODEL_CORRUPT, "%s: tensor %.120s%s is %s%s, %s is expected", file, t->name,
                    alias, shape_text(found, t->ndim, t->shape, t->ndim ? source_dim(s, 0) : 1),
                    s->pieces > 1 ? " per piece" : "", wanted);
    if ((uintptr_t)t->data % dtype_size(t->dtype))
        return fail(err, KLEIN_E_UNSUPPORTED,
                    "%s: tensor %.120s does not begin at a multiple of its element size; load and save the "
                    "file again with a recent "
                    "safetensors",
                    file, t->name);
    *data = (const char *)t->data + t->bytes / (size_t)s->pieces * (size_t)s->piece;
    a->entry.dtype = t->dtype;
    return t->dtype == DT_F8E4M3 ? take_scales(p, s, a, err) : KLEIN_OK;
}

static enum klein_status make_random(struct checkpoint *c, struct asked *a, size_t elements,
                                     struct klein_error *err)
{
    size_t bytes = elements * dtype_size(c->dtype);
    void *memory = mmap(NULL, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (memory == MAP_FAILED)
        return fail(err, KLEIN_E_NO_MEMORY, "no memory for %s (%zu bytes)", a->entry.name, bytes);
    madvise(memory, bytes, MADV_HUGEPAGE); /* best effort */
    a->memory = memory;
    a->bytes = bytes;
    random_values(memory, c->dtype, 0, elements, c->seed, a->entry.part, a->entry.name, a->entry.ndim,
                  a->entry.shape);
    return KLEIN_OK;
}

/* The tensor of that name if checkpoint_ask_again was called since it was asked for; else NULL. */
static struct asked *asked_before(struct checkpoint *c, enum checkpoint_part part, const char *name)
{
    const uint64_t hash = hash_of(name);
    for (struct asked *a = c->asked; a < c->asked + c->n_asked; a++)
        if (a->again && a->hash == hash && a->entry.part == part && !strcmp(a->entry.name, name)) return a;
    return NULL;
}

static enum klein_status hand_out(struct checkpoint *c, const struct asked *a, int rows, int cols,
                                  struct tensor *out, struct klein_error *err)
{
    const struct checkpoint_entry *e = &a->entry;
    /* what is mapped read-only is never written */
    *out = tensor_of((void *)a->data, e->dtype, rows, cols);
    out->scale = a->scale;
    return c->place ? c->place(c->place_user, e->part, e->name, e->ndim, e->shape, out, err) : KLEIN_OK;
}

enum klein_status checkpoint_tensor(struct checkpoint *c, enum checkpoint_part part, const char *name,
                                    int ndim, const int64_t *shape, struct tensor *out,
                                    struct klein_error *err)
{
    if (err->status) return err->status;
    size_t elements = 1;
    CHECK(ndim >= 1 && ndim <= 4);
    for (int d = 0; d < ndim; d++) {
        CHECK(shape[d] >= 1);
        if (__builtin_mul_overflow(elements, (size_t)shape[d], &elements) || elements > SIZE_MAX / 8)
            return fail(err, KLEIN_E_MODEL_CORRUPT, "%s: tensor %s would have an absurd size",
                        c->part[part].path, name);
    }
    size_t rows = ndim == 1 ? 1 : (size_t)shape[0], cols = elements / rows;
    if (rows > INT_MAX || cols > INT_MAX)
        return fail(err, KLEIN_E_UNSUPPORTED, "tensor %s: %zu x %zu is too large for this build", name, rows,
                    cols);

    struct asked *a = asked_before(c, part, name);
    if (a) {
        a->again = 0;
        return hand_out(c, a, (int)rows, (int)cols, out, err);
    }
    const void *data = NULL;
    a = append_asked(c, part, name, ndim, shape, err);
    if (!a) return err->status;
    a->entry.dtype = c->dtype;
    if (c->kind == FROM_FILES) {
        TRY(take_from_file(c, a, &data, err));
    } else {
        for (const struct asked *b = c->asked; b < a; b++) /* the model asks for a tensor once */
            CHECK(b->hash != a->hash || b->entry.part != part || strcmp(b->entry.name, name));
        if (c->kind == RANDOM) TRY(make_random(c, a, elements, err));
        data = c->kind == RANDOM ? a->memory : (void *)c->next_address;
        c->next_address += (elements * dtype_size(c->dtype) + FAKE_ALIGN - 1) / FAKE_ALIGN * FAKE_ALIGN;
    }
    a->data = data;
    return hand_out(c, a, (int)rows, (int)cols, out, err);
}

void checkpoint_ask_again(struct checkpoint *c, enum checkpoint_part part)
{
    for (int i = 0; i < c->n_asked; i++) c->asked[i].again |= c->asked[i].entry.part == part;
}

void checkpoint_place(struct checkpoint *c, checkpoint_placer *place, void *user)
{
    c->place = place;
    c->place_user = user;
}

/* --- all of them -----------------------------------------------------------------------------------------
 */

enum klein_status checkpoint_all_used(struct checkpoint *c, enum checkpoint_part part,
                                      struct klein_error *err)
{
    if (err->status) return err->status;
    const struct part *p = &c->part[part];
    const struct text_config *t = &c->config.text;
    char names[3 * 130] = "";
    int left = 0;
    for (int i = 0; i < p->sources; i++) {
        const struct source *s = &p->source[i];
        if (s->used || layout_ignored(part, s->name, t->outputs[t->n_outputs - 1])) continue;
        if (left++ < 3)
            snprintf(names + strlen(names), sizeof names - strlen(names), " %.120s", s->tensor->name);
    }
    if (left)
        return fail(err, KLEIN_E_MODEL_CORRUPT,
                    "%s: %d tensors that this model does not have:%s%s; is it another model, or an adapter?",
                    p->path, left, names, left > 3 ? " ..." : "");
    return KLEIN_OK;
}

void checkpoint_drop_pages(struct checkpoint *c, enum checkpoint_part part)
{
    for (int i = 0; i < c->part[part].files; i++) st_drop_pages(c->part[part].file[i]);
}

int checkpoint_entries(const struct checkpoint *c, int i, struct checkpoint_entry *out)
{
    if (i < 0 || i >= c->n_asked) return 0;
    *out = c->asked[i].entry;
    return 1;
}
