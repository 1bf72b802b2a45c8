/* u8.cu: pictures of bytes to numbers in [-1, 1] and back, in the f32 operations that ops.h states, so that all backends agree. */
#include "../device/device.h"
#include "../device/elements.h"

DEVICE float byte_from(float x) /* an integer, halves to even */
{
    const float z = x * 0.5f + 0.5f;
    return rintf((z > 0 ? z < 1 ? z : 1 : 0) * 255); /* NaN: 0 */
}

DEVICE float from_byte(float x)
{
    return x / 255 * 2 - 1;
}

template <class X, class Y, int n, class F>
DEVICE void u8_map(const copy_kernel_args &args, F convert)
{
    const place at = place_in(args.spread);
    grid_wait();
    grid_launch_dependents();
    for (int row = at.first; row < at.end; row += args.spread.down) {
        float f[n];
        unpack(f, load<X, n>(args.x, row, at.column * n));
        UNROLL
        for (int j = 0; j < n; j++) f[j] = convert(f[j]);
        store(args.y, row, at.column * n, pack<Y>(f));
    }
}

KERNEL(u8_from_bf16, copy_kernel_args, SPREAD_THREADS, 4)
{
    u8_map<bf16, uint8_t, 8>(args, byte_from);
}
KERNEL(u8_from_f32, copy_kernel_args, SPREAD_THREADS, 4)
{
    u8_map<float, uint8_t, 4>(args, byte_from);
}
KERNEL(u8_from_any, copy_kernel_args, SPREAD_THREADS, 4)
{
    u8_map<any_type, any_type, 1>(args, byte_from);
}

KERNEL(u8_to_bf16, copy_kernel_args, SPREAD_THREADS, 4)
{
    u8_map<uint8_t, bf16, 8>(args, from_byte);
}
KERNEL(u8_to_f32, copy_kernel_args, SPREAD_THREADS, 4)
{
    u8_map<uint8_t, float, 4>(args, from_byte);
}
KERNEL(u8_to_any, copy_kernel_args, SPREAD_THREADS, 4)
{
    u8_map<any_type, any_type, 1>(args, from_byte);
}
