/* The host side of the GPU backend, driven against the soft GPU: opening, memory, launches by name, streams, graphs, peers, and errors
 * that say what to do. */
#include "driver/abi.h"
#include "soft/fixture.h"

#include <ctype.h>
#include <string.h>

enum { N = 10008 };

static void scale(struct gpu *g, void *y, const void *x, float a)
{
    struct scale_args args = {y, x, a, N};
    gpu_op(g, "scale", "10008");
    OK(gpu_launch(
        g, &(struct launch){.kernel = "scale_f32", .grid = {7}, .threads = SCALE_THREADS, .args = &args},
        &err));
}

static const float *sequence(void)
{
    static float x[N];
    for (int i = 0; i < N; i++) x[i] = (float)(i - 5000);
    return x;
}

static void *on_device(struct gpu *g)
{
    return to_device(g, sequence(), N * sizeof(float));
}

static void *empty(struct gpu *g)
{
    void *p;
    OK(gpu_alloc(g, N * sizeof(float), &p, &err));
    return p;
}

/* Whether the N floats at device memory p are a times the sequence. */
static bool holds(struct gpu *g, const void *p, float a)
{
    static float y[N];
    OK(gpu_download(g, y, p, sizeof y, &err));
    for (int i = 0; i < N; i++)
        if (!(y[i] == a * sequence()[i])) return false;
    return true;
}

/* ---- opening --------------------------------------------------------------------------------------------------------- */

Test(driver, declarations_agree_with_cuda_h)
{
#if HAVE_CUDA_H
    int rows = 0;
    for (; abi_ours[rows].name; rows++)
        cr_assert(abi_ours[rows].value == abi_cuda[rows].value, "%s is %lld, in cuda.h %lld",
                  abi_ours[rows].name, abi_ours[rows].value, abi_cuda[rows].value);
    cr_assert(rows > 60);
#else
    SKIP("no cuda.h when this was built: driver_api.h was not compared with it");
#endif
}

/* Each constant that driver_api.h gives a value is in abi.h, so that none escapes the comparison. */
Test(driver, declarations_are_all_compared)
{
    FILE *f = fopen(KLEIN_SOURCE_DIR "/kernels/cuda/driver_api.h", "r");
    cr_assert(f);
    char line[512], name[128];
    int found = 0;
    while (fgets(line, sizeof line, f))
        for (char *p = line; (p = strstr(p, "CU")); p++) {
            if (p > line && (isalnum((unsigned char)p[-1]) || p[-1] == '_')) continue;
            int end = 0;
            if (sscanf(p, "%127[A-Z0-9_] = %n", name, &end) != 1 || !end || !isdigit((unsigned char)p[end]))
                continue;
            int row = 0;
            while (abi_ours[row].name && strcmp(abi_ours[row].name, name)) row++;
            cr_assert(abi_ours[row].name, "%s is not in abi.h", name);
            found++;
        }
    fclose(f);
    cr_assert(found > 60, "%d", found);
}

Test(driver, no_gpu_is_said_cleanly)
{
    struct driver d;
    err = (struct klein_error){0};
    if (driver_open(0, &d, &err) == KLEIN_OK) { /* a machine with a real GPU */
        driver_close(&d);
        SKIP("this machine has an NVIDIA driver");
    }
    cr_assert(err.status == KLEIN_E_NO_DEVICE);
    cr_assert(strstr(err.message, "--device cpu") || strstr(err.message, "no usable GPU"), "%s", err.message);
}

Test(driver, what_the_device_is)
{
    struct gpu *g = open_gpu("sm_90a", 0, SOFTGPU_LATE);
    cr_assert(g->arch == 90 && g->multiprocessors == 132 && g->shared_max == 232448);
    cr_assert(strstr(g->name, "Soft GPU sm_90a"), "%s", g->name);
    close_gpu(g);
    g = open_gpu("sm_120a", 0, SOFTGPU_LATE);
    cr_assert(g->arch == 120 && g->shared_max == 101376);
    struct gpu *none;
    FAILS(gpu_open(&cu, 1, &none, &err), KLEIN_E_NO_DEVICE,
          "there is no GPU 1: this machine has 1, numbered from 0");
    close_gpu(g);
}

