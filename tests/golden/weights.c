/* weights: writes the .safetensors files of a golden model from its recipe, weights.txt.
 *
 *     weights weights.txt FOLDER
 *
 * The models are random, so their weights need not be stored: tools/golden/weights.py defines every element
 * by tensor name and index, fills the real diffusers and transformers classes with them, and lists what their
 * save_pretrained wrote. This program writes the same files, byte for byte, and fails if the hash in the list
 * says otherwise. It shares no code with the library on purpose. */
#include <inttypes.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { MAX_TENSORS = 1024, MAX_NAME = 120, MAX_PATH = 4096 };

struct entry {
    char name[MAX_NAME], dtype[8];
    float base, scale;
    unsigned fade;
    int ndim;
    uint64_t shape[4], count, element_bytes;
};

static void die(const char *what, const char *name)
{
    fprintf(stderr, "golden weights: %s: %s\n", name, what);
    exit(1);
}

static uint64_t fnv1a64(const char *s)
{
    uint64_t h = 0xcbf29ce484222325u;
    for (; *s; s++) h = (h ^ (unsigned char)*s) * 0x100000001b3u;
    return h;
}

/* The same over n bytes, taken as little-endian words of 8 (zero padded). */
static uint64_t fnv1a64_words(const unsigned char *p, size_t n)
{
    uint64_t h = 0xcbf29ce484222325u;
    for (size_t i = 0; i < n; i += 8) {
        uint64_t word = 0;
        memcpy(&word, p + i, n - i < 8 ? n - i : 8);
        h = (h ^ word) * 0x100000001b3u;
    }
    return h;
}

static uint64_t splitmix64(uint64_t *state)
{
    uint64_t z = (*state += 0x9e3779b97f4a7c15u);
    z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9u;
    z = (z ^ (z >> 27)) * 0x94d049bb133111ebu;
    return z ^ (z >> 31);
}

static uint16_t bf16(float f)
{
    uint32_t u;
    memcpy(&u, &f, sizeof u);
    return (uint16_t)((u + 0x7fffu + ((u >> 16) & 1)) >> 16);
}

static void fill(const struct entry *e, unsigned char *out)
{
    if (strcmp(e->dtype, "BF16")) { /* BatchNorm's counter */
        memset(out, 0, e->count * e->element_bytes);
        return;
    }
    uint64_t state = fnv1a64(e->name);
    for (uint64_t i = 0; i < e->count; i++) {
        float u = ((float)(splitmix64(&state) >> 56) * 2.0f - 255.0f) / 256.0f;
        float scale = e->scale;
        if (e->fade) {
            float column = (float)(i % e->shape[e->ndim - 1] % e->fade) / (float)e->fade;
            scale *= column * column;
        }
        float scaled = scale * u;
        uint16_t value = bf16(e->base + scaled);
        memcpy(out + 2 * i, &value, 2);
    }
}

/* Appends to the JSON header as safetensors' own writer formats it. */
static size_t header_entry(char *out, size_t room, const struct entry *e, uint64_t offset)
{
    char shape[100] = "";
    for (int d = 0; d < e->ndim; d++)
        snprintf(shape + strlen(shape), sizeof shape - strlen(shape), "%s%" PRIu64, d ? "," : "",
                 e->shape[d]);
    return (size_t)snprintf(
        out, room, ",\"%s\":{\"dtype\":\"%s\",\"shape\":[%s],\"data_offsets\":[%" PRIu64 ",%" PRIu64 "]}",
        e->name, e->dtype, shape, offset, offset + e->count * e->element_bytes);
}

static void write_file(const char *folder, const char *name, uint64_t hash, const struct entry *entries,
                       int n)
{
    size_t room = 256 + 400 * (size_t)n, length = 0, data_bytes = 0;
    for (int i = 0; i < n; i++) data_bytes += entries[i].count * entries[i].element_bytes;
    unsigned char *file = malloc(8 + room + data_bytes);
    if (!file) die("out of memory", name);

    char *header = (char *)file + 8;
    length += (size_t)snprintf(header, room, "{\"__metadata__\":{\"format\":\"pt\"}");
    uint64_t offset = 0;
    for (int i = 0; i < n; i++) {
        length += header_entry(header + length, room - length, &entries[i], offset);
        offset += entries[i].count * entries[i].element_bytes;
    }
    header[length++] = '}';
    while (length % 8) header[length++] = ' ';
    uint64_t header_bytes = length;
    memcpy(file, &header_bytes, 8);
    unsigned char *data = file + 8 + length;
    for (int i = 0; i < n; i++) {
        fill(&entries[i], data);
        data += entries[i].count * entries[i].element_bytes;
    }

    size_t bytes = 8 + length + data_bytes;
    if (fnv1a64_words(file, bytes) != hash)
        die("is not what the reference wrote: recipe and program disagree", name);
    char path[MAX_PATH];
    snprintf(path, sizeof path, "%s/%s", folder, name);
    FILE *f = fopen(path, "wb");
    if (!f || fwrite(file, 1, bytes, f) != bytes || fclose(f)) die("cannot write", path);
    free(file);
}

static void parse_entry(char *line, struct entry *e)
{
    int used = 0;
    if (sscanf(line, "%119s %7s %f %f %u %d%n", e->name, e->dtype, &e->base, &e->scale, &e->fade, &e->ndim,
               &used) != 6 ||
        e->ndim < 0 || e->ndim > 4)
        die("bad line in the recipe", line);
    e->count = 1;
    for (int d = 0; d < e->ndim; d++) {
        char *end;
        e->shape[d] = strtoull(line + used, &end, 10);
        used = (int)(end - line);
        e->count *= e->shape[d];
    }
    e->element_bytes = strcmp(e->dtype, "BF16") ? 8 : 2;
}

int main(int argc, char **argv)
{
    if (argc != 3) die("usage: weights weights.txt FOLDER", argv[0]);
    FILE *list = fopen(argv[1], "r");
    struct entry *entries = malloc(MAX_TENSORS * sizeof *entries);
    if (!list || !entries) die("cannot read", argv[1]);

    char line[512], name[256] = "";
    uint64_t hash = 0;
    int n = 0;
    while (fgets(line, sizeof line, list)) {
        if (strncmp(line, "file ", 5)) {
            if (n == MAX_TENSORS) die("too many tensors", name);
            parse_entry(line, &entries[n++]);
            continue;
        }
        if (n) write_file(argv[2], name, hash, entries, n);
        n = 0;
        if (sscanf(line, "file %255s %" SCNx64, name, &hash) != 2) die("bad line in the recipe", line);
    }
    if (n) write_file(argv[2], name, hash, entries, n);
    free(entries);
    fclose(list);
    return 0;
}
