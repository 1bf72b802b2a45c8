#include "make_random.h"
#include "layout.h"
#include "make_random_json.h"
#include "random.h"
#include "safetensors.h"

#include <dirent.h>
#include <errno.h>
#include <ftw.h>
#include <limits.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/statvfs.h>
#include <unistd.h>

#define CHUNK (4u << 20) /* elements written at a time */

/* One tensor of a file: its values are those of `pieces` canonical tensors of shape `piece`, one after the
 * other; zeros if none. */
struct item {
    char name[LAYOUT_NAME_MAX], piece_name[2][LAYOUT_NAME_MAX];
    enum dtype dtype;
    int ndim, pieces;
    int64_t shape[4], piece[4];
};

struct maker {
    const struct make_random_options *o;
    struct item *item[PART_COUNT];
    int items[PART_COUNT], capacity[PART_COUNT];
    uint64_t done, total; /* bytes */
    bf16 *buffer;         /* CHUNK elements */
    char temporary[PATH_MAX];
};

static size_t elements(int ndim, const int64_t *shape)
{
    size_t n = 1;
    for (int d = 0; d < ndim; d++) n *= (size_t)shape[d];
    return n;
}

static uint64_t bytes_of(const struct item *t)
{
    return elements(t->ndim, t->shape) * dtype_size(t->dtype);
}

/* --- which tensors
 * ------------------------------------------------------------------------------------------ */

static enum klein_status add_item(struct maker *m, enum checkpoint_part part, const char *name,
                                  enum dtype dtype, int ndim, const int64_t *shape, struct item **out,
                                  struct klein_error *err)
{
    if (m->items[part] == m->capacity[part]) {
        int capacity = m->capacity[part] ? 2 * m->capacity[part] : 256;
        struct item *more = realloc(m->item[part], (size_t)capacity * sizeof *more);
        if (!more) return fail(err, KLEIN_E_NO_MEMORY, "no memory for a list of %d tensors", capacity);
        m->item[part] = more;
        m->capacity[part] = capacity;
    }
    struct item *t = &m->item[part][m->items[part]++];
    *t = (struct item){.dtype = dtype, .ndim = ndim};
    snprintf(t->name, sizeof t->name, "%s", name);
    if (ndim) memcpy(t->shape, shape, (size_t)ndim * sizeof *shape);
    m->total += bytes_of(t);
    *out = t;
    return KLEIN_OK;
}

/* What the model asks for under one name is one tensor of the file, except the two halves of the final
 * modulation. */
static enum klein_status add_entry(struct maker *m, const struct checkpoint_entry *e, struct klein_error *err)
{
    static const char whole[] = "norm_out.linear.weight";
    struct layout layout;
    struct item *t;
    int64_t shape[4];
    memcpy(shape, e->shape, sizeof shape);
    CHECK(layout_translate(PART_TRANSFORMER, whole, &layout) && layout.n == 2);
    if (e->part == PART_TRANSFORMER && !strcmp(e->name, layout.name[1]))
        return KLEIN_OK; /* written with the first */
    int halves = e->part == PART_TRANSFORMER && !strcmp(e->name, layout.name[0]);
    if (halves) shape[0] *= 2;
    TRY(add_item(m, e->part, halves ? whole : e->name, DT_BF16, e->ndim, shape, &t, err));
    memcpy(t->piece, e->shape, sizeof t->piece);
    t->pieces = 1 + halves;
    for (int i = 0; i < t->pieces; i++)
        snprintf(t->piece_name[i], sizeof t->piece_name[i], "%s", halves ? layout.name[i] : e->name);
    return KLEIN_OK;
}

/* Layers that are never read, like layer 0; the final norm; the output matrix unless it is the embedding. */
static enum klein_status add_unused_text(struct maker *m, struct klein_error *err)
{
    const struct text_config *t = &m->o->config->text;
    int used = m->items[PART_TEXT];
    for (int layer = t->outputs[t->n_outputs - 1]; layer < t->layers; layer++)
        for (int i = 0; i < used; i++) {
            const struct item like = m->item[PART_TEXT][i];
            char name[LAYOUT_NAME_MAX + 16];
            if (layout_index(like.name, "model.layers.") != 0) continue;
            snprintf(name, sizeof name, "model.layers.%d%.100s", layer, like.name + strlen("model.layers.0"));
            struct checkpoint_entry e = {.part = PART_TEXT, .name = name, .ndim = like.ndim};
            memcpy(e.shape, like.shape, sizeof e.shape);
            TRY(add_entry(m, &e, err));
        }
    TRY(add_entry(m, &(struct checkpoint_entry){PART_TEXT, "model.norm.weight", 1, {t->width}, DT_BF16},
                  err));
    if (t->tied) return KLEIN_OK;
    return add_entry(
        m, &(struct checkpoint_entry){PART_TEXT, "lm_head.weight", 2, {t->vocab, t->width}, DT_BF16}, err);
}

