#include "rope.h"

#include <math.h>
#include <stdlib.h>

/* Without contents: on a device that does not compute, or where they are already. */
static struct rope rope_shape(struct run *r, int n, int room, int half)
{
    struct tensor c = run_tensor(r, DT_F32, room, half), s = run_tensor(r, DT_F32, room, half);
    return (struct rope){tensor_rows(c, 0, n), tensor_rows(s, 0, n)};
}

/* Fills both tables from `angle(row, j)` values in a host buffer of f64 angles. */
static struct rope rope_upload(struct run *r, const double *angles, int n, int room, int half)
{
    struct rope rope = rope_shape(r, n, room, half);
    size_t count = (size_t)n * (size_t)half;
    float *table = calloc(count, sizeof *table);
    if (!table) {
        fail(&r->err, KLEIN_E_NO_MEMORY, "no memory for RoPE tables of %d tokens", n);
        return rope;
    }
    for (size_t i = 0; i < count; i++) table[i] = (float)cos(angles[i]);
    run_fill(r, rope.cos, table);
    for (size_t i = 0; i < count; i++) table[i] = (float)sin(angles[i]);
    run_fill(r, rope.sin, table);
    free(table);
    return rope;
}

struct rope rope_1d(struct run *r, int n, int head_dim, double theta)
{
    struct rope_span span = {.rows = 1, .cols = n, .text = 1, .n = n};
    return rope_4d(r, &span, 1, n, (int[4]){0, 0, 0, head_dim}, theta);
}

struct rope rope_4d(struct run *r, const struct rope_span *spans, int n_spans, int room, const int *axis_dims,
                    double theta)
{
    int n = 0, half = (axis_dims[0] + axis_dims[1] + axis_dims[2] + axis_dims[3]) / 2;
    for (int i = 0; i < n_spans; i++) n += spans[i].n;
    if (!r->dev->computes || r->skip) return rope_shape(r, n, room, half);

    double *angles = malloc((size_t)n * (size_t)half * sizeof *angles);
    if (!angles) {
        fail(&r->err, KLEIN_E_NO_MEMORY, "no memory for RoPE tables of %d tokens", n);
        return (struct rope){{0}, {0}};
    }
    double frequency[4][256], *out = angles;
    CHECK(half <= 256);
    for (int axis = 0; axis < 4; axis++)
        for (int k = 0; k < axis_dims[axis] / 2; k++)
            frequency[axis][k] = pow(theta, -2.0 * k / axis_dims[axis]);
    for (int i = 0; i < n_spans; i++)
        for (int token = spans[i].first; token < spans[i].first + spans[i].n; token++) {
            int y = token / spans[i].cols, x = token % spans[i].cols;
            int text[4] = {0, 0, 0, x}, image[4] = {spans[i].t, y, x, 0};
            const int *position = spans[i].text ? text : image;
            for (int axis = 0; axis < 4; axis++)
                for (int k = 0; k < axis_dims[axis] / 2; k++) *out++ = position[axis] * frequency[axis][k];
        }
    struct rope rope = rope_upload(r, angles, n, room, half);
    free(angles);
    return rope;
}
