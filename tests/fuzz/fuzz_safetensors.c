/* fuzz_safetensors: the first byte chooses what the rest is: a whole file, or a data size (one byte) and a header, whose length is then
 * right, which gets further. What opens must be what it claims: tensors that tile the data, and are found by name. */
#include "../../weights/safetensors.h"

#include <stdlib.h>
#include <string.h>

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t n);

static volatile char sum;

static void look(const struct st_file *f, const char *end)
{
    const char *at = NULL;
    for (int i = 0; i < st_count(f); i++) {
        const struct st_tensor *t = st_get(f, i);
        if (at && (const char *)t->data != at) abort();
        if (st_find(f, t->name) != t) abort();
        uint64_t elements = 1;
        for (int d = 0; d < t->ndim; d++) elements *= (uint64_t)t->shape[d];
        if (t->dtype != DT_NONE && elements * dtype_size(t->dtype) != t->bytes) abort();
        for (size_t k = 0; k < t->bytes; k++) sum = (char)(sum ^ ((const char *)t->data)[k]);
        at = (const char *)t->data + t->bytes;
    }
    if (at && at != end) abort();
    st_metadata(f, "format");
    if (st_find(f, "\x01")) abort();
}

static void open_and_look(const char *bytes, size_t n)
{
    struct klein_error err = {0};
    struct st_file *f;
    enum klein_status status = st_open_memory(bytes, n, "fuzz", &f, &err);
    if (status) {
        if (f || err.status != status || !err.message[0]) abort();
        return;
    }
    look(f, bytes + n);
    st_close(f);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t n)
{
    if (n < 2) return 0;
    size_t header = n - 2, size = data[0] == 'f' ? n - 1 : 8 + header + data[1];
    char *file = calloc(1, size); /* of exactly this size: a read beyond it is seen */
    if (data[0] == 'f') {
        memcpy(file, data + 1, n - 1);
    } else {
        for (int i = 0; i < 8; i++) file[i] = (char)((uint64_t)header >> 8 * i);
        memcpy(file + 8, data + 2, header);
    }
    open_and_look(file, size);
    free(file);
    return 0;
}