static enum klein_status list_tensors(struct maker *m,
                                      enum klein_status (*bind)(struct checkpoint *, struct klein_error *),
                                      struct klein_error *err)
{
    struct checkpoint *shapes;
    struct checkpoint_entry e;
    struct item *counter;
    TRY(checkpoint_shapes(m->o->config, &shapes, err));
    enum klein_status status = bind(shapes, err);
    /* I64 before BF16 keeps everything aligned. */
    if (!status) status = add_item(m, PART_VAE, "bn.num_batches_tracked", DT_I64, 0, NULL, &counter, err);
    for (int i = 0; !status && checkpoint_entries(shapes, i, &e); i++) status = add_entry(m, &e, err);
    if (!status && !m->o->used_only) status = add_unused_text(m, err);
    checkpoint_close(shapes);
    return status;
}

/* --- files
 * -------------------------------------------------------------------------------------------------- */

static enum klein_status write_item(struct maker *m, struct st_writer *w, enum checkpoint_part part,
                                    const struct item *t, struct klein_error *err)
{
    static const char zeros[8];
    if (!t->pieces) return st_write_data(w, zeros, bytes_of(t), err);
    for (int i = 0; i < t->pieces; i++) {
        size_t n = elements(t->ndim, t->piece);
        for (size_t first = 0; first < n; first += CHUNK) {
            size_t count = n - first < CHUNK ? n - first : CHUNK;
            random_values(m->buffer, DT_BF16, first, count, m->o->seed, part, t->piece_name[i], t->ndim,
                          t->piece);
            TRY(st_write_data(w, m->buffer, count * sizeof(bf16), err));
            m->done += count * sizeof(bf16);
            if (m->o->progress && m->o->progress(m->o->user, m->done, m->total))
                return fail(err, KLEIN_E_CANCELLED, "%s: cancelled", m->o->dir);
        }
    }
    return KLEIN_OK;
}

static enum klein_status write_file(struct maker *m, enum checkpoint_part part, int from, int to,
                                    const char *name, struct klein_error *err)
{
    static const char *const metadata[] = {"format", "pt", NULL};
    char path[PATH_MAX + 256];
    snprintf(path, sizeof path, "%s/%s/%s", m->temporary, checkpoint_part_name(part), name);
    struct st_tensor *tensors = calloc((size_t)(to - from), sizeof *tensors);
    if (!tensors) return fail(err, KLEIN_E_NO_MEMORY, "%s: no memory", path);
    for (int i = from; i < to; i++) {
        const struct item *t = &m->item[part][i];
        tensors[i - from] = (struct st_tensor){.name = t->name, .dtype = t->dtype, .ndim = t->ndim};
        memcpy(tensors[i - from].shape, t->shape, sizeof t->shape);
    }
    struct st_writer *w;
    enum klein_status status = st_write_begin(path, tensors, to - from, metadata, &w, err);
    free(tensors);
    TRY(status);
    for (int i = from; i < to && !status; i++) status = write_item(m, w, part, &m->item[part][i], err);
    if (!status) return st_write_finish(w, err);
    st_write_abort(w);
    return status;
}

/* The item after the last one that fits into a file that begins with item `from`. */
static int shard_end(const struct maker *m, enum checkpoint_part part, int from)
{
    uint64_t limit = m->o->shard_bytes   ? m->o->shard_bytes
                     : part == PART_TEXT ? 5000000000u
                                         : 10000000000u,
             bytes = 0;
    int i = from;
    while (i < m->items[part] && (i == from || bytes + bytes_of(&m->item[part][i]) <= limit))
        bytes += bytes_of(&m->item[part][i++]);
    return i;
}

static enum klein_status write_part(struct maker *m, enum checkpoint_part part, struct klein_error *err)
{
    const char *family = part == PART_TEXT ? "model" : "diffusion_pytorch_model";
    char name[128], folder[PATH_MAX + 32];
    int shards = 0, n = m->items[part];
    uint64_t bytes = 0;
    for (int i = 0; i < n; i = shard_end(m, part, i)) shards++;
    snprintf(name, sizeof name, "%s.safetensors", family);
    if (shards == 1) return write_file(m, part, 0, n, name, err);

    json_t *map = json_object();
    int failed = !map;
    for (int from = 0, shard = 1; from < n; shard++) {
        int to = shard_end(m, part, from);
        snprintf(name, sizeof name, "%s-%05d-of-%05d.safetensors", family, shard, shards);
        for (int i = from; i < to; i++) {
            failed |= json_object_set_new(map, m->item[part][i].name, json_string(name));
            bytes += bytes_of(&m->item[part][i]);
        }
        if (write_file(m, part, from, to, name, err)) {
            json_decref(map);
            return err->status;
        }
        from = to;
    }
    snprintf(folder, sizeof folder, "%s/%s", m->temporary, checkpoint_part_name(part));
    snprintf(name, sizeof name, "%s.safetensors.index.json", family);
    if (failed) {
        json_decref(map);
        map = NULL; /* json_pack then gives NULL too */
    }
    json_t *index =
        json_pack("{s:{s:I}, s:o}", "metadata", "total_size", (json_int_t)bytes, "weight_map", map);
    return make_random_write_json(index, folder, name, err);
}

