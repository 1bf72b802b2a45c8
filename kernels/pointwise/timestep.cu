/* timestep.cu: the sinusoids that tell the model its step. Few numbers, and angles up to 1000 whose last bits matter: so f64
 * throughout, and sine and cosine by reduction to +-pi/4 and their series, which also needs no table and no stack. */
#include "../device/device.h"
#include "../device/elements.h"

/* For |r| <= pi/4 the terms left out are below 1e-11. */
DEVICE double sine_series(double r)
{
    const double r2 = r * r;
    return r * (1 - r2 / 6 * (1 - r2 / 20 * (1 - r2 / 42 * (1 - r2 / 72 * (1 - r2 / 110)))));
}
DEVICE double cosine_series(double r)
{
    const double r2 = r * r;
    return 1 - r2 / 2 * (1 - r2 / 12 * (1 - r2 / 30 * (1 - r2 / 56 * (1 - r2 / 90 * (1 - r2 / 132)))));
}

KERNEL(timestep_f32, timestep_kernel_args, TIMESTEP_THREADS, 1)
{
    grid_wait();
    grid_launch_dependents();
    const int i = block_x() * TIMESTEP_THREADS + thread_index();
    if (i >= args.steps * args.half) return;
    const int s = i / args.half, k = i - s * args.half;
    const double ln_10000 = 9.210340371976184, half_pi = 1.5707963267948966;
    const double t = float_from_bits(ld_global_4(args.t + s));
    const double angle = t * 1000 * exp(-ln_10000 * k / args.half);
    const double quarter = rint(angle / half_pi), r = fma(-quarter, half_pi, angle);
    const int turn = (int)(long long)quarter & 3; /* quarter turns */
    const double c = cosine_series(r), d = sine_series(r);
    const double cosine = turn == 0 ? c : turn == 1 ? -d : turn == 2 ? -c : d;
    const double sine = turn == 0 ? d : turn == 1 ? c : turn == 2 ? -d : -c;
    store_any(args.y.ptr, ELEMENT_F32, s * args.y.ld + k, (float)cosine);
    store_any(args.y.ptr, ELEMENT_F32, s * args.y.ld + args.half + k, (float)sine);
}
