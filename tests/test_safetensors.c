#include "../weights/safetensors.h"
#include "support/alloc.h"
#include "support/support.h"

#include <fcntl.h>
#include <jansson.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

static struct klein_error err;

static const char *path_of(const char *name)
{
    static char path[4][256];
    static int next;
    char *p = path[next++ % 4];
    snprintf(p, sizeof path[0], "%s/%s", test_dir(), name);
    return p;
}

/* A file in memory: header length, header, data_bytes of data. The caller frees it. */
static char *image(const char *header, size_t data_bytes, size_t *n)
{
    size_t length = strlen(header);
    *n = 8 + length + data_bytes;
    char *bytes = malloc(*n); /* of exactly this size, so that the sanitizer sees a read beyond it */
    for (int i = 0; i < 8; i++) bytes[i] = (char)(length >> 8 * i);
    memcpy(bytes + 8, header, length);
    for (size_t i = 0; i < data_bytes; i++) bytes[8 + length + i] = (char)i;
    return bytes;
}

static void accepts(const char *header, size_t data_bytes)
{
    size_t n;
    char *bytes = image(header, data_bytes, &n);
    struct st_file *f;
    OK(st_open_memory(bytes, n, "memory", &f, &err));
    st_close(f);
    free(bytes);
}

static void refuses(const char *header, size_t data_bytes, const char *message)
{
    size_t n;
    char *bytes = image(header, data_bytes, &n);
    struct st_file *f = (struct st_file *)1;
    FAILS(st_open_memory(bytes, n, "memory", &f, &err), KLEIN_E_MODEL_CORRUPT, message);
    cr_assert(!f && strstr(err.message, "memory"), "%s: *out %p, message %s", header, (void *)f, err.message);
    free(bytes);
}

Test(safetensors, reads_what_is_there)
{
    size_t n;
    char *bytes = image(
        "{\"__metadata__\":{\"format\":\"pt\",\"k\":\"v\"},"
        "\"b\":{\"dtype\":\"BF16\",\"shape\":[2,3],\"data_offsets\":[8,20]},"
        "\"a\":{\"dtype\":\"F32\",\"shape\":[2],\"data_offsets\":[0,8]},"
        "\"scalar\":{\"dtype\":\"I64\",\"shape\":[],\"data_offsets\":[20,28]},"
        "\"empty\":{\"dtype\":\"F16\",\"shape\":[0,7],\"data_offsets\":[28,28]},"
        "\"odd\":{\"dtype\":\"F8_E5M2FNUZ_WITH_A_LONG_NAME\",\"shape\":[3],\"data_offsets\":[28,31]}}   ",
        31, &n);
    struct st_file *f;
    OK(st_open_memory(bytes, n, "memory", &f, &err));
    cr_assert(st_count(f) == 5);
    cr_assert(!strcmp(st_get(f, 0)->name, "a") && !strcmp(st_get(f, 1)->name, "b"));
    const struct st_tensor *b = st_find(f, "b"), *odd = st_find(f, "odd"), *scalar = st_find(f, "scalar"),
                           *empty = st_find(f, "empty");
    cr_assert(b && b->dtype == DT_BF16 && b->ndim == 2 && b->shape[0] == 2 && b->shape[1] == 3 &&
              b->bytes == 12);
    cr_assert(*(const char *)b->data == 8 && ((const char *)b->data)[11] == 19);
    cr_assert(scalar && scalar->dtype == DT_I64 && scalar->ndim == 0 && scalar->bytes == 8);
    cr_assert(empty && empty->ndim == 2 && empty->bytes == 0);
    cr_assert(odd && odd->dtype == DT_NONE && !strncmp(odd->dtype_text, "F8_E5M2FNUZ_WIT", 16));
    cr_assert(!st_find(f, "c") && !st_find(f, "__metadata__"));
    cr_assert_str_eq(st_metadata(f, "k"), "v");
    cr_assert(!st_metadata(f, "x"));
    cr_assert(st_size(f) == n);
    st_drop_pages(f); /* nothing to drop, nothing happens */
    st_close(f);
    free(bytes);
}

