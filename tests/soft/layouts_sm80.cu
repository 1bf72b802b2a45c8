/* layouts_sm80.cu: fragments in and out of registers as they are; test_layouts.c knows where their elements ought to be. */
#include "../../kernels/device/device.h"
#include "../../kernels/device/ptx.h"
#include "../../kernels/device/tile.h"
#include "args.h"

KERNEL(layouts_sm80_mma, layout_args, 32, 1)
{
    const int lane = lane_index();
    const u32x4 from_a = ld_global_16((const char *)args.a + 16 * lane);
    const uint32_t a[4] = {from_a.x, from_a.y, from_a.z, from_a.w};
    const uint32_t b[2] = {ld_global_4((const char *)args.b + 8 * lane),
                           ld_global_4((const char *)args.b + 8 * lane + 4)};
    float d[4] = {};
    if (args.kind == LAYOUT_E4M3)
        mma_m16n8k32_e4m3(d, a, b);
    else
        mma_m16n8k16_bf16(d, a, b);
    for (int i = 0; i < 4; i++) ((float *)args.y)[4 * lane + i] = d[i];
}

struct alignas(1024) tile_shared {
    uint8_t tile[8192];
};

/* A tile of 64 rows by the functions of tile.h: as operand a, as operand b. */
KERNEL(layouts_sm80_tile, layout_args, 32, 1)
{
    SHARED(tile_shared, s);
    const int lane = lane_index();
    const uint32_t tile = shared_address(s.tile);
    for (int i = 16 * lane; i < 8192; i += 512)
        st_shared_16(tile + i, ld_global_16((const char *)args.a + i));
    sync_threads();
    for (int step = 0; step < 4; step++) {
        uint32_t a[4][4], b[8][2];
        load_a(a, tile, 0, step);
        load_b(b, tile, 0, step);
        uint32_t *y = (uint32_t *)args.y + (32 * step + lane) * 32;
        for (int i = 0; i < 16; i++) y[i] = a[i / 4][i % 4], y[16 + i] = b[i / 2][i % 2];
    }
}
