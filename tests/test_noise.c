#include "../engine/noise.h"
#include "../weights/safetensors.h"
#include "support/support.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static struct klein_error err;

/* Every tensor "f32.SEED.N" and "bf16.SEED.N", to the bit. */
Test(noise, is_torchs)
{
    struct st_file *file;
    OK(st_open(GOLDEN("noise.safetensors"), &file, &err));
    int compared = 0;
    for (int i = 0; i < st_count(file); i++) {
        const struct st_tensor *t = st_get(file, i);
        char type[8];
        unsigned long long seed;
        size_t n;
        cr_assert(sscanf(t->name, "%7[^.].%llu.%zu", type, &seed, &n) == 3, "%s", t->name);
        if (!strcmp(type, "hash")) continue;
        int is_bf16 = !strcmp(type, "bf16");
        cr_assert(t->dtype == (is_bf16 ? DT_BF16 : DT_F32) && t->shape[0] == (int64_t)n, "%s", t->name);
        float *x = malloc(n * sizeof *x);
        noise_torch(x, n, seed, is_bf16 ? KLEIN_NOISE_TORCH_BF16 : KLEIN_NOISE_TORCH);
        for (size_t k = 0; k < n; k++)
            cr_assert(f32_bits(x[k]) == f32_bits(f32_load(t->data, t->dtype, k)),
                      "%s: element %zu is %.9g, not %.9g", t->name, k, (double)x[k],
                      (double)f32_load(t->data, t->dtype, k));
        free(x);
        compared++;
    }
    cr_assert(compared == 9 * 7 * 2, "%d tensors", compared);
    st_close(file);
}

/* The latents of 1024x1024, by the hash of their bytes. */
Test(noise, of_a_whole_picture)
{
    enum { N = 128 * 64 * 64 };
    struct st_file *file;
    OK(st_open(GOLDEN("noise.safetensors"), &file, &err));
    const struct st_tensor *hash = st_find(file, "hash.42.524288");
    cr_assert(hash && hash->dtype == DT_I64);
    float *x = malloc(N * sizeof *x);
    noise_torch(x, N, 42, KLEIN_NOISE_TORCH);
    int64_t expected;
    memcpy(&expected, hash->data, sizeof expected);
    cr_assert(fnv1a(x, N * sizeof *x) == (uint64_t)expected);
    free(x);
    st_close(file);
}

Test(noise, takes_the_low_32_bits_of_the_seed)
{
    float a[64], b[64];
    noise_torch(a, 64, 5, KLEIN_NOISE_TORCH);
    noise_torch(b, 64, 5 + (7ull << 32), KLEIN_NOISE_TORCH);
    cr_assert(!memcmp(a, b, sizeof a));
    noise_torch(b, 64, 6, KLEIN_NOISE_TORCH);
    cr_assert(memcmp(a, b, sizeof a));
}