#define T(dtype, shape, offsets) "{\"dtype\":\"" dtype "\",\"shape\":" shape ",\"data_offsets\":" offsets "}"
#define A(dtype, shape, offsets) "{\"a\":" T(dtype, shape, offsets) "}"
#define AB(a, b)                 "{\"a\":" a ",\"b\":" b "}"

Test(safetensors, accepts_the_edges)
{
    accepts("{}", 0);
    accepts("{\"__metadata__\":{}}", 0);
    accepts(A("U8", "[]", "[0,1]"), 1);
    accepts(A("U8", "[1,1,1,1,1,1,1,1]", "[0,1]"), 1);
    accepts(A("F32", "[0]", "[0,0]"), 0);
    accepts(AB(T("U8", "[1]", "[0,1]"), T("F32", "[1]", "[1,5]")),
            5); /* not aligned: for the user of the tensor to mind */
    accepts(AB(T("U8", "[0]", "[1,1]"), T("U8", "[1]", "[0,1]")), 1);
    accepts(A("U8", "[1]", "[0,1]") " \n\t", 1);
}

Test(safetensors, refuses_malformed_headers)
{
    static const struct {
        const char *header;
        size_t data;
        const char *message;
    } bad[] = {
        /* JSON */
        {"", 0, "not valid JSON"},
        {"x", 0, "not valid JSON"},
        {"[]", 0, "not a JSON object"},
        {"{", 0, "not valid JSON"},
        {"{}}", 0, "not valid JSON"},
        {"{} {}", 0, "not valid JSON"},
        {"{\"a\":1,}", 0, "not valid JSON"},
        {"{\"a\\u0000b\":1}", 0, "not valid JSON"},
        {"{\"\xff\":1}", 0, "not valid JSON"},
        {"{\"a\":" T("U8", "[1]", "[0,1]") ",\"a\":" T("U8", "[1]", "[0,1]") "}", 1, "duplicate"},
        {"{\"a\":{\"dtype\":\"U8\",\"dtype\":\"U8\",\"shape\":[1],\"data_offsets\":[0,1]}}", 1, "duplicate"},
        {"{\"a\":{\"b\":[[1]]}}", 0, "nested deeper"},
        {"{\"a\":{\"b\":{\"c\":{}}}}", 0, "nested deeper"},
        {"{\"__metadata__\":[]}", 0, "__metadata__ is not an object"},
        {"{\"__metadata__\":{\"a\":1}}", 0, "not a string"},
        {"{\"__metadata__\":null}", 0, "__metadata__ is not an object"},
        /* entries */
        {"{\"a\":1}", 0, "not an object"},
        {"{\"a\":[]}", 0, "not an object"},
        {"{\"\":" T("U8", "[1]", "[0,1]") "}", 1, "empty or has control characters"},
        {"{\"a\\u001b[31m\":" T("U8", "[1]", "[0,1]") "}", 1, "empty or has control characters"},
        {"{\"a\":{\"shape\":[1],\"data_offsets\":[0,1]}}", 1, "dtype is missing"},
        {"{\"a\":{\"dtype\":8,\"shape\":[1],\"data_offsets\":[0,1]}}", 1, "dtype is missing or not a string"},
        {"{\"a\":{\"dtype\":\"\\u001b[31m\",\"shape\":[1],\"data_offsets\":[0,1]}}", 1, "dtype is missing"},
        /* shapes */
        {"{\"a\":{\"dtype\":\"U8\",\"data_offsets\":[0,1]}}", 1, "shape is not a list"},
        {A("U8", "1", "[0,1]"), 1, "shape is not a list"},
        {A("U8", "{}", "[0,1]"), 1, "shape is not a list"},
        {A("U8", "[1.0]", "[0,1]"), 1, "shape is not a list"},
        {A("U8", "[\"1\"]", "[0,1]"), 1, "shape is not a list"},
        {A("U8", "[-1]", "[0,1]"), 1, "shape is not a list"},
        {A("U8", "[-1,-1]", "[0,1]"), 1, "shape is not a list"},
        {A("U8", "[1,1,1,1,1,1,1,1,1]", "[0,1]"), 1, "at most 8"},
        {A("U8", "[99999999999999999999]", "[0,1]"), 1, "not valid JSON"},
        {A("U8", "[4294967296,4294967296]", "[0,0]"), 0, "more elements than can be counted"},
        {A("U8", "[4294967296,4294967296,0]", "[0,0]"), 0, "more elements than can be counted"},
        {A("F32", "[4611686018427387904]", "[0,0]"), 0, "more elements than can be counted"},
        {A("F32", "[4611686018427387905]", "[0,4]"), 4, "more elements than can be counted"},
        {A("X9", "[4294967296,4294967296]", "[0,1]"), 1, "more elements than can be counted"},
        /* offsets */
        {"{\"a\":{\"dtype\":\"U8\",\"shape\":[1]}}", 1, "data_offsets is not"},
        {A("U8", "[1]", "[0]"), 1, "data_offsets is not"},
        {A("U8", "[1]", "[0,1,2]"), 1, "data_offsets is not"},
        {A("U8", "[1]", "[0,1.0]"), 1, "data_offsets is not"},
        {A("U8", "[1]", "[-1,0]"), 1, "data_offsets is not"},
        {A("U8", "[1]", "[1,0]"), 1, "end before they begin"},
        {A("U8", "[1]", "[0,2]"), 1, "truncated or damaged"},
        {A("U8", "[0]", "[2,2]"), 1, "truncated or damaged"},
        {A("U8", "[9223372036854775807]", "[0,9223372036854775807]"), 1, "truncated or damaged"},
        {A("U8", "[2]", "[0,1]"), 1, "1 bytes of data, its shape and dtype need 2"},
        {A("U8", "[]", "[0,0]"), 0, "need 1"},
        {A("F32", "[1]", "[0,2]"), 2, "need 4"},
        {A("U8", "[0]", "[0,1]"), 1, "need 0"},
        /* tiling */
        {A("U8", "[1]", "[1,2]"), 2, "belong to no tensor"},
        {A("U8", "[1]", "[0,1]"), 2, "after the last tensor"},
        {"{}", 1, "after the last tensor"},
        {AB(T("U8", "[1]", "[0,1]"), T("U8", "[1]", "[0,1]")), 1, "overlaps"},
        {AB(T("U8", "[2]", "[0,2]"), T("U8", "[2]", "[1,3]")), 3, "overlaps"},
        {AB(T("U8", "[3]", "[0,3]"), T("U8", "[1]", "[1,2]")), 3, "overlaps"},
        {AB(T("U8", "[2]", "[0,2]"), T("U8", "[0]", "[1,1]")), 2, "overlaps"},
        {AB(T("U8", "[1]", "[0,1]"), T("U8", "[1]", "[2,3]")), 3, "belong to no tensor"},
        {AB(T("X9", "[5]", "[0,2]"), T("U8", "[1]", "[1,2]")), 2, "overlaps"},
    };
    for (size_t i = 0; i < sizeof bad / sizeof *bad; i++) refuses(bad[i].header, bad[i].data, bad[i].message);
}

