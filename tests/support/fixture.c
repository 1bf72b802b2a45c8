#include "fixture.h"

#include <math.h>
#include <stdlib.h>

#define ARENA_BYTES ((size_t)256 << 20)

void fixture_open(struct fixture *f, const char *model, const char *device, enum dtype act)
{
    struct klein_error err;
    *f = (struct fixture){0};
    OK(checkpoint_open(&(struct checkpoint_paths){.model = model}, &f->checkpoint, &err));
    f->model = malloc(sizeof *f->model);
    cr_assert(f->model);
    OK(device_open(test_device(device), &(struct device_options){.threads = 2}, &f->device, &err));
    OK(model_place(f->model, f->checkpoint, f->device, act, 0, &err));
    void *memory = f->device->alloc(f->device, ARENA_BYTES);
    cr_assert(memory);
    arena_over(&f->arena, memory, ARENA_BYTES);
    f->r = (struct run){.dev = f->device, .act = act, .arena = &f->arena};
}

void fixture_close(struct fixture *f)
{
    f->device->free(f->device, f->arena.base, f->arena.size);
    device_close(f->device);
    checkpoint_close(f->checkpoint);
    free(f->model);
}

struct tensor fixture_f32(struct fixture *f, struct tensor host)
{
    return run_upload(&f->r, DT_F32, host.rows, host.cols, host.ptr);
}

struct tensor fixture_download(struct fixture *f, struct tensor t)
{
    cr_assert(run_ok(&f->r), "%s", f->r.err.message);
    struct tensor got = tensor_of(NULL, DT_F32, t.rows, t.cols);
    char *raw = malloc((size_t)t.rows * (size_t)t.ld * dtype_size(t.dtype));
    got.ptr = malloc((size_t)t.rows * (size_t)t.cols * sizeof(float));
    cr_assert(raw && got.ptr);
    struct klein_error err;
    OK(f->device->download(f->device, raw, t.ptr,
                           ((size_t)(t.rows - 1) * (size_t)t.ld + (size_t)t.cols) * dtype_size(t.dtype),
                           &err));
    struct tensor host = t;
    host.ptr = raw;
    for (int r = 0; r < t.rows; r++)
        for (int c = 0; c < t.cols; c++) tensor_set(got, r, c, tensor_get(host, r, c));
    free(raw);
    return got;
}

void fixture_compare(struct fixture *f, struct tensor t, struct st_file *file, const char *name,
                     double tolerance)
{
    struct tensor got = fixture_download(f, t);
    double error = relative_l2(got, golden(file, name));
    cr_assert(error <= tolerance, "%s on %s: relative L2 %.3g, allowed %.3g", name, f->device->name, error,
              tolerance);
    free(got.ptr);
}

struct st_file *golden_open(const char *path)
{
    struct st_file *file;
    struct klein_error err;
    OK(st_open(path, &file, &err));
    return file;
}

struct tensor golden(struct st_file *file, const char *name)
{
    const struct st_tensor *t = st_find(file, name);
    cr_assert(t, "%s has no tensor %s", st_path(file), name);
    int rows = t->ndim > 1 ? (int)t->shape[0] : 1, cols = t->ndim == 1 ? (int)t->shape[0] : 1;
    for (int d = 1; d < t->ndim; d++) cols *= (int)t->shape[d];
    return tensor_of((void *)t->data, t->dtype, rows, cols);
}

struct tensor every_row(struct tensor t, int every)
{
    t.rows = (t.rows + every - 1) / every;
    t.ld *= every;
    return t;
}

struct klein *open_tiny(const char *device, enum klein_dtype dtype, int threads, int base)
{
    struct klein_error err;
    struct klein *k;
    struct klein_open_options o = {.size = sizeof o,
                                   .model = GOLDEN_MODEL("tiny"),
                                   .device = test_device(device),
                                   .dtype = dtype,
                                   .threads = threads,
                                   .variant = base ? KLEIN_VARIANT_BASE : KLEIN_VARIANT_AUTO};
    OK(klein_open(&o, &k, &err));
    return k;
}
