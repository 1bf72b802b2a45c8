#include "tune.h"

#include "../kernels/names.h"

void tune_peers_open(struct tune_peers *p, struct gpu *g, const char *without)
{
    struct klein_error no_lt = {0}, no_dnn = {0};
    *p = (struct tune_peers){0};
    if (without && names_have(without, "cublaslt"))
        fail(&no_lt, KLEIN_E_UNSUPPORTED, "cuBLASLt is left out");
    else
        cublaslt_open(g, &p->lt, &no_lt);
    if (without && names_have(without, "cudnn"))
        fail(&no_dnn, KLEIN_E_UNSUPPORTED, "cuDNN is left out");
    else
        cudnn_open(g, &p->dnn, &no_dnn);
    snprintf(p->no_lt, sizeof p->no_lt, "%s", no_lt.message);
    snprintf(p->no_dnn, sizeof p->no_dnn, "%s", no_dnn.message);
}

void tune_peers_close(struct tune_peers *p)
{
    cublaslt_close(&p->lt);
    cudnn_close(&p->dnn);
}

const char *tune_peer_library(const struct tune_shape *s)
{
    return s->op == OP_linear ? "cuBLASLt" : s->op == OP_conv ? "cuDNN" : NULL;
}

enum klein_status tune_peer(struct device *dev, struct tune_peers *p, struct tune_shape *s, int repeat,
                            struct klein_error *err)
{
    struct klein_error e = {0};
    if (s->op == OP_linear && p->lt.library) tune_product(dev, &p->lt, s, repeat, &e);
    if (s->op == OP_conv && p->dnn.library) tune_conv(dev, &p->dnn, s, repeat, &e);
    if (e.status == KLEIN_OK) return KLEIN_OK;
    snprintf(s->peer_excluded, TUNE_TEXT, "%.*s", TUNE_TEXT - 1, e.message);
    if (e.status == KLEIN_E_UNSUPPORTED || e.status == KLEIN_E_NO_MEMORY) return KLEIN_OK;
    return fail(err, e.status, "%s, %s: %s; klein tune --without %s goes on without it", s->key,
                tune_peer_library(s), e.message, s->op == OP_linear ? "cublaslt" : "cudnn");
}