Test(driver, a_kernel_for_another_chip_is_named)
{
    struct gpu *g = open_gpu("sm_80", 0, SOFTGPU_LATE);
    struct gemm_sm90_args args = {0};
    struct launch l = {
        .kernel = "gemm_linear_sm90_128x256", .threads = GEMM_SM90_THREADS(128), .args = &args};
    FAILS(gpu_launch(g, &l, &err), KLEIN_E_UNSUPPORTED,
          "is built for sm_90a; none of these runs on Soft GPU sm_80");
    l.kernel = "scale_f64";
    FAILS(gpu_launch(g, &l, &err), KLEIN_E_INTERNAL, "no kernel scale_f64 in this module");
    l.kernel = "nothing";
    FAILS(gpu_launch(g, &l, &err), KLEIN_E_INTERNAL, "kernel nothing: no module");
    close_gpu(g);
}

/* ---- memory and streams ------------------------------------------------------------------------------------------------ */

Test(driver, scale_runs_by_name_on_every_chip)
{
    static const char *const chips[] = {"sm_80", "sm_86", "sm_89", "sm_90a", "sm_100a", "sm_120a"};
    for (int i = 0; i < 6; i++) {
        struct gpu *g = open_gpu(chips[i], (uint64_t)i, (enum softgpu_async)(i % 3));
        void *x = on_device(g), *y = empty(g);
        int blocks, registers;
        scale(g, y, x, 3);
        cr_assert(holds(g, y, 3), "%s", chips[i]);
        OK(gpu_registers(g, "scale_f32", &registers, &err));
        bool compiled = memcmp(kernel_modules[0].image, "klein soft", 10) !=
                        0; /* then ptxas has said how many, else the bounds */
        cr_assert(compiled ? registers > 0 && registers < 64 : registers == 255, "%d", registers);
        OK(gpu_occupancy(g,
                         &(struct launch){.kernel = "scale_f32", .threads = SCALE_THREADS, .shared = 40000},
                         &blocks, &err));
        cr_assert(blocks >= 1 && blocks <= 5, "%s: %d", chips[i], blocks);
        gpu_free(g, x);
        gpu_free(g, y);
        close_gpu(g);
    }
}

Test(driver, device_memory_starts_as_nan)
{
    struct gpu *g = open_gpu("sm_80", 0, SOFTGPU_LATE);
    static float y[N];
    OK(gpu_download(g, y, empty(g), sizeof y, &err));
    for (int i = 0; i < N; i++) cr_assert(isnan(y[i]));
    close_gpu(g);
}

Test(driver, out_of_memory_says_how_much)
{
    struct softgpu_config c;
    cr_assert(softgpu_config_from_env(&c));
    c.memory = 64 << 20;
    cr_assert(softgpu_configure(&c));
    struct gpu *g;
    void *p, *q;
    OK(driver_open(1, &cu, &err));
    OK(gpu_open(&cu, 0, &g, &err));
    OK(gpu_alloc(g, 40 << 20, &p, &err));
    FAILS(gpu_alloc(g, 40 << 20, &q, &err), KLEIN_E_NO_MEMORY, "40 MiB asked for, 24 of 64 MiB are free");
    gpu_free(g, p);
    OK(gpu_alloc(g, 40 << 20, &q, &err));
    close_gpu(g);
}

Test(driver, copies_are_checked)
{
    struct gpu *g = open_gpu("sm_80", 0, SOFTGPU_LATE);
    char *x = on_device(g);
    FAILS(gpu_upload(g, x + 8, sequence(), N * sizeof(float), &err), KLEIN_E_INTERNAL, "out of bounds");
    FAILS(gpu_copy(g, (void *)(uintptr_t)sequence(), x, 8, &err), KLEIN_E_INTERNAL, "is not device memory");
    close_gpu(g);
}

