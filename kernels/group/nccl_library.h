/* nccl_library.h: NVIDIA's NCCL 2, by which GPUs exchange that do not reach each other's memory: opened at run time, never linked. */
#ifndef KLEIN_GROUP_NCCL_LIBRARY_H
#define KLEIN_GROUP_NCCL_LIBRARY_H

#include "../cuda/gpu.h"

/* What we use of nccl.h 2, declared by hand (tests/driver/abi_nccl.c compares). */
#ifndef NCCL_DECLARED_ELSEWHERE
typedef int ncclResult_t, ncclDataType_t; /* enums */
typedef struct ncclComm *ncclComm_t;
enum { ncclUint8 = 1 };
#endif

/* X(name, result, parameters) */
#define KLEIN_NCCL_ENTRIES(X)                                                                                \
    X(GetVersion, ncclResult_t, (int *))                                                                     \
    X(GetErrorString, const char *, (ncclResult_t))                                                          \
    X(GetLastError, const char *, (ncclComm_t))                                                              \
    X(CommInitAll, ncclResult_t, (ncclComm_t *, int, const int *))                                           \
    X(CommAbort, ncclResult_t, (ncclComm_t))                                                                 \
    X(GroupStart, ncclResult_t, (void))                                                                      \
    X(GroupEnd, ncclResult_t, (void))                                                                        \
    X(Send, ncclResult_t, (const void *, size_t, ncclDataType_t, int, ncclComm_t, CUstream))                 \
    X(Recv, ncclResult_t, (void *, size_t, ncclDataType_t, int, ncclComm_t, CUstream))

#ifndef NCCL_DECLARED_ELSEWHERE
/* The least version that is taken, as ncclGetVersion says it: since 2.19 communicators are aborted well while other threads use them. */
enum { NCCL_LEAST = 21900 };

struct nccl {
    void *library;
#define X(name, result, parameters) result(*name) parameters;
    KLEIN_NCCL_ENTRIES(X)
#undef X
};

/* KLEIN_NCCL=FILE in the environment, else libnccl.so.2; nothing but the former beside the soft GPU, whose memory no other library knows.
 * KLEIN_E_UNSUPPORTED: there is none, it is too old, or lacks something. Close it with nccl_close. */
enum klein_status nccl_open(int soft, struct nccl *out, struct klein_error *err);
void nccl_close(struct nccl *n);
/* The result of call `what` as a status, with NCCL's text. comm NULL allowed. */
enum klein_status nccl_check(const struct nccl *n, ncclResult_t result, ncclComm_t comm, const char *what,
                             struct klein_error *err);
#endif

#endif
