/* What nvcc makes of each function in ptx_*.h: the text of the emitted PTX, as tests/ptx/emit_*.cu expect it. Needs nvcc at build time. */
#include "support/support.h"

#include <ctype.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static char *read_text(const char *path)
{
    FILE *f = fopen(path, "rb");
    if (!f) return NULL;
    size_t size = 0, got;
    char *text = NULL;
    do {
        text = realloc(text, size + 65537);
        got = fread(text + size, 1, 65536, f);
        size += got;
    } while (got == 65536);
    text[size] = 0;
    fclose(f);
    return text;
}

/* The next word at *p that can be a name; advances. */
static void take_name(const char **p, char *out, size_t size)
{
    size_t n = 0;
    for (; isalnum((unsigned char)**p) || **p == '_'; ++*p)
        if (n + 1 < size) out[n++] = **p;
    out[n] = 0;
}

/* The body of kernel emit_<name> in the PTX, terminated. */
static char *body_of(const char *ptx, const char *name)
{
    char entry[128];
    snprintf(entry, sizeof entry, ".entry emit_%s(", name);
    const char *begin = strstr(ptx, entry);
    cr_assert(begin, "%s is not in the PTX", name);
    const char *end = strstr(begin + 1, ".entry ");
    return strndup(begin, end ? (size_t)(end - begin) : strlen(begin));
}

/* Each EMIT(name, "text", ...) of the source: the texts are in the kernel's PTX, in this order. */
static void check_file(const char *arch)
{
    char path[512];
    snprintf(path, sizeof path, "%s/tests/ptx/emit_%s.ptx", KLEIN_BINARY_DIR, arch);
    char *ptx = read_text(path);
    if (!ptx) SKIP("no nvcc when this was built: the emitted PTX was not checked");
    snprintf(path, sizeof path, "%s/tests/ptx/emit_%s.cu", KLEIN_SOURCE_DIR, arch);
    char *source = read_text(path);
    cr_assert(source, "%s", path);
    int kernels = 0;
    for (const char *p = source; (p = strstr(p, "\nEMIT("));) {
        char name[64];
        p += strlen("\nEMIT(");
        take_name(&p, name, sizeof name);
        char *body = body_of(ptx, name);
        const char *at = body;
        int texts = 0;
        while (*p != ')') {
            if (*p++ != '"') continue;
            char *text = strndup(p, strcspn(p, "\""));
            const char *found = strstr(at, text);
            cr_assert(found, "%s: \"%s\" is not (or not in this order) in\n%s", name, text, body);
            at = found + strlen(text);
            p += strlen(text) + 1;
            free(text);
            texts++;
        }
        cr_assert(texts, "%s expects nothing", name);
        kernels++;
        free(body);
    }
    cr_assert(kernels > 10, "%d", kernels);
    free(source);
    free(ptx);
}

Test(ptx, sm80_as_expected)
{
    check_file("sm80");
}

Test(ptx, sm90_as_expected)
{
    check_file("sm90");
}

/* Whether emits has EMIT(name,; or EMIT(name_ where one function stands for several instructions. */
static int is_emitted(const char *emits, const char *name, int several)
{
    char emit[80];
    const size_t n = (size_t)snprintf(emit, sizeof emit, "\nEMIT(%s", name);
    for (const char *p = emits; (p = strstr(p, emit)); p += n)
        if (p[n] == ',' || (several && p[n] == '_')) return 1;
    return 0;
}

Test(ptx, names_are_matched_as_a_whole)
{
    const char *emits = "\nEMIT(load_16, \nEMIT(product_64, ";
    cr_assert(is_emitted(emits, "load_16", 0) && is_emitted(emits, "product", 1));
    cr_assert(!is_emitted(emits, "load_1", 1) && !is_emitted(emits, "load", 0) &&
              !is_emitted(emits, "product", 0));
}

/* Every function of these headers with an instruction in it has an EMIT of its name; wgmma one per width, which ends the name. */
Test(ptx, no_function_is_left_out)
{
    static const char *const headers[][2] = {{"ptx_sm80.h", "sm80"},
                                             {"ptx_narrow.h", "sm80"},
                                             {"ptx_peer.h", "sm80"},
                                             {"ptx_sm90.h", "sm90"},
                                             {"ptx_wgmma.h", "sm90"}};
    int functions = 0;
    for (size_t h = 0; h < sizeof headers / sizeof *headers; h++) {
        char path[512];
        snprintf(path, sizeof path, "%s/kernels/device/%s", KLEIN_SOURCE_DIR, headers[h][0]);
        char *header = read_text(path);
        snprintf(path, sizeof path, "%s/tests/ptx/emit_%s.cu", KLEIN_SOURCE_DIR, headers[h][1]);
        char *emits = read_text(path);
        cr_assert(header && emits);
        for (char *p = header; (p = strstr(p, "\nDEVICE "));) {
            char *end = strstr(++p, "\nDEVICE "), *open = strchr(p, '(');
            char *body = strndup(p, end ? (size_t)(end - p) : strlen(p));
            const char *begin = open;
            while (isalnum((unsigned char)begin[-1]) || begin[-1] == '_') begin--;
            char *name = strndup(begin, (size_t)(open - begin));
            const int widths = strstr(body, "WGMMA_SS(") || strstr(body, "WGMMA_RS(");
            if (widths || strstr(body, "asm volatile(\"") || strstr(body, "asm volatile(\n") ||
                strstr(body, "asm(\"c") || strstr(body, "asm(\"l") || strstr(body, "approx")) {
                cr_assert(is_emitted(emits, name, widths), "%s: no EMIT(%s in emit_%s.cu", headers[h][0],
                          name, headers[h][1]);
                functions++;
            }
            free(name);
            free(body);
        }
        free(header);
        free(emits);
    }
    cr_assert(functions > 50, "%d", functions);
}
