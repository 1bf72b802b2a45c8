/* softgpu.h: what libsoftgpu.so offers beside the driver API: settings, the report of the last fault, counters.
 *
 * Environment (read at the first driver call; softgpu_configure overrides):
 *   KLEIN_SOFT=sm_90a:2        claimed architecture, number of devices; "sm_80" alone: one device. Default sm_90a.
 *   KLEIN_SOFT_SMS=8           multiprocessors per device, if not the chip's number
 *   KLEIN_SOFT_SEED=7          order of threads, blocks, streams and landings; 0: in order
 *   KLEIN_SOFT_ASYNC=late      when asynchronous work lands: late (as late as the rules allow), random, now
 *   KLEIN_SOFT_THREADS=4       host threads; default: the processors that the process may use
 *   KLEIN_SOFT_MEMORY=1024     MiB per device; default: the chip's. 32,1024: of devices 0 and 1; others have as much as device 0
 *   KLEIN_SOFT_RACES=0         no race check of shared memory (faster)
 *   KLEIN_SOFT_COUNT=1         count bank conflicts and global sectors too (slower)
 *   KLEIN_SOFT_ISA=avx2        no wider instructions on the host than these (avx512, avx2, base)
 *   KLEIN_SOFT_PEERS=0         devices do not reach each other's memory
 *   KLEIN_SOFT_PATIENCE=30     seconds that a kernel may sleep while nothing else happens
 *   KLEIN_SOFT_FAIL=1:40       the 40th kernel that device 1 runs fails
 *   KLEIN_SOFT_FP8=truncate    FP8 sums keep 13 fraction bits and truncate, as measured on Hopper; default: f32 */
#ifndef KLEIN_SOFTGPU_H
#define KLEIN_SOFTGPU_H

#include <stddef.h>
#include <stdint.h>

#define SOFTGPU_API __attribute__((visibility("default")))
#ifdef __cplusplus
extern "C" {
#endif

enum { SOFTGPU_DEVICES = 16 };
enum softgpu_async { SOFTGPU_LATE, SOFTGPU_RANDOM, SOFTGPU_NOW };

struct softgpu_config {
    char arch[16];                /* "sm_90a" */
    int devices, multiprocessors; /* multiprocessors: 0: the chip's */
    uint64_t seed;
    enum softgpu_async async;
    int threads;                         /* host threads; 0: all that the process may use */
    uint64_t memory;                     /* bytes per device; 0: the chip's */
    uint64_t memory_of[SOFTGPU_DEVICES]; /* of single ones; 0: `memory` */
    int check_races, count_accesses, truncate_fp8;
    int fail_device; /* the fail_launch-th kernel that it runs from now on fails; fail_launch 0: none */
    uint64_t fail_launch;
    int patience; /* seconds; 0: 30 */
    int no_peers;
};

/* The settings of the environment; 0 if it names an unknown chip or mode (then also a line on stderr). */
SOFTGPU_API int softgpu_config_from_env(struct softgpu_config *config);
/* Takes these settings from now on. Before the first cuInit, or between kernels; arch, devices, multiprocessors, memory and memory_of
 * only while no context is retained. 0 if refused. */
SOFTGPU_API int softgpu_configure(const struct softgpu_config *config);

/* The text of the last fault or refused call of this process: one paragraph that names kernel, block, threads, place and cause.
 * "" if there was none. Valid until the next driver call. */
SOFTGPU_API const char *softgpu_report(void);

enum { SOFTGPU_WIDTHS = 5 };

/* Sums since the last softgpu_reset_counters, over all kernels and devices. */
struct softgpu_counters {
    uint64_t kernels, blocks, dependents; /* dependents: kernels launched as programmatic dependents */
    uint64_t tensor_flops;                /* 2 per multiply-add of mma and wgmma */
    uint64_t cp_async_bytes, tma_bytes;   /* into shared memory; TMA counts full boxes, stores included */
    uint64_t host_to_device, device_to_host, device_to_device, peer; /* bytes of memcpy */
    uint64_t barriers;                                               /* completed block and named barriers */
    uint64_t shared_wavefronts; /* ldmatrix/stmatrix phases that were needed ... */
    uint64_t
        bank_conflicts; /* ... and those beyond one per phase; with count_accesses also of ld/st.shared, cp.async */
    uint64_t global_sectors,
        global_sectors_ideal; /* 32-byte sectors touched by warps / needed; count_accesses only */
    uint64_t
        global_requests[SOFTGPU_WIDTHS]; /* of warps, for 1, 2, 4, 8, 16 bytes a lane; count_accesses only */
    uint64_t graphs;                     /* graph launches */
    uint64_t stops, /* driver calls that wait for a stream or change memory (alloc, free, synchronise) ... */
        stops_between_graphs;             /* ... and those of them that came between two graph launches */
    uint64_t waits, waits_between_graphs; /* the same of calls that wait for an event */
    uint64_t calls,
        calls_between_graphs; /* of all driver calls that touch the device; each launch ends what is between */
    uint64_t pinned_peak;     /* bytes of pinned host memory, the most at a time */
};
SOFTGPU_API void softgpu_read_counters(struct softgpu_counters *counters);
SOFTGPU_API void softgpu_reset_counters(void);
/* Graphs of the device that are there to be launched. */
SOFTGPU_API int softgpu_graphs(int device);

#ifdef __cplusplus
}
#endif
#endif
