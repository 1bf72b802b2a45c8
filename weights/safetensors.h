/* safetensors.h: reader by mmap that trusts nothing, and a writer that renames into place. */
#ifndef KLEIN_SAFETENSORS_H
#define KLEIN_SAFETENSORS_H

#include "../base/dtype.h"
#include "../base/error.h"

struct st_tensor {
    const char *name;
    enum dtype dtype; /* DT_NONE: a type we do not know; `dtype_text` has its name */
    char dtype_text[16];
    int ndim;
    int64_t shape[8];
    const void *data;
    size_t bytes;
};

struct st_file;

/* Maps `path` and checks the header: size, JSON (depth, duplicate keys), every offset in range, no overlap,
 * no gap, bytes = product of the shape * element size without overflow. Errors: KLEIN_E_MODEL_MISSING /
 * KLEIN_E_MODEL_CORRUPT with path and tensor. Data pages are not read. Data may be misaligned. The file must not
 * be cut short while it is open. */
enum klein_status st_open(const char *path, struct st_file **out, struct klein_error *err);
/* The same over bytes in memory that outlive the file (fuzzing, tests). */
enum klein_status st_open_memory(const void *bytes, size_t n, const char *name, struct st_file **out,
                                 struct klein_error *err);
void st_close(struct st_file *f); /* NULL allowed */

int st_count(const struct st_file *f);
const struct st_tensor *st_get(const struct st_file *f, int i);             /* in file order */
const struct st_tensor *st_find(const struct st_file *f, const char *name); /* NULL if absent */
const char *st_metadata(const struct st_file *f, const char *key);          /* from __metadata__, or NULL */
const char *st_path(const struct st_file *f);
size_t st_size(const struct st_file *f);     /* bytes of the whole file */
void st_drop_pages(const struct st_file *f); /* madvise: pages are read again from the file when touched */

/* Writer: begin with the list of tensors (name, dtype, ndim and shape count; `bytes` is not read), which lays
 * out the data in that order: tensors of larger elements first keep all data aligned. Either every tensor has
 * `data`, then begin writes it, or none, then st_write_data writes it in order, in pieces of any size. The
 * file appears under its name on finish, not before. After a failure of st_write_data: st_write_abort.
 * Errors: KLEIN_E_OUTPUT, KLEIN_E_NO_MEMORY. */
struct st_writer;
enum klein_status st_write_begin(const char *path, const struct st_tensor *tensors, int n,
                                 const char *const *metadata /* key, value, ..., NULL */,
                                 struct st_writer **out, struct klein_error *err);
enum klein_status st_write_data(struct st_writer *w, const void *data, size_t bytes,
                                struct klein_error *err);                        /* sequential */
enum klein_status st_write_finish(struct st_writer *w, struct klein_error *err); /* frees w in every case */
void st_write_abort(struct st_writer *w); /* removes the temporary file */

#endif
