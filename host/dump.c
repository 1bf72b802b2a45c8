#include "dump.h"

#include "../base/error.h"
#include "../weights/safetensors.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

struct dump {
    char *path;
    FILE *spool; /* the data of all tensors, one after the other */
    struct st_tensor *tensors;
    int n, capacity;
    struct klein_error err;
};

enum klein_status dump_begin(const char *path, struct dump **out, struct klein_error *err)
{
    struct dump *d = calloc(1, sizeof *d);
    if (!d || !(d->path = malloc(strlen(path) + 16))) {
        dump_abort(d);
        return fail(err, KLEIN_E_NO_MEMORY, "no memory for --dump");
    }
    sprintf(d->path, "%s.XXXXXX", path);
    int fd = mkstemp(d->path);
    int saved = errno;
    if (fd >= 0) {
        unlink(d->path);
        d->spool = fdopen(fd, "w+b");
    }
    d->path[strlen(path)] = 0;
    if (!d->spool) {
        dump_abort(d);
        return fail(err, KLEIN_E_OUTPUT, "%s: cannot write beside it: %s", path, strerror(saved));
    }
    *out = d;
    return KLEIN_OK;
}

static enum klein_status add(struct dump *d, const struct klein_tap *tap, struct klein_error *err)
{
    if (d->n == d->capacity) {
        int capacity = d->capacity ? 2 * d->capacity : 64;
        struct st_tensor *grown = realloc(d->tensors, (size_t)capacity * sizeof *grown);
        if (!grown) return fail(err, KLEIN_E_NO_MEMORY, "%s: no memory for \"%s\"", d->path, tap->name);
        d->tensors = grown;
        d->capacity = capacity;
    }
    struct st_tensor t = {
        .name = strdup(tap->name), .dtype = tap->is_int32 ? DT_I32 : DT_F32, .ndim = tap->ndim, .bytes = 4};
    if (!t.name) return fail(err, KLEIN_E_NO_MEMORY, "%s: no memory for \"%s\"", d->path, tap->name);
    for (int i = 0; i < tap->ndim; i++) {
        t.shape[i] = tap->shape[i];
        t.bytes *= (size_t)tap->shape[i];
    }
    d->tensors[d->n++] = t;
    if (fwrite(tap->data, 1, t.bytes, d->spool) != t.bytes)
        return fail(err, KLEIN_E_OUTPUT, "%s: cannot write \"%s\": %s", d->path, tap->name, strerror(errno));
    return KLEIN_OK;
}

void dump_tap(void *user, const struct klein_tap *tap)
{
    struct dump *d = user;
    if (!d->err.status) add(d, tap, &d->err);
}

static enum klein_status write_tensors(struct dump *d, struct st_writer *w, struct klein_error *err)
{
    enum { CHUNK = 1 << 20 };
    char *chunk = malloc(CHUNK);
    if (!chunk) return fail(err, KLEIN_E_NO_MEMORY, "%s: no memory to write it", d->path);
    rewind(d->spool);
    for (int i = 0; i < d->n && !err->status; i++)
        for (size_t left = d->tensors[i].bytes; left && !err->status;) {
            size_t n = left < CHUNK ? left : CHUNK;
            if (fread(chunk, 1, n, d->spool) != n)
                fail(err, KLEIN_E_OUTPUT, "%s: cannot read back \"%s\"", d->path, d->tensors[i].name);
            else
                st_write_data(w, chunk, n, err);
            left -= n;
        }
    free(chunk);
    return err->status;
}

enum klein_status dump_finish(struct dump *d, const char *const *metadata, struct klein_error *err)
{
    struct st_writer *w;
    enum klein_status status = d->err.status;
    if (status) {
        fail(err, status, "%s", d->err.message);
    } else if (fflush(d->spool)) {
        status = fail(err, KLEIN_E_OUTPUT, "%s: %s", d->path, strerror(errno));
    } else if (!(status = st_write_begin(d->path, d->tensors, d->n, metadata, &w, err))) {
        status = write_tensors(d, w, err);
        if (status)
            st_write_abort(w);
        else
            status = st_write_finish(w, err);
    }
    dump_abort(d);
    return status;
}

void dump_abort(struct dump *d)
{
    if (!d) return;
    for (int i = 0; i < d->n; i++) free((char *)d->tensors[i].name);
    if (d->spool) fclose(d->spool);
    free(d->tensors);
    free(d->path);
    free(d);
}
