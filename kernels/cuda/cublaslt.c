#include "cublaslt.h"
#include "library.h"

#include <dlfcn.h>

enum { WORKSPACE = 32 << 20 };

_Static_assert(sizeof(cublasLtMatmulHeuristicResult_t) == 96, "as in cublasLt.h");

static const struct library_names names = {
    "cuBLASLt", "KLEIN_CUBLASLT", {"libcublasLt.so.13", "libcublasLt.so.12", "libcublasLt.so"}};
static const struct library_entry entries[] = {
#define X(name, parameters) {"cublasLt" #name, offsetof(struct cublaslt, name)},
    KLEIN_CUBLASLT_ENTRIES(X)
#undef X
};

static enum klein_status check(cublasStatus_t status, const char *what, struct klein_error *err)
{
    return status ? fail(err, KLEIN_E_UNSUPPORTED, "cuBLASLt: %s: status %d", what, (int)status) : KLEIN_OK;
}

enum klein_status cublaslt_open(struct gpu *g, struct cublaslt *out, struct klein_error *err)
{
    *out = (struct cublaslt){.gpu = g};
    TRY(library_open(&names, g->cu->soft, &out->library, err));
    enum klein_status status =
        library_fill(out->library, names.name, entries, sizeof entries / sizeof *entries, out, err);
    if (status == KLEIN_OK) status = check(out->Create(&out->handle), "create", err);
    if (status != KLEIN_OK) cublaslt_close(out);
    return status;
}

void cublaslt_close(struct cublaslt *lt)
{
    if (lt->handle) lt->Destroy(lt->handle);
    if (lt->library) dlclose(lt->library);
    *lt = (struct cublaslt){0};
}

/* Its matrices are by columns, so y^T [n, m] = w [k, n]^T x^T [k, m] there. */
enum klein_status cublaslt_product_open(struct cublaslt *lt, enum dtype type, int m, int n, int k,
                                        struct cublaslt_product *out, struct klein_error *err)
{
    const int transposed = CUBLAS_OP_T, in = type == DT_BF16 ? CUDA_R_16BF : CUDA_R_8F_E4M3;
    const size_t most = WORKSPACE;
    const uint64_t rows = (uint64_t)m, cols = (uint64_t)n, depth = (uint64_t)k;
    cublasLtMatmulPreference_t preference = NULL;
    int found = 0;
    *out = (struct cublaslt_product){.lt = lt};
    TRY(gpu_alloc(lt->gpu, WORKSPACE, &out->workspace, err));
    TRY(check(lt->MatmulDescCreate(&out->desc, CUBLAS_COMPUTE_32F, CUDA_R_32F), "description", err));
    TRY(check(
        lt->MatmulDescSetAttribute(out->desc, CUBLASLT_MATMUL_DESC_TRANSA, &transposed, sizeof transposed),
        "transposing", err));
    TRY(check(lt->MatrixLayoutCreate(&out->w, in, depth, cols, k), "layout", err));
    TRY(check(lt->MatrixLayoutCreate(&out->x, in, depth, rows, k), "layout", err));
    TRY(check(lt->MatrixLayoutCreate(&out->y, CUDA_R_16BF, cols, rows, n), "layout", err));
    TRY(check(lt->MatmulPreferenceCreate(&preference), "preference", err));
    cublasStatus_t status = lt->MatmulPreferenceSetAttribute(
        preference, CUBLASLT_MATMUL_PREF_MAX_WORKSPACE_BYTES, &most, sizeof most);
    if (!status)
        status = lt->MatmulAlgoGetHeuristic(lt->handle, out->desc, out->w, out->x, out->y, out->y, preference,
                                            1, &out->chosen, &found);
    lt->MatmulPreferenceDestroy(preference);
    TRY(check(status, "heuristic", err));
    return found ? KLEIN_OK
                 : fail(err, KLEIN_E_UNSUPPORTED, "cuBLASLt has no kernel for %dx%d @ %d in %s", m, k, n,
                        dtype_name(type));
}

enum klein_status cublaslt_product_run(const struct cublaslt_product *p, const void *x, const void *w,
                                       void *y, struct klein_error *err)
{
    const float one = 1, zero = 0;
    return check(p->lt->Matmul(p->lt->handle, p->desc, &one, w, p->w, x, p->x, &zero, y, p->y, y, p->y,
                               &p->chosen.algo, p->workspace, WORKSPACE, p->lt->gpu->stream),
                 "product", err);
}

void cublaslt_product_close(struct cublaslt_product *p)
{
    if (p->y) p->lt->MatrixLayoutDestroy(p->y);
    if (p->x) p->lt->MatrixLayoutDestroy(p->x);
    if (p->w) p->lt->MatrixLayoutDestroy(p->w);
    if (p->desc) p->lt->MatmulDescDestroy(p->desc);
    if (p->workspace) gpu_free(p->lt->gpu, p->workspace);
    *p = (struct cublaslt_product){0};
}
