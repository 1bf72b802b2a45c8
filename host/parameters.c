#include "parameters.h"

#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/* "Name: value"; a value with a comma, colon or quote in it is quoted as a JSON string, as readers of this
 * format expect. */
static void put(FILE *out, const char *name, const char *value)
{
    fprintf(out, ", %s: ", name);
    if (!strpbrk(value, ",:\"\n\\")) {
        fputs(value, out);
        return;
    }
    fputc('"', out);
    for (; *value; value++) {
        if (*value == '"' || *value == '\\') fputc('\\', out);
        if (*value == '\n')
            fputs("\\n", out);
        else
            fputc(*value, out);
    }
    fputc('"', out);
}

char *parameters_text(const struct parameters *p)
{
    char *text = NULL;
    size_t size;
    FILE *out = open_memstream(&text, &size);
    if (!out) return NULL;
    fprintf(out, "%s\nSteps: %d, Sampler: Euler, CFG scale: %g, Seed: %" PRIu64 ", Size: %dx%d", p->prompt,
            p->steps, (double)p->guidance, p->seed, p->width, p->height);
    put(out, "Model", p->model);
    if (p->references) fprintf(out, ", References: %d", p->references);
    put(out, "Noise", p->noise);
    put(out, "Device", p->device);
    put(out, "Dtype", p->dtype);
    if (strcmp(p->precision, p->dtype)) put(out, "Precision", p->precision);
    fprintf(out, ", Latents: %016" PRIx64 ", Version: klein %s", p->latent_hash, KLEIN_VERSION);
    int failed = ferror(out);
    if (fclose(out) || failed) {
        free(text);
        return NULL;
    }
    return text;
}
