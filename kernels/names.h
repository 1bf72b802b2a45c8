/* names.h: lists of kernels' names with commas between, as KLEIN_GEMM and KLEIN_CONV take them. */
#ifndef KLEIN_NAMES_H
#define KLEIN_NAMES_H

#include "../base/error.h"

int names_have(const char *list, const char *name);

/* Every name of the list is one of name(0), name(1), ... (NULL past the end); else KLEIN_E_INPUT that lists these. `variable` is what the
 * list came from. */
enum klein_status names_check(const char *variable, const char *list, const char *(*name)(int i),
                              struct klein_error *err);

#endif
