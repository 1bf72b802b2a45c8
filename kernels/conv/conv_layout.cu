/* conv_layout.cu: weights from the files' order, [cout][cin][tap], to the one that the convolutions read: [cout][tap][cin], cin padded
 * with zeros to whole 16 bytes of bf16, in the type of the activations. Once per model. */
#include "../device/device.h"
#include "../device/elements.h"
#include "../device/ptx.h"

KERNEL(conv_layout_pack, conv_layout_args, CONV_LAYOUT_THREADS, 1)
{
    const int padded = CONV_PADDED(args.cin), k = args.taps * padded;
    const int64_t i = (int64_t)block_x() * CONV_LAYOUT_THREADS + thread_index();
    grid_wait();
    if (i >= (int64_t)args.cout * k) return;
    const int row = (int)(i / k), column = (int)(i - (int64_t)row * k), tap = column / padded,
              channel = column - tap * padded;
    const float f = channel < args.cin ? load_any(args.w.ptr, args.w.type,
                                                  row * args.w.ld + (int64_t)channel * args.taps + tap)
                                       : 0;
    store_any(args.packed.ptr, args.packed.type, row * args.packed.ld + column, f);
}
