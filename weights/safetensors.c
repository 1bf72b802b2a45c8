/* The file: u64 little-endian n, n bytes of JSON, then the data. JSON: {"name": {"dtype", "shape",
 * "data_offsets": [begin, end)}, ...,
 * "__metadata__": {string: string}}; offsets count from the first byte of the data.     source:
 * huggingface/safetensors README */
#include "safetensors.h"
#include "json.h"

#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#define HEADER_MAX   100000000u /* bytes; the format's own limit */
#define HEADER_DEPTH 3          /* file, tensor, list */

struct st_file {
    char *path;
    const char *base; /* the whole file */
    size_t size;
    int mapped;               /* base is ours to unmap */
    json_t *header;           /* owns the names and the metadata */
    struct st_tensor *tensor; /* by offset */
    const struct st_tensor **by_name;
    int n;
};

static enum dtype dtype_of_text(const char *text)
{
    for (int t = DT_NONE + 1; t < DT_COUNT; t++)
        if (!strcmp(text, dtype_name((enum dtype)t))) return (enum dtype)t;
    return DT_NONE;
}

static int printable(const char *name)
{
    for (; *name; name++)
        if ((unsigned char)*name < 0x20 || *name == 0x7f) return 0;
    return 1;
}

/* One list of non-negative integers, at most max of them; -1 otherwise. */
static int integers(const json_t *list, int64_t *out, int max)
{
    if (!json_is_array(list) || json_array_size(list) > (size_t)max) return -1;
    int n = (int)json_array_size(list);
    for (int i = 0; i < n; i++) {
        const json_t *v = json_array_get(list, (size_t)i);
        if (!json_is_integer(v) || json_integer_value(v) < 0) return -1;
        out[i] = json_integer_value(v);
    }
    return n;
}

static enum klein_status read_tensor(const struct st_file *f, const char *name, const json_t *info,
                                     const char *data, size_t data_size, struct st_tensor *t,
                                     struct klein_error *err)
{
    if (!*name || !printable(name))
        return fail(err, KLEIN_E_MODEL_CORRUPT, "%s: a tensor name is empty or has control characters",
                    f->path);
#define CORRUPT(format, ...)                                                                                 \
    return fail(err, KLEIN_E_MODEL_CORRUPT, "%s: tensor %.120s: " format, f->path, name, ##__VA_ARGS__)
    const char *text = json_string_value(json_object_get(info, "dtype"));
    if (!json_is_object(info)) CORRUPT("its entry is not an object");
    if (!text || !printable(text)) CORRUPT("dtype is missing or not a string");
    t->name = name;
    t->dtype = dtype_of_text(text);
    strncpy(t->dtype_text, text, sizeof t->dtype_text - 1);
    t->ndim = integers(json_object_get(info, "shape"), t->shape, (int)(sizeof t->shape / sizeof *t->shape));
    if (t->ndim < 0) CORRUPT("shape is not a list of at most 8 sizes");
    int64_t range[2], elements = 1, bytes;
    if (integers(json_object_get(info, "data_offsets"), range, 2) != 2)
        CORRUPT("data_offsets is not [begin, end]");
    if (range[0] > range[1]) CORRUPT("data_offsets end before they begin");
    if ((uint64_t)range[1] > data_size)
        CORRUPT("data ends at byte %lld of %zu; the file is truncated or damaged", (long long)range[1],
                data_size);
    int overflow = 0;
    for (int i = 0; i < t->ndim; i++) overflow |= __builtin_mul_overflow(elements, t->shape[i], &elements);
    overflow |= __builtin_mul_overflow(elements, (int64_t)dtype_size(t->dtype), &bytes);
    if (overflow) CORRUPT("its shape has more elements than can be counted");
    if (t->dtype != DT_NONE && bytes != range[1] - range[0])
        CORRUPT("%lld bytes of data, its shape and dtype need %lld", (long long)(range[1] - range[0]),
                (long long)bytes);
    t->data = data + range[0];
    t->bytes = (size_t)(range[1] - range[0]);
    return KLEIN_OK;
#undef CORRUPT
}

static int by_data(const void *a, const void *b)
{
    const struct st_tensor *x = a, *y = b;
    if (x->data != y->data) return (const char *)x->data < (const char *)y->data ? -1 : 1;
    return x->bytes < y->bytes ? -1 : x->bytes > y->bytes;
}

static int by_name(const void *a, const void *b)
{
    const struct st_tensor *const *x = a, *const *y = b;
    return strcmp((*x)->name, (*y)->name);
}

/* In order of offsets every tensor must begin where the one before ended. */
static enum klein_status check_tiling(const struct st_file *f, const char *data, size_t data_size,
                                      struct klein_error *err)
{
    const char *end = data;
    for (int i = 0; i < f->n; i++) {
        const struct st_tensor *t = &f->tensor[i];
        if ((const char *)t->data != end)
            return fail(err, KLEIN_E_MODEL_CORRUPT, "%s: tensor %.120s: its data %s", f->path, t->name,
                        (const char *)t->data < end ? "overlaps another tensor's"
                                                    : "comes after bytes that belong to no tensor");
        end += t->bytes;
    }
    if (end != data + data_size)
        return fail(err, KLEIN_E_MODEL_CORRUPT, "%s: %zu bytes after the last tensor belong to none", f->path,
                    (size_t)(data + data_size - end));
    return KLEIN_OK;
}

static enum klein_status check_metadata(const struct st_file *f, json_t *metadata, struct klein_error *err)
{
    const char *key;
    json_t *value;
    if (!json_is_object(metadata))
        return fail(err, KLEIN_E_MODEL_CORRUPT, "%s: __metadata__ is not an object", f->path);
    json_object_foreach(metadata, key, value) if (!json_is_string(value)) return fail(
        err, KLEIN_E_MODEL_CORRUPT, "%s: __metadata__ has a value that is not a string", f->path);
    return KLEIN_OK;
}

static enum klein_status read_header(struct st_file *f, struct klein_error *err)
{
    uint64_t header = 0;
    if (f->size < 8)
        return fail(err, KLEIN_E_MODEL_CORRUPT, "%s: %zu bytes, too short for a safetensors file", f->path,
                    f->size);
    for (int i = 7; i >= 0; i--) header = header << 8 | (unsigned char)f->base[i];
    if (header > HEADER_MAX || header > f->size - 8)
        return fail(
            err, KLEIN_E_MODEL_CORRUPT,
            "%s: says that its header has %llu bytes, the file has %zu: truncated or not a safetensors file",
            f->path, (unsigned long long)header, f->size);
    TRY(js_parse(f->base + 8, header, HEADER_DEPTH, f->path, &f->header, err));

