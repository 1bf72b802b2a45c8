/* group.h: what the tests of several soft GPUs on one request share (test_group*.c). */
#ifndef KLEIN_TESTS_GROUP_H
#define KLEIN_TESTS_GROUP_H

#include "../support/support.h"

#include "../../engine/context.h"
#include "../../kernels/soft/softgpu.h"

/* The soft GPU that all devices of the test are. */
void soft_machine(const char *claim, uint64_t seed, enum softgpu_async async);

/* How the group is made up. */
struct members {
    int n, heads, base, f32;
    enum klein_parallel parallel;
    enum klein_precision precision;
    int copies;   /* as if devices could not store into each other's memory (run.h) */
    int head_dim; /* 0: 128 of two heads, 64 of more */
};

/* A model of two blocks with as many heads, random weights, on devices 0 .. n-1. */
struct klein *open_group(struct members g);

/* To open weights/nano on devices 0 .. n-1. */
struct klein_open_options nano_options(int n, enum klein_parallel parallel);

/* 9 tokens: uneven parts. */
struct klein_request small_request(uint64_t seed);

struct hashes {
    uint64_t latents, pictures; /* latents: with seeds and what else was returned */
};

struct hashes generate_hashes(struct klein *k, const struct klein_request *q);
/* Of all of it in one. */
uint64_t generate_hash(struct klein *k, const struct klein_request *q);
uint64_t result_hash(const struct klein_result *r);

/* The group's latents are those of one device: op by op, and as stages and as one graph, each of which runs as ops, is captured and is
 * replayed, with another prompt and seed each time. So are its pictures, with ulysses those that it makes op by op. */
void check_group_is_one(const char *claim, struct members g, struct klein_request q);

/* A device of a group fails: an error that names it, in time, and the group can be closed. */
struct failure {
    int n;
    enum klein_parallel parallel;
    int device, launch; /* which of its launches; below 0: counted from the request's last */
    int before;         /* requests before that one */
    uint64_t seed;
    enum softgpu_async async;
};
void check_group_failure(struct failure f);

/* Cancelled again and again, and each time usable after. */
void check_group_cancelled(void);

#endif
