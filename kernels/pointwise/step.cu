/* step.cu: what the sampler does to f32 latents: Euler's step y = x + dt v, and guidance y = u + g (c - u). y may be an operand. */
#include "../device/device.h"
#include "../device/elements.h"

template <class T, int n, class F>
DEVICE void step_map(const step_args &args, F combine, const float *factor_at, float factor)
{
    const place at = place_in(args.spread);
    grid_wait();
    grid_launch_dependents();
    if (factor_at) factor = float_from_bits(ld_global_4(factor_at));
    for (int row = at.first; row < at.end; row += args.spread.down) {
        float a[n], b[n];
        unpack(a, load<T, n>(args.a, row, at.column * n));
        unpack(b, load<T, n>(args.b, row, at.column * n));
        UNROLL
        for (int j = 0; j < n; j++) a[j] = combine(a[j], b[j], factor);
        store(args.y, row, at.column * n, pack<T>(a));
    }
}

DEVICE float euler(float x, float v, float dt)
{
    return fmaf(dt, v, x);
}

DEVICE float cfg(float uncond, float cond, float guidance)
{
    return fmaf(guidance, cond - uncond, uncond);
}

KERNEL(step_euler_f32, step_args, SPREAD_THREADS, 4)
{
    step_map<float, 4>(args, euler, args.dt, 0);
}
KERNEL(step_euler_any, step_args, SPREAD_THREADS, 4)
{
    step_map<any_type, 1>(args, euler, args.dt, 0);
}
KERNEL(step_cfg_f32, step_args, SPREAD_THREADS, 4)
{
    step_map<float, 4>(args, cfg, nullptr, args.guidance);
}
KERNEL(step_cfg_any, step_args, SPREAD_THREADS, 4)
{
    step_map<any_type, 1>(args, cfg, nullptr, args.guidance);
}
