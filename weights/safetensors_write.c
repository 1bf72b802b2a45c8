#include "safetensors.h"

#include <errno.h>
#include <fcntl.h>
#include <jansson.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

struct st_writer {
    char *path, *temporary;
    int fd;                     /* -1: closed */
    uint64_t expected, written; /* bytes of data */
};

static enum klein_status put(struct st_writer *w, const void *bytes, size_t n, struct klein_error *err)
{
    const char *p = bytes;
    while (n > 0) {
        ssize_t done = write(w->fd, p, n);
        if (done < 0 && errno == EINTR) continue;
        if (done <= 0) return fail(err, KLEIN_E_OUTPUT, "%s: cannot write: %s", w->path, strerror(errno));
        p += done;
        n -= (size_t)done;
    }
    return KLEIN_OK;
}

static uint64_t bytes_of(const struct st_tensor *t)
{
    uint64_t n = dtype_size(t->dtype);
    CHECK(n > 0 && t->ndim >= 0 && t->ndim <= 8);
    for (int i = 0; i < t->ndim; i++) {
        CHECK(t->shape[i] >= 0);
        CHECK(!__builtin_mul_overflow(n, (uint64_t)t->shape[i], &n));
    }
    return n;
}

/* The header's JSON, padded with spaces so that the data begin at a multiple of 8; NULL without memory. */
static char *header_text(const struct st_tensor *tensor, int n, const char *const *metadata)
{
    json_t *header = json_object();
    int failed = !header;
    if (metadata && *metadata) {
        json_t *m = json_object();
        for (; *metadata; metadata += 2)
            failed |= json_object_set_new(m, metadata[0], json_string(metadata[1]));
        failed |= json_object_set_new(header, "__metadata__", m);
    }
    uint64_t offset = 0;
    for (int i = 0; i < n; i++) {
        uint64_t end = offset + bytes_of(&tensor[i]);
        json_t *shape = json_array();
        for (int d = 0; d < tensor[i].ndim; d++)
            failed |= json_array_append_new(shape, json_integer(tensor[i].shape[d]));
        json_t *info = json_pack("{s:s, s:o, s:[I, I]}", "dtype", dtype_name(tensor[i].dtype), "shape", shape,
                                 "data_offsets", (json_int_t)offset, (json_int_t)end);
        CHECK(!json_object_get(header, tensor[i].name));
        failed |= json_object_set_new(header, tensor[i].name, info);
        offset = end;
    }
    char *text = failed ? NULL : json_dumps(header, JSON_COMPACT);
    json_decref(header);
    if (!text) return NULL;
    size_t length = strlen(text), padded = (length + 7) / 8 * 8;
    char *out = malloc(padded + 1);
    if (out) {
        memcpy(out, text, length);
        memset(out + length, ' ', padded - length);
        out[padded] = 0;
    }
    free(text);
    return out;
}

/* A new file beside `path`, with the permissions of any new file (mkstemp's would be 0600). */
static enum klein_status create_temporary(struct st_writer *w, struct klein_error *err)
{
    for (int i = 0; i < 1000; i++) {
        sprintf(w->temporary, "%s.%ld-%d.tmp", w->path, (long)getpid(), i);
        w->fd = open(w->temporary, O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC, 0666);
        if (w->fd >= 0) return KLEIN_OK;
        if (errno != EEXIST) break;
    }
    *w->temporary = 0; /* that one is not ours to remove */
    return fail(err, KLEIN_E_OUTPUT, "%s: cannot create: %s", w->path, strerror(errno));
}

static enum klein_status begin(struct st_writer *w, const struct st_tensor *tensor, int n,
                               const char *const *metadata, struct klein_error *err)
{
    char *header = header_text(tensor, n, metadata);
    if (!header) return fail(err, KLEIN_E_NO_MEMORY, "%s: no memory for its header", w->path);
    unsigned char size[8];
    for (int i = 0; i < 8; i++) size[i] = (unsigned char)((uint64_t)strlen(header) >> 8 * i);
    enum klein_status status = create_temporary(w, err);
    if (!status) status = put(w, size, sizeof size, err);
    if (!status) status = put(w, header, strlen(header), err);
    free(header);
    TRY(status);
    int with_data = 0;
    for (int i = 0; i < n; i++) {
        w->expected += bytes_of(&tensor[i]);
        with_data |= tensor[i].data != NULL;
    }
    for (int i = 0; with_data && i < n; i++) {
        CHECK(tensor[i].data || !bytes_of(&tensor[i])); /* all or none have data */
        TRY(st_write_data(w, tensor[i].data, bytes_of(&tensor[i]), err));
    }
    return KLEIN_OK;
}

enum klein_status st_write_begin(const char *path, const struct st_tensor *tensors, int n,
                                 const char *const *metadata, struct st_writer **out, struct klein_error *err)
{
    *out = NULL;
    struct st_writer *w = calloc(1, sizeof *w);
    if (!w) return fail(err, KLEIN_E_NO_MEMORY, "%s: no memory", path);
    w->fd = -1;
    w->path = strdup(path);
    w->temporary = calloc(1, strlen(path) + 40);
    enum klein_status status = w->path && w->temporary ? begin(w, tensors, n, metadata, err)
                                                       : fail(err, KLEIN_E_NO_MEMORY, "%s: no memory", path);
    if (status) {
        st_write_abort(w);
        return status;
    }
    *out = w;
    return KLEIN_OK;
}

enum klein_status st_write_data(struct st_writer *w, const void *data, size_t bytes, struct klein_error *err)
{
    CHECK(bytes <= w->expected - w->written);
    w->written += bytes;
    return put(w, data, bytes, err);
}

enum klein_status st_write_finish(struct st_writer *w, struct klein_error *err)
{
    CHECK(w->written == w->expected);
    int failed = close(w->fd);
    w->fd = -1;
    if (failed || rename(w->temporary, w->path)) {
        fail(err, KLEIN_E_OUTPUT, "%s: cannot write: %s", w->path, strerror(errno));
        st_write_abort(w);
        return err->status;
    }
    *w->temporary = 0; /* nothing to remove */
    st_write_abort(w);
    return KLEIN_OK;
}

void st_write_abort(struct st_writer *w)
{
    if (!w) return;
    if (w->fd >= 0) close(w->fd);
    if (w->temporary && *w->temporary) unlink(w->temporary);
    free(w->temporary);
    free(w->path);
    free(w);
}
