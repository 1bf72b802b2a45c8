/* Step 1, naive: y = x W^T with a thread per result.
 *
 * Every thread walks along its row of x and its row of W, a pair of bf16 of each at a time. Nothing is shared between threads but what the
 * caches keep. This is the definition, and what the later steps must agree with. All steps: bf16, f32 sums, one segment without epilogue
 * (args.h), any number of rows, columns and k multiples of 8. Only some of them need that, but all are tested with it.
 *
 * Static figures (nvcc 13.0, sm_80): 48 registers, no shared memory. What limits it: reads. 4 FLOP for 8 bytes, and a warp's 16 rows of W
 * are 16 different sectors for 4 bytes each: 18 sectors where the bytes would fill 8. */
#include "../../../kernels/device/device.h"
#include "../../../kernels/device/ptx.h"

enum { SIDE = 16 /* of a block's square of results */, THREADS = SIDE * SIDE };

KERNEL(ladder_gemm_naive, linear_kernel_args, THREADS, 1)
{
    const linear_segment &out = args.segment[0];
    const int row = block_x() * SIDE + thread_index() / SIDE, col = block_y() * SIDE + thread_index() % SIDE;
    if (row >= args.m || col >= out.cols) return;
    const bf16 *x = static_cast<const bf16 *>(args.x) + row * args.ldx,
               *w = static_cast<const bf16 *>(out.group[0].w) + col * out.group[0].ldw;
    float sum = 0;
    for (int i = 0; i < args.k; i += 2) {
        const uint32_t a = ld_global_4(x + i), b = ld_global_4(w + i);
        sum = fmaf(bf16_low(a), bf16_low(b), sum);
        sum = fmaf(bf16_high(a), bf16_high(b), sum);
    }
    static_cast<bf16 *>(out.y)[row * out.ldy + col] = bf16_from_float(sum);
}
