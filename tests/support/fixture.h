/* fixture.h: a golden model bound and ready to run on a device, and golden files by tensor name. */
#ifndef KLEIN_TEST_FIXTURE_H
#define KLEIN_TEST_FIXTURE_H

#include "support.h"

#include "../../engine/klein.h"
#include "../../engine/model.h"
#include "../../weights/safetensors.h"

struct fixture {
    struct checkpoint *checkpoint;
    struct model *model;
    struct device *device;
    struct arena arena;
    struct run r;
};

/* `model`: a folder (GOLDEN_MODEL("tiny")); device: "ref", "cpu"; act: dtype of activations. */
void fixture_open(struct fixture *f, const char *model, const char *device, enum dtype act);
void fixture_close(struct fixture *f);

/* The golden model "tiny" by the public API, on a device as test_device names it; base: as a base model. */
struct klein *open_tiny(const char *device, enum klein_dtype dtype, int threads, int base);

/* A contiguous device tensor in the arena with the values of a host f32 tensor. */
struct tensor fixture_f32(struct fixture *f, struct tensor host);

/* t as F32 on the host; the caller frees its ptr. Asserts that the run did not fail. */
struct tensor fixture_download(struct fixture *f, struct tensor t);

/* Asserts that the run did not fail, and that t, converted to f32, is within `tolerance` relative L2 of the
 * golden. */
void fixture_compare(struct fixture *f, struct tensor t, struct st_file *golden, const char *name,
                     double tolerance);

/* Tensor `name` of a golden file as a 2-D view (rows = first dimension, cols = the others; a vector is one
 * row). */
struct tensor golden(struct st_file *file, const char *name);
struct st_file *golden_open(const char *path);

/* Rows 0, every, 2 every, ... of t as a view ("NAME@11"). */
struct tensor every_row(struct tensor t, int every);

#endif