/* --- the folder
 * --------------------------------------------------------------------------------------------- */

static enum klein_status check_target(const struct maker *m, struct klein_error *err)
{
    const char *dir = m->o->dir;
    DIR *d = opendir(dir);
    if (!d && errno != ENOENT) return fail(err, KLEIN_E_OUTPUT, "%s: %s", dir, strerror(errno));
    int inside = 0;
    for (struct dirent *e; d && (e = readdir(d));)
        inside |= strcmp(e->d_name, ".") && strcmp(e->d_name, "..");
    if (d) closedir(d);
    if (inside)
        return fail(err, KLEIN_E_OUTPUT, "%s: is not empty; give a folder that does not exist yet", dir);

    struct statvfs fs;
    if (statvfs(m->temporary, &fs)) return KLEIN_OK; /* then the writing will tell */
    uint64_t room = (uint64_t)fs.f_bavail * fs.f_frsize;
    if (room < m->total)
        return fail(err, KLEIN_E_OUTPUT, "%s: needs %.2f GB, the disk has room for %.2f GB", dir,
                    (double)m->total / 1e9, (double)room / 1e9);
    return KLEIN_OK;
}

static int remove_entry(const char *path, const struct stat *st, int flag, struct FTW *ftw)
{
    remove(path);
    return 0;
}

static enum klein_status fill_folder(struct maker *m, struct klein_error *err)
{
    static const char *const folders[] = {"scheduler", "tokenizer", "transformer", "text_encoder", "vae"};
    static const char note[] = "Random numbers in the layout of a FLUX.2 [klein] checkpoint, made by `klein "
                               "make-random`: to measure and to "
                               "test. It draws noise.\n";
    char path[PATH_MAX + 64];
    for (size_t i = 0; i < sizeof folders / sizeof *folders; i++) {
        snprintf(path, sizeof path, "%s/%s", m->temporary, folders[i]);
        if (mkdir(path, 0777)) return fail(err, KLEIN_E_OUTPUT, "%s: %s", path, strerror(errno));
    }
    TRY(make_random_configs(m->o->config, m->temporary, err));
    snprintf(path, sizeof path, "%s/tokenizer", m->temporary);
    TRY(make_random_tokenizer(m->o->config, m->o->tokenizer_dir, path, err));
    snprintf(path, sizeof path, "%s/README.md", m->temporary);
    FILE *f = fopen(path, "w");
    int failed = !f || fputs(note, f) < 0;
    if (f) failed |= fclose(f);
    if (failed) return fail(err, KLEIN_E_OUTPUT, "%s: cannot write: %s", path, strerror(errno));
    for (int part = 0; part < PART_COUNT; part++) TRY(write_part(m, (enum checkpoint_part)part, err));
    return KLEIN_OK;
}

static enum klein_status make_folder(struct maker *m, struct klein_error *err)
{
    const char *dir = m->o->dir;
    int n = (int)strlen(dir);
    while (n > 1 && dir[n - 1] == '/') n--;
    if (snprintf(m->temporary, sizeof m->temporary, "%.*s.%ld.tmp", n, dir, (long)getpid()) >=
        (int)sizeof m->temporary - 128)
        return fail(err, KLEIN_E_OUTPUT, "%.200s...: the path is too long", dir);
    if (mkdir(m->temporary, 0777))
        return fail(err, KLEIN_E_OUTPUT, "%s: cannot create: %s", m->temporary, strerror(errno));
    enum klein_status status = check_target(m, err);
    if (!status) status = fill_folder(m, err);
    if (!status && rename(m->temporary, dir))
        status = fail(err, KLEIN_E_OUTPUT, "%s: cannot create: %s", dir, strerror(errno));
    if (status) nftw(m->temporary, remove_entry, 16, FTW_DEPTH | FTW_PHYS);
    return status;
}

enum klein_status make_random(const struct make_random_options *o,
                              enum klein_status (*bind)(struct checkpoint *, struct klein_error *),
                              struct klein_error *err)
{
    struct maker *m = calloc(1, sizeof *m);
    bf16 *buffer = malloc(CHUNK * sizeof *buffer);
    enum klein_status status =
        m && buffer ? KLEIN_OK : fail(err, KLEIN_E_NO_MEMORY, "no memory to write a checkpoint");
    if (!status) {
        m->o = o;
        m->buffer = buffer;
        status = list_tensors(m, bind, err);
    }
    if (!status) status = make_folder(m, err);
    for (int part = 0; m && part < PART_COUNT; part++) free(m->item[part]);
    free(buffer);
    free(m);
    return status;
}