/* What the host did not wait for has not happened: a copy to pinned memory, a kernel in another stream. */
Test(driver, late_work_is_late)
{
    struct gpu *g = open_gpu("sm_80", 0, SOFTGPU_LATE);
    void *x = on_device(g), *y = empty(g), *z = empty(g), *pinned;
    OK(gpu_alloc_pinned(g, N * sizeof(float), &pinned, &err));
    OK(gpu_sync(g, &err));
    memset(pinned, 0, N * sizeof(float));
    cr_assert(cu.MemcpyDtoHAsync(pinned, (CUdeviceptr)(uintptr_t)x, N * sizeof(float), g->stream) ==
              CUDA_SUCCESS);
    cr_assert(((float *)pinned)[0] == 0);
    OK(gpu_sync(g, &err));
    cr_assert(((float *)pinned)[0] == -5000);

    CUstream other;
    CUevent done;
    OK(gpu_stream_open(g, &other, &err));
    OK(gpu_event_open(g, 0, &done, &err));
    CUstream first = gpu_use_stream(g, other);
    scale(g, y, x, 2);
    OK(gpu_event_record(g, done, &err));
    gpu_use_stream(g, first);
    scale(g, z, y, 2); /* does not wait: y is still NaN */
    cr_assert(!holds(g, z, 4));
    OK(gpu_event_wait(g, done, &err));
    scale(g, z, y, 2);
    cr_assert(holds(g, z, 4));
    gpu_event_close(g, done);
    gpu_stream_close(g, other);
    gpu_free_pinned(g, pinned);
    close_gpu(g);
}

/* All of it is in the streams before any of it runs; each task waits for one of the other stream. */
Test(driver, streams_wait_for_each_other_in_turns)
{
    enum { TURNS = 5 };
    struct gpu *g = open_gpu("sm_80", 0, SOFTGPU_LATE);
    void *x = on_device(g), *y = empty(g);
    CUstream other;
    CUevent there[TURNS], back[TURNS];
    OK(gpu_stream_open(g, &other, &err));
    for (int i = 0; i < TURNS; i++) {
        OK(gpu_event_open(g, 0, &there[i], &err));
        OK(gpu_event_open(g, 0, &back[i], &err));
        scale(g, y, x, 2);
        OK(gpu_event_record(g, there[i], &err));
        const CUstream first = gpu_use_stream(g, other);
        OK(gpu_event_wait(g, there[i], &err));
        scale(g, x, y, 1);
        OK(gpu_event_record(g, back[i], &err));
        gpu_use_stream(g, first);
        OK(gpu_event_wait(g, back[i], &err));
    }
    cr_assert(holds(g, x, 1 << TURNS));
    for (int i = 0; i < TURNS; i++) {
        gpu_event_close(g, there[i]);
        gpu_event_close(g, back[i]);
    }
    gpu_stream_close(g, other);
    close_gpu(g);
}

Test(driver, events_measure)
{
    struct gpu *g = open_gpu("sm_80", 0, SOFTGPU_LATE);
    void *x = on_device(g);
    CUevent from, to, untimed;
    float ms = -1;
    OK(gpu_event_open(g, 1, &from, &err));
    OK(gpu_event_open(g, 1, &to, &err));
    OK(gpu_event_open(g, 0, &untimed, &err));
    OK(gpu_event_record(g, from, &err));
    scale(g, x, x, 2);
    OK(gpu_event_record(g, to, &err));
    cr_assert(cu.EventElapsedTime(&ms, from, to) == CUDA_ERROR_NOT_READY);
    OK(gpu_event_sync(g, to, &err));
    OK(gpu_event_elapsed(g, from, to, &ms, &err));
    cr_assert(ms > 0);
    OK(gpu_event_record(g, untimed, &err));
    FAILS(gpu_event_elapsed(g, from, untimed, &ms, &err), KLEIN_E_INTERNAL, "cuEventElapsedTime");
    gpu_event_close(g, from);
    gpu_event_close(g, to);
    gpu_event_close(g, untimed);
    close_gpu(g);
}

/* ---- errors -------------------------------------------------------------------------------------------------------------- */

/* Two ops, the first of them at fault, found when the second has been launched; the message. */
static const char *fault_in_first_op(void)
{
    struct gpu *g = open_gpu("sm_80", 0, SOFTGPU_LATE);
    char *x = on_device(g);
    struct scale_args bad = {(float *)(x + 4), (const float *)x, 1, 100};
    static struct klein_error e;
    e = (struct klein_error){0};
    gpu_op(g, "linear", "768x3072 @ 9216");
    struct launch l = {.kernel = "scale_f32", .grid = {1}, .threads = SCALE_THREADS, .args = &bad};
    if (gpu_launch(g, &l, &e) == KLEIN_OK) {
        gpu_op(g, "attention", "24 heads");
        gpu_sync(g, &e);
    }
    close_gpu(g);
    return e.message;
}

