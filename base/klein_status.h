/* klein_status.h: what a fallible function of klein returns. Public: installed beside klein.h.
 * One X-macro so that the enum, its names and its human strings cannot drift apart. */
#ifndef KLEIN_STATUS_H
#define KLEIN_STATUS_H

/*    name         one line for people                                   */
#define KLEIN_STATUS_LIST(X)                                                                                 \
    X(OK, "success")                                                                                         \
    X(E_USAGE, "invalid argument")                                                                           \
    X(E_MODEL_MISSING, "model or one of its files not found")                                                \
    X(E_MODEL_CORRUPT, "model file is damaged or not what it claims to be")                                  \
    X(E_UNSUPPORTED, "not supported")                                                                        \
    X(E_NO_DEVICE, "no such device")                                                                         \
    X(E_NO_MEMORY, "out of memory")                                                                          \
    X(E_INPUT, "cannot read input")                                                                          \
    X(E_OUTPUT, "cannot write output")                                                                       \
    X(E_CANCELLED, "cancelled")                                                                              \
    X(E_NUMERIC, "result is not a number")                                                                   \
    X(E_INTERNAL, "internal error")

enum klein_status {
#define X(name, text) KLEIN_##name,
    KLEIN_STATUS_LIST(X)
#undef X
        KLEIN_STATUS_COUNT
};

/* The status with the message that goes with it: what failed, where, and what to do. Filled by the callee;
 * `status` is KLEIN_OK and `message` empty unless a call failed. Owned by the caller, never allocated. */
#define KLEIN_MESSAGE_MAX 1024
struct klein_error {
    enum klein_status status;
    char message[KLEIN_MESSAGE_MAX];
};

#endif
