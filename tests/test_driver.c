/* The host side of the GPU backend, driven against the soft GPU: opening, memory, launches by name, errors that say what to do. */
#include "support/support.h"

#include "../kernels/cuda/gpu.h"
#include "../kernels/soft/softgpu.h"

#include <math.h>
#include <stdlib.h>

static struct driver cu;
static struct klein_error err;

static struct gpu *open_gpu(const char *claim)
{
    struct gpu *g;
    setenv("KLEIN_SOFT", claim, 1);
    OK(driver_open(1, &cu, &err));
    OK(gpu_open(&cu, 0, &g, &err));
    return g;
}

static void close_gpu(struct gpu *g)
{
    gpu_close(g);
    driver_close(&cu);
}

Test(driver, scale_runs_by_name)
{
    struct gpu *g = open_gpu("sm_80");
    enum { N = 10007 };
    static float x[N], y[N];
    for (int i = 0; i < N; i++) x[i] = (float)(i - 5000);
    void *dx, *dy;
    OK(gpu_alloc(g, sizeof x, &dx, &err));
    OK(gpu_alloc(g, sizeof y, &dy, &err));
    gpu_op(g, "scale", "10007");
    OK(gpu_upload(g, dx, x, sizeof x, &err));
    struct scale_args args = {dy, dx, 3, N};
    OK(gpu_launch(
        g, &(struct launch){.kernel = "scale_f32", .grid = {7}, .threads = SCALE_THREADS, .args = &args},
        &err));
    OK(gpu_download(g, y, dy, sizeof y, &err));
    for (int i = 0; i < N; i++) cr_assert(y[i] == 3 * x[i], "y[%d] = %g", i, y[i]);
    gpu_free(g, dx);
    gpu_free(g, dy);
    close_gpu(g);
}