Test(driver, asynchronous_faults_name_the_op)
{
    const char *message = fault_in_first_op();
    cr_assert(strstr(message, "attention 24 heads (or an op before it: KLEIN_SYNC=1 finds which)"), "%s",
              message);
    cr_assert(strstr(message, "st.global at scale.cu:") && strstr(message, "not a multiple of 16"), "%s",
              message);
    setenv("KLEIN_SYNC", "1", 1);
    message = fault_in_first_op();
    cr_assert(strstr(message, "linear 768x3072 @ 9216: scale_f32: CUDA_ERROR_MISALIGNED_ADDRESS"), "%s",
              message);
}

Test(driver, a_fault_stays)
{
    struct gpu *g = open_gpu("sm_80", 0, SOFTGPU_LATE);
    char *x = on_device(g);
    struct scale_args bad = {(float *)(x + 4), (const float *)x, 1, 100};
    struct launch l = {.kernel = "scale_f32", .grid = {1}, .threads = SCALE_THREADS, .args = &bad};
    OK(gpu_launch(g, &l, &err));
    FAILS(gpu_sync(g, &err), KLEIN_E_INTERNAL, "MISALIGNED");
    FAILS(gpu_launch(g, &l, &err), KLEIN_E_INTERNAL, "MISALIGNED");
    close_gpu(g);
    g = open_gpu("sm_80", 0, SOFTGPU_LATE); /* a new context is clean */
    void *y = empty(g);
    scale(g, y, on_device(g), 2);
    cr_assert(holds(g, y, 2));
    close_gpu(g);
}

/* ---- graphs -------------------------------------------------------------------------------------------------------------- */

Test(driver, graphs_replay_with_forks)
{
    for (uint64_t seed = 0; seed < 6; seed++) {
        struct gpu *g = open_gpu("sm_90a", seed, (enum softgpu_async)(seed % 3));
        void *x = on_device(g), *a = empty(g), *b = empty(g), *c = empty(g), *y = empty(g);
        CUstream side;
        CUevent fork, join;
        struct gpu_graph graph;
        OK(gpu_stream_open(g, &side, &err));
        OK(gpu_event_open(g, 0, &fork, &err));
        OK(gpu_event_open(g, 0, &join, &err));
        scale(g, a, x, 1); /* loads the function */
        OK(gpu_sync(g, &err));

        OK(gpu_capture_begin(g, &err));
        scale(g, a, x, 2);
        OK(gpu_event_record(g, fork, &err));
        CUstream main = gpu_use_stream(g, side);
        OK(gpu_event_wait(g, fork, &err));
        scale(g, b, a, 3);
        OK(gpu_event_record(g, join, &err));
        gpu_use_stream(g, main);
        OK(gpu_fill(g, c, 0, N * sizeof(float), &err));
        scale(g, c, a, 5);
        OK(gpu_event_wait(g, join, &err));
        OK(gpu_copy(g, y, b, N / 2 * sizeof(float), &err));
        OK(gpu_copy(g, (float *)y + N / 2, (float *)c + N / 2, N / 2 * sizeof(float), &err));
        OK(gpu_capture_end(g, &graph, &err));
        cr_assert(graph.nodes == 6, "%zu", graph.nodes);

        for (int replay = 0; replay < 3; replay++) {
            static float h[N];
            OK(gpu_fill(g, y, 0xff, N * sizeof(float), &err));
            OK(gpu_graph_launch(g, &graph, &err));
            OK(gpu_download(g, h, y, sizeof h, &err));
            for (int i = 0; i < N; i++)
                cr_assert(h[i] == (i < N / 2 ? 6 : 10) * sequence()[i], "seed %d: [%d] %g", (int)seed, i,
                          h[i]);
        }
        gpu_graph_close(g, &graph);
        gpu_event_close(g, fork);
        gpu_event_close(g, join);
        gpu_stream_close(g, side);
        close_gpu(g);
    }
}

