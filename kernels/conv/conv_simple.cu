/* conv_simple.cu: convolution for what the fast kernels do not take: f32, operands of any type and alignment. The same product as in
 * conv_sm80.cu, without tensor cores: a block makes 64 pixels x 64 couts, a thread 4 x 4 of them, k in blocks of 16 that all fetch
 * an element at a time and exchange as floats through shared memory. */
#include "../device/device.h"
#include "../device/elements.h"
#include "../device/ptx.h"

enum {
    TILE = 64,
    BK = 16,
    EACH = 4 /* pixels and couts of a thread */,
    PITCH = TILE + 4 /* spreads banks */
};

struct alignas(16) conv_simple_shared {
    float x[BK][PITCH], w[BK][PITCH];
};
static_assert(sizeof(conv_simple_shared) == CONV_SIMPLE_SHARED, "args.h");

/* Element k of [tap][channel] for a pixel of y; zero outside of x. */
DEVICE float x_at(const conv_kernel_args &args, int pixel, int k)
{
    const int tap = k / CONV_PADDED(args.cin), channel = k - tap * CONV_PADDED(args.cin);
    const int y = pixel / args.ow, dy = tap / args.ksize;
    const int row = y * args.stride + args.top + dy;
    const int col = (pixel - y * args.ow) * args.stride + args.left + tap - dy * args.ksize;
    const bool inside = pixel < args.pixels && tap < args.ksize * args.ksize && channel < args.cin &&
                        (uint32_t)row < (uint32_t)args.h << args.up &&
                        (uint32_t)col < (uint32_t)args.w_px << args.up;
    if (!inside) return 0;
    const int64_t at = (int64_t)(row >> args.up) * args.w_px + (col >> args.up);
    return load_any(args.x.ptr, args.x.type, at * args.x.ld + channel);
}

DEVICE void four(float (&f)[EACH], uint32_t address)
{
    const u32x4 v = ld_shared_16(address);
    f[0] = float_from_bits(v.x), f[1] = float_from_bits(v.y);
    f[2] = float_from_bits(v.z), f[3] = float_from_bits(v.w);
}

KERNEL(conv_simple, conv_kernel_args, CONV_SIMPLE_THREADS, 2)
{
    SHARED(conv_simple_shared, s);
    const int tiles = ceil_div(args.pixels, (int)TILE);
    const int pixel0 = block_x() % tiles * TILE, cout0 = block_x() / tiles * TILE;
    const int total = args.ksize * args.ksize * CONV_PADDED(args.cin);
    const int k_mine = thread_index() % BK, row_mine = thread_index() / BK; /* fetches rows 16 apart */
    const int across = thread_index() % 16, down = thread_index() / 16; /* makes couts, pixels 4 across.. */
    const uint32_t x = shared_address(s.x), w = shared_address(s.w);
    grid_wait();

    float d[EACH][EACH] = {};
    for (int k0 = 0; k0 < total; k0 += BK) {
        const int k = k0 + k_mine;
        float x_new[EACH], w_new[EACH];
        UNROLL
        for (int i = 0; i < EACH; i++) {
            const int row = row_mine + 16 * i, cout = cout0 + row;
            x_new[i] = x_at(args, pixel0 + row, k);
            w_new[i] =
                cout < args.cout && k < total ? load_any(args.w.ptr, args.w.type, cout * args.w.ld + k) : 0;
        }
        sync_threads(); /* the k block before is used up */
        UNROLL
        for (int i = 0; i < EACH; i++) {
            const uint32_t to = 4u * (uint32_t)(k_mine * PITCH + row_mine + 16 * i);
            st_shared_4(x + to, bits_from_float(x_new[i]));
            st_shared_4(w + to, bits_from_float(w_new[i]));
        }
        sync_threads();
        UNROLL
        for (int i = 0; i < BK; i++) {
            float a[EACH], b[EACH];
            four(a, x + 4u * (uint32_t)(i * PITCH + EACH * down));
            four(b, w + 4u * (uint32_t)(i * PITCH + EACH * across));
            UNROLL
            for (int e = 0; e < EACH * EACH; e++)
                d[e / EACH][e % EACH] = fmaf(a[e / EACH], b[e % EACH], d[e / EACH][e % EACH]);
        }
    }

    UNROLL
    for (int e = 0; e < EACH * EACH; e++) {
        const int pixel = pixel0 + EACH * down + e / EACH, cout = cout0 + EACH * across + e % EACH;
        if (pixel >= args.pixels || cout >= args.cout) continue;
        float f = d[e / EACH][e % EACH];
        if (args.bias.ptr) f += load_any(args.bias.ptr, args.bias.type, cout);
        if (args.residual.ptr)
            f += load_any(args.residual.ptr, args.residual.type, pixel * args.residual.ld + cout);
        store_any(args.y.ptr, args.y.type, pixel * args.y.ld + cout, f);
    }
}