Test(safetensors, refuses_every_truncation)
{
    size_t n;
    char *bytes = image(AB(T("U8", "[1]", "[0,1]"), T("BF16", "[2]", "[1,5]")), 5, &n);
    for (size_t cut = 0; cut < n; cut++) {
        char *part = malloc(cut + 1);
        memcpy(part, bytes, cut);
        struct st_file *f;
        FAILS(st_open_memory(part, cut, "memory", &f, &err), KLEIN_E_MODEL_CORRUPT, "");
        free(part);
    }
    for (int byte = 0; byte < 8; byte++) { /* a damaged header length */
        char *damaged = malloc(n);
        memcpy(damaged, bytes, n);
        damaged[byte] ^= 0x5a;
        struct st_file *f;
        FAILS(st_open_memory(damaged, n, "memory", &f, &err), KLEIN_E_MODEL_CORRUPT, "");
        free(damaged);
    }
    free(bytes);
}

static void write_bytes(const char *path, const void *bytes, size_t n)
{
    FILE *f = fopen(path, "wb");
    cr_assert(f && fwrite(bytes, 1, n, f) == n && !fclose(f));
}

Test(safetensors, files_that_are_none)
{
    struct st_file *f;
    FAILS(st_open(path_of("absent"), &f, &err), KLEIN_E_MODEL_MISSING, "absent: No such file");
    FAILS(st_open(test_dir(), &f, &err), KLEIN_E_MODEL_CORRUPT, "not a regular file");
    cr_assert(!mkfifo(path_of("fifo"), 0600));
    FAILS(st_open(path_of("fifo"), &f, &err), KLEIN_E_MODEL_CORRUPT, "not a regular file");
    write_bytes(path_of("empty"), "", 0);
    FAILS(st_open(path_of("empty"), &f, &err), KLEIN_E_MODEL_CORRUPT, "0 bytes, too short");
    write_bytes(path_of("pickle"), "PK\3\4 this is a zip file, as torch.save writes it", 45);
    FAILS(st_open(path_of("pickle"), &f, &err), KLEIN_E_MODEL_CORRUPT, "truncated or not a safetensors file");
    write_bytes(path_of("secret"), "x", 1);
    chmod(path_of("secret"), 0);
    if (geteuid() != 0)
        FAILS(st_open(path_of("secret"), &f, &err), KLEIN_E_MODEL_MISSING, "Permission denied");
}

