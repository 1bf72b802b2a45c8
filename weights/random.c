#include "random.h"

#include <math.h>
#include <string.h>

#define TABLE                                                                                                \
    4096 /* values to draw from; even, so that they come in pairs +-x and their mean is exactly 0            \
          */
#define BLOCK 65536

/* splitmix64's finaliser: a bijection of 64 bits in which every output bit depends on every input bit. */
static uint64_t mix(uint64_t x)
{
    x += 0x9e3779b97f4a7c15u;
    x = (x ^ x >> 30) * 0xbf58476d1ce4e5b9u;
    x = (x ^ x >> 27) * 0x94d049bb133111ebu;
    return x ^ x >> 31;
}

/* TABLE numbers of mean 0, variance 1 and nearly normal distribution: sums of 8 bytes. */
static void unit_normals(float table[TABLE])
{
    double squares = 0;
    for (int i = 0; i < TABLE / 2; i++) {
        uint64_t h = mix((uint64_t)i);
        double sum = -8 * 127.5;
        for (int b = 0; b < 8; b++) sum += (double)(h >> 8 * b & 255);
        table[i] = (float)sum;
        squares += sum * sum;
    }
    float scale = (float)(1 / sqrt(squares / (TABLE / 2)));
    for (int i = 0; i < TABLE / 2; i++) {
        table[i] *= scale;
        table[TABLE / 2 + i] = -table[i];
    }
}

static int ends_with(const char *name, const char *suffix)
{
    size_t n = strlen(name), m = strlen(suffix);
    return n >= m && !strcmp(name + n - m, suffix);
}

/* What the elements of this tensor are drawn from. */
static void fill_table(float table[TABLE], const char *name, int ndim, const int64_t *shape)
{
    float mean = 0, deviation;
    if (ends_with(name, "running_var")) {
        for (int i = 0; i < TABLE; i++) table[i] = 2.91f + 0.56f * (float)i / (TABLE - 1);
        return;
    }
    if (ends_with(name, "running_mean")) {
        deviation = 0.05f;
    } else if (ndim == 1 && ends_with(name, ".weight")) {
        mean = 1;
        deviation = 0.1f;
    } else if (ndim == 1) {
        deviation = 0.02f;
    } else {
        double fan_in = 1;
        for (int d = 1; d < ndim; d++) fan_in *= (double)shape[d];
        deviation = (float)(1 / sqrt(fan_in));
    }
    unit_normals(table);
    for (int i = 0; i < TABLE; i++) table[i] = mean + deviation * table[i];
}

static uint64_t key_of(uint64_t seed, enum checkpoint_part part, const char *name)
{
    uint64_t key = mix(seed ^ mix((uint64_t)part));
    for (; *name; name++) key = mix(key ^ (unsigned char)*name);
    return key;
}

/* Four elements come from one hash of the tensor's key and their index / 4. */
#define DRAW(type, table)                                                                                    \
    for (size_t i = from; i < to; i += 4) {                                                                  \
        uint64_t h = mix(key + (first + i) / 4);                                                             \
        for (size_t j = 0; j < 4; j++, h >>= 16)                                                             \
            if (i + j < to) ((type *)out)[i + j] = table[h % TABLE];                                         \
    }

void random_values(void *out, enum dtype dtype, size_t first, size_t n, uint64_t seed,
                   enum checkpoint_part part, const char *name, int ndim, const int64_t *shape)
{
    CHECK(first % 4 == 0 && (dtype == DT_BF16 || dtype == DT_F32));
    float floats[TABLE];
    bf16 halves[TABLE];
    fill_table(floats, name, ndim, shape);
    dtype_convert(halves, DT_BF16, floats, DT_F32, TABLE);
    uint64_t key = key_of(seed, part, name);
    if (ends_with(name, "running_mean")) { /* near-equal in fours, like the real ones */
        for (size_t i = 0; i < n; i++)
            f32_store(out, dtype, i,
                      floats[mix(key + (first + i) / 4) % TABLE] +
                          0.002f * ((float)((first + i) % 4) - 1.5f));
        return;
    }
    size_t blocks = (n + BLOCK - 1) / BLOCK;
#pragma omp parallel for schedule(static) if (blocks > 1)
    for (size_t b = 0; b < blocks; b++) {
        size_t from = b * BLOCK, to = from + BLOCK < n ? from + BLOCK : n;
        if (dtype == DT_BF16) {
            DRAW(bf16, halves)
        } else {
            DRAW(float, floats)
        }
    }
}
