/* soft_gemm: how fast the soft GPU executes a GEMM kernel on this machine, per host thread. This says nothing about any GPU.
 *   soft_gemm [kernel [m n k [host threads]]] */
#include "../kernels/gemm/linear_launch.h"
#include "../kernels/soft/softgpu.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

static double seconds(void)
{
    struct timespec t;
    clock_gettime(CLOCK_PROCESS_CPUTIME_ID,
                  &t); /* of all threads: other work on the machine does not count */
    return (double)t.tv_sec + 1e-9 * (double)t.tv_nsec;
}

static enum klein_status run(struct gpu *g, int m, int n, int k, const char *kernel, int threads,
                             struct klein_error *err)
{
    const size_t bytes[] = {sizeof(bf16) * (size_t)m * (size_t)k, sizeof(bf16) * (size_t)n * (size_t)k,
                            sizeof(bf16) * (size_t)m * (size_t)n};
    void *memory[3];
    for (int i = 0; i < 3; i++) {
        TRY(gpu_alloc(g, bytes[i], &memory[i], err));
        TRY(gpu_fill(g, memory[i], 0x3c, bytes[i], err));
    }
    struct linear_kernel_args a = {.x = memory[0], .ldx = k, .m = m, .k = k, .segments = 1};
    a.segment[0] = (struct linear_segment){
        .cols = n, .y_type = ELEMENT_BF16, .ldy = n, .y = memory[2], .group[0] = {.w = memory[1], .ldw = k}};
    setenv("KLEIN_GEMM", kernel, 1);
    double best = 1e9;
    for (int i = 0; i < 3; i++) {
        double start = seconds();
        TRY(gemm_launch(g, DT_BF16, &a, err));
        TRY(gpu_sync(g, err));
        double t = seconds() - start;
        if (t < best) best = t;
    }
    printf("%s %dx%dx%d on %d host threads: %.1f ms of processor time, %.1f GFLOP/s per core (emulation, not "
           "a GPU)\n",
           kernel, m, n, k, threads, 1e3 * best, 2e-9 * m * n * k / best);
    return KLEIN_OK;
}

int main(int argc, char **argv)
{
    const char *kernel = argc > 1 ? argv[1] : "gemm_sm80_linear_128x128_s3";
    int m = argc > 4 ? atoi(argv[2]) : 512, n = argc > 4 ? atoi(argv[3]) : 512,
        k = argc > 4 ? atoi(argv[4]) : 1024;
    int threads = argc > 5 ? atoi(argv[5]) : 1;
    struct klein_error err = {0};
    struct driver cu;
    struct gpu *g = NULL;
    struct softgpu_config c;
    if (!softgpu_config_from_env(&c)) return 2;
    c.threads = threads;
    softgpu_configure(&c);
    enum klein_status status = driver_open(1, &cu, &err);
    if (status == KLEIN_OK) status = gpu_open(&cu, 0, &g, &err);
    if (status == KLEIN_OK) status = run(g, m, n, k, kernel, threads, &err);
    if (status != KLEIN_OK) fprintf(stderr, "soft_gemm: %s\n", err.message);
    gpu_close(g);
    return status != KLEIN_OK;
}