static double now(void)
{
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (double)t.tv_sec + 1e-9 * (double)t.tv_nsec;
}

/* 64 GiB with holes: opening must neither read nor copy the data. */
Test(safetensors, opening_reads_the_header_only)
{
    const char *header = A("U8", "[68719476736]", "[0,68719476736]");
    size_t n;
    char *bytes = image(header, 0, &n);
    write_bytes(path_of("huge"), bytes, n);
    free(bytes);
    if (truncate(path_of("huge"), (off_t)(n + 68719476736))) cr_skip_test("no sparse files here");
    double start = now();
    struct st_file *f;
    OK(st_open(path_of("huge"), &f, &err));
    cr_assert(now() - start < 1, "took %g s", now() - start);
    const struct st_tensor *a = st_find(f, "a");
    size_t pages = (16u << 20) / 4096, resident = 0;
    unsigned char *in_core = malloc(pages);
    cr_assert(
        !mincore((void *)(((uintptr_t)a->data + (1u << 30)) & ~(uintptr_t)4095), pages * 4096, in_core));
    for (size_t i = 0; i < pages; i++) resident += in_core[i] & 1;
    cr_assert(resident == 0, "%zu pages of data are in memory", resident);
    cr_assert(((const char *)a->data)[a->bytes - 1] == 0);
    st_drop_pages(f);
    cr_assert(((const char *)a->data)[a->bytes - 1] == 0);
    free(in_core);
    st_close(f);
}

static const float floats[] = {1, -2, 3.5f, 0};
static const int64_t scalar = 7;
static const struct st_tensor two[] = {
    {.name = "n", .dtype = DT_I64, .data = &scalar},
    {.name = "x \"quoted\" \xc3\xa4", .dtype = DT_F32, .ndim = 2, .shape = {2, 2}, .data = floats},
    {.name = "none", .dtype = DT_F32, .ndim = 2, .shape = {0, 3}},
};
static const char *const metadata[] = {"format", "pt", "note", "a \"b\"", NULL};

