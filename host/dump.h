/* dump.h: --dump: the intermediate tensors of a request as a safetensors file. Tensors wait in an unnamed
 * temporary file beside it (they may be larger than memory), so nothing is left behind when the request
 * fails. */
#ifndef KLEIN_DUMP_H
#define KLEIN_DUMP_H

#include "../engine/klein.h"

struct dump;

enum klein_status dump_begin(const char *path, struct dump **out, struct klein_error *err);
/* For klein_request.tap, with the struct dump as its user. A failure is kept for dump_finish. */
void dump_tap(void *user, const struct klein_tap *tap);
/* Writes the file in one step (temporary file and rename). metadata: key, value, ..., NULL. Frees d in every
 * case. */
enum klein_status dump_finish(struct dump *d, const char *const *metadata, struct klein_error *err);
void dump_abort(struct dump *d); /* NULL allowed; leaves no file */

#endif