    const char *data = f->base + 8 + header, *name;
    size_t data_size = f->size - 8 - header;
    json_t *info;
    size_t most = json_object_size(f->header);
    f->tensor = calloc(most + 1, sizeof *f->tensor);
    f->by_name = calloc(most + 1, sizeof(*f->by_name));
    if (!f->tensor || !f->by_name)
        return fail(err, KLEIN_E_NO_MEMORY, "%s: no memory for %zu tensors", f->path, most);
    json_object_foreach(f->header, name, info)
    {
        if (!strcmp(name, "__metadata__"))
            TRY(check_metadata(f, info, err));
        else
            TRY(read_tensor(f, name, info, data, data_size, &f->tensor[f->n++], err));
    }
    qsort(f->tensor, (size_t)f->n, sizeof *f->tensor, by_data);
    for (int i = 0; i < f->n; i++) f->by_name[i] = &f->tensor[i];
    qsort(f->by_name, (size_t)f->n, sizeof *f->by_name, by_name);
    return check_tiling(f, data, data_size, err);
}

static enum klein_status map_file(struct st_file *f, struct klein_error *err)
{
    int fd = open(f->path, O_RDONLY | O_CLOEXEC | O_NONBLOCK); /* O_NONBLOCK: a FIFO must not hang us */
    if (fd < 0) return fail(err, KLEIN_E_MODEL_MISSING, "%s: %s", f->path, strerror(errno));
    struct stat st;
    if (fstat(fd, &st) || !S_ISREG(st.st_mode)) {
        close(fd);
        return fail(err, KLEIN_E_MODEL_CORRUPT, "%s: not a regular file", f->path);
    }
    f->size = (size_t)st.st_size;
    void *base = f->size ? mmap(NULL, f->size, PROT_READ, MAP_SHARED, fd, 0) : NULL;
    int error = errno;
    close(fd);
    if (base == MAP_FAILED)
        return fail(err, KLEIN_E_NO_MEMORY, "%s: cannot be mapped: %s", f->path, strerror(error));
    f->base = base;
    f->mapped = base != NULL;
    return KLEIN_OK;
}

static enum klein_status open_file(const char *path, const void *bytes, size_t n, struct st_file **out,
                                   struct klein_error *err)
{
    *out = NULL;
    struct st_file *f = calloc(1, sizeof *f);
    char *copy = strdup(path);
    if (!f || !copy) {
        free(f);
        free(copy);
        return fail(err, KLEIN_E_NO_MEMORY, "%s: no memory", path);
    }
    *f = (struct st_file){.path = copy, .base = bytes, .size = n};
    enum klein_status status = bytes ? KLEIN_OK : map_file(f, err);
    if (!status) status = read_header(f, err);
    if (status) {
        st_close(f);
        return status;
    }
    *out = f;
    return KLEIN_OK;
}

enum klein_status st_open(const char *path, struct st_file **out, struct klein_error *err)
{
    return open_file(path, NULL, 0, out, err);
}

enum klein_status st_open_memory(const void *bytes, size_t n, const char *name, struct st_file **out,
                                 struct klein_error *err)
{
    return open_file(name, bytes ? bytes : "", bytes ? n : 0, out, err);
}

void st_close(struct st_file *f)
{
    if (!f) return;
    if (f->mapped) munmap((void *)f->base, f->size);
    json_decref(f->header);
    free(f->tensor);
    free(f->by_name);
    free(f->path);
    free(f);
}

int st_count(const struct st_file *f)
{
    return f->n;
}

const struct st_tensor *st_get(const struct st_file *f, int i)
{
    CHECK(i >= 0 && i < f->n);
    return &f->tensor[i];
}

const struct st_tensor *st_find(const struct st_file *f, const char *name)
{
    const struct st_tensor key = {.name = name}, *wanted = &key;
    const struct st_tensor **found = bsearch(&wanted, f->by_name, (size_t)f->n, sizeof *f->by_name, by_name);
    return found ? *found : NULL;
}

const char *st_metadata(const struct st_file *f, const char *key)
{
    return json_string_value(json_object_get(json_object_get(f->header, "__metadata__"), key));
}

const char *st_path(const struct st_file *f)
{
    return f->path;
}

size_t st_size(const struct st_file *f)
{
    return f->size;
}

void st_drop_pages(const struct st_file *f)
{
    if (f->mapped) madvise((void *)f->base, f->size, MADV_DONTNEED);
}