static enum klein_status write_two(const char *path)
{
    struct st_writer *w;
    TRY(st_write_begin(path, two, 3, metadata, &w, &err));
    return st_write_finish(w, &err);
}

static int files_in_test_dir(const char *prefix)
{
    char command[256], text[16] = "";
    snprintf(command, sizeof command, "ls %s | grep -c '^%s'", test_dir(), prefix);
    FILE *p = popen(command, "r");
    cr_assert(p && fgets(text, sizeof text, p));
    pclose(p);
    return atoi(text);
}

Test(safetensors, round_trip)
{
    OK(write_two(path_of("two")));
    struct st_file *f;
    OK(st_open(path_of("two"), &f, &err));
    cr_assert(st_count(f) == 3);
    const struct st_tensor *x = st_find(f, two[1].name), *n = st_find(f, "n");
    cr_assert(x && x->dtype == DT_F32 && x->ndim == 2 && x->shape[0] == 2 &&
              !memcmp(x->data, floats, sizeof floats));
    cr_assert(n && n->ndim == 0 && !memcmp(n->data, &scalar, 8));
    cr_assert((uintptr_t)n->data % 8 == 0 && (uintptr_t)x->data % 4 == 0, "data are not aligned");
    cr_assert_str_eq(st_metadata(f, "format"), "pt");
    cr_assert_str_eq(st_metadata(f, "note"), "a \"b\"");
    cr_assert_str_eq(st_path(f), path_of("two"));
    st_close(f);
    struct stat st;
    mode_t mask = umask(0);
    umask(mask);
    cr_assert(!stat(path_of("two"), &st) && (st.st_mode & 0777) == (0666 & ~mask));
}

Test(safetensors, writing_in_pieces_appears_when_finished)
{
    struct st_tensor x = {.name = "x", .dtype = DT_F32, .ndim = 1, .shape = {4}};
    struct st_writer *w;
    OK(st_write_begin(path_of("pieces"), &x, 1, NULL, &w, &err));
    OK(st_write_data(w, floats, 6, &err));
    cr_assert(access(path_of("pieces"), F_OK) != 0 && files_in_test_dir("pieces") == 1);
    OK(st_write_data(w, (const char *)floats + 6, 10, &err));
    OK(st_write_finish(w, &err));
    struct st_file *f;
    OK(st_open(path_of("pieces"), &f, &err));
    cr_assert(!memcmp(st_get(f, 0)->data, floats, sizeof floats));
    st_close(f);

    OK(st_write_begin(path_of("pieces"), &x, 1, NULL, &w, &err)); /* an aborted rewrite leaves the old file */
    OK(st_write_data(w, floats, 6, &err));
    st_write_abort(w);
    cr_assert(files_in_test_dir("pieces") == 1);
    OK(st_open(path_of("pieces"), &f, &err));
    st_close(f);
    st_write_abort(NULL);
}

Test(safetensors, what_cannot_be_written)
{
    FAILS(write_two("/proc/none/x"), KLEIN_E_OUTPUT, "/proc/none/x: cannot create");
    cr_assert(!mkdir(path_of("directory"), 0700));
    FAILS(write_two(path_of("directory")), KLEIN_E_OUTPUT, "directory: cannot write");
    cr_assert(files_in_test_dir("directory") == 1, "a temporary file was left");
}

Test(safetensors, allocations_that_fail)
{
    OK(write_two(path_of("two")));
    struct st_file *f = NULL;
    EACH_ALLOCATION_FAILS(st_open(path_of("two"), &f, &err), st_close(f));
    EACH_ALLOCATION_FAILS(write_two(path_of("fails")), );
    json_set_alloc_funcs(malloc, free);
    EACH_ALLOCATION_FAILS_SOMEHOW(st_open(path_of("two"), &f, &err), st_close(f));
    EACH_ALLOCATION_FAILS(write_two(path_of("fails")), );
    cr_assert(files_in_test_dir("fails") == 1, "a temporary file was left");
}