Test(driver, graphs_keep_dependent_launches)
{
    for (uint64_t seed = 0; seed < 4; seed++) {
        struct gpu *g = open_gpu("sm_90a", seed, (enum softgpu_async)(seed % 3));
        enum { COUNT = 128 * 5 };
        static float x[COUNT], y[COUNT];
        void *b[4] = {to_device(g, x, sizeof x)};
        for (int i = 1; i < 4; i++) OK(gpu_alloc(g, sizeof x, &b[i], &err));
        struct gpu_graph graph;
        OK(gpu_capture_begin(g, &err));
        for (int i = 0; i < 3; i++) {
            struct unit_args args = {.y = b[i + 1], .x = b[i]};
            struct launch l = {
                .kernel = "units_sm90_chain", .grid = {5}, .threads = 128, .args = &args, .dependent = i > 0};
            OK(gpu_launch(g, &l, &err));
        }
        OK(gpu_capture_end(g, &graph, &err));
        OK(gpu_graph_launch(g, &graph, &err));
        OK(gpu_download(g, y, b[3], sizeof y, &err));
        for (int i = 0; i < COUNT; i++) cr_assert(y[i] == 3);
        gpu_graph_close(g, &graph);
        close_gpu(g);
    }
}

Test(driver, capture_refuses_what_a_graph_cannot_hold)
{
    struct gpu *g = open_gpu("sm_90a", 0, SOFTGPU_LATE);
    void *x = on_device(g), *p;
    struct gpu_graph graph;
    OK(gpu_capture_begin(g, &err));
    scale(g, x, x, 2);
    FAILS(gpu_alloc(g, 64, &p, &err), KLEIN_E_INTERNAL, "cuMemAlloc while this thread captures a stream");
    FAILS(gpu_capture_end(g, &graph, &err), KLEIN_E_INTERNAL, "INVALIDATED");
    OK(gpu_capture_begin(g, &err));
    FAILS(gpu_sync(g, &err), KLEIN_E_INTERNAL, "cuStreamSynchronize while");
    FAILS(gpu_capture_end(g, &graph, &err), KLEIN_E_INTERNAL, "INVALIDATED");

    CUstream side;
    CUevent fork;
    OK(gpu_stream_open(g, &side, &err));
    OK(gpu_event_open(g, 0, &fork, &err));
    OK(gpu_capture_begin(g, &err));
    scale(g, x, x, 2);
    OK(gpu_event_record(g, fork, &err));
    CUstream main = gpu_use_stream(g, side);
    OK(gpu_event_wait(g, fork, &err));
    scale(g, x, x, 2);
    gpu_use_stream(g, main);
    FAILS(gpu_capture_end(g, &graph, &err), KLEIN_E_INTERNAL, "was not joined");
    cr_assert(holds(g, x, 1)); /* nothing of it ran */
    gpu_event_close(g, fork);
    gpu_stream_close(g, side);
    close_gpu(g);
}

/* ---- several devices ------------------------------------------------------------------------------------------------------- */

Test(driver, peers)
{
    struct softgpu_config c;
    struct gpu *g[2];
    cr_assert(softgpu_config_from_env(&c));
    c.devices = 2;
    cr_assert(softgpu_configure(&c));
    OK(driver_open(1, &cu, &err));
    OK(gpu_open(&cu, 0, &g[0], &err));
    void *x = on_device(g[0]), *y0 = empty(g[0]);
    OK(gpu_sync(g[0], &err));
    OK(gpu_open(&cu, 1, &g[1], &err)); /* current from now on */
    void *y = empty(g[1]), *z = empty(g[1]);
    OK(gpu_copy_peer(g[1], z, g[0], x, N * sizeof(float), &err));
    cr_assert(holds(g[1], z, 1));
    FAILS(gpu_copy(g[1], z, x, 64, &err), KLEIN_E_INTERNAL, "without peer access");
    OK(gpu_enable_peer(g[1], g[0], &err));
    OK(gpu_enable_peer(g[1], g[0], &err)); /* again: no error */
    scale(g[1], y, x, 7);                  /* reads the peer's memory */
    cr_assert(holds(g[1], y, 7));

    CUevent ready; /* device 0 waits for device 1 */
    OK(gpu_event_open(g[1], 0, &ready, &err));
    scale(g[1], x, y, 1);
    OK(gpu_event_record(g[1], ready, &err));
    OK(gpu_bind(g[0], &err));
    OK(gpu_event_wait(g[0], ready, &err));
    scale(g[0], y0, x, 2);
    cr_assert(holds(g[0], y0, 14));
    scale(g[0], y0, y, 1); /* but device 0 may not read device 1 */
    FAILS(gpu_sync(g[0], &err), KLEIN_E_INTERNAL,
          "reads memory of device 1 from device 0 without peer access");
    OK(gpu_bind(g[1], &err));
    gpu_event_close(g[1], ready);
    gpu_close(g[1]);
    gpu_close(g[0]);
    driver_close(&cu);
}
