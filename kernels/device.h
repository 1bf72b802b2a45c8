/* device.h: a backend instance: memory and the op table. Open one per context; devices share nothing. */
#ifndef KLEIN_DEVICE_H
#define KLEIN_DEVICE_H

#include "ops.h"

struct device_options {
    int threads; /* host threads for "cpu" and "ref"; 0: all that the process may use */
};

/* Base of every backend's own struct (which has it as its first member). */
struct device {
    const struct op_table *ops;
    const char *name;      /* "cpu" */
    char description[128]; /* "AMD EPYC, 2 threads, AVX-512 BF16" */
    enum dtype act;        /* fastest activation dtype it supports: what --dtype auto takes */
    int computes;          /* 0: the null device; nothing may read its memory */
    int threads;
    void (*close)(struct device *dev);
    /* Device memory, ARENA_ALIGN-aligned, contents undefined (tests fill it with NaN). NULL when there is
     * none. */
    void *(*alloc)(struct device *dev, size_t bytes);
    void (*free)(struct device *dev, void *memory, size_t bytes);
    enum klein_status (*upload)(struct device *dev, void *to, const void *host, size_t bytes,
                                struct klein_error *err);
    enum klein_status (*download)(struct device *dev, void *host, const void *from, size_t bytes,
                                  struct klein_error *err);
};

/* Opens backend `name`: "ref", "null", "cpu". Unknown: KLEIN_E_NO_DEVICE naming what exists. */
enum klein_status device_open(const char *name, const struct device_options *options, struct device **out,
                              struct klein_error *err);
void device_close(struct device *dev); /* NULL allowed */

/* Row i of the list of backends this build has, for `klein devices`; NULL past the end. */
const char *device_backend(int i);

#endif
