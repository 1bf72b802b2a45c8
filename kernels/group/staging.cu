/* staging.cu: rows of an exchange to and from messages, which are contiguous, for devices that do not reach each other's memory (nccl_exchange.c). A
 * message is the rows of each span of each tensor; what is staged of it is a run of its vectors of 16 bytes. */
#include "../device/device.h"
#include "../device/ptx_sm80.h"
#include "../device/ptx_sm90.h"
#include "staging.h"

template <bool pack>
DEVICE void copy_staged(const staging_kernel_args &args)
{
    const auto &way = args.way[block_y()];
    const int rows = way.span[0].rows + way.span[1].rows + way.span[2].rows;
    grid_wait();
    grid_launch_dependents();
    for (int i = block_x() * STAGING_THREADS + thread_index(); i < way.count;
         i += grid_x() * STAGING_THREADS) {
        const int row = (way.first + i) / way.width, column = (way.first + i) % way.width;
        int in_tensor = row % rows, s = 0;
        while (in_tensor >= way.span[s].rows) in_tensor -= way.span[s++].rows;
        char *const there =
            way.rows[row / rows] + (way.span[s].row + in_tensor) * way.ld[row / rows] + column * 16;
        char *const staged = way.staged + (int64_t)i * 16;
        if (pack)
            st_global_16(staged, ld_global_16(there));
        else
            st_global_16(there, ld_global_16(staged));
    }
}

KERNEL(staging_pack, staging_kernel_args, STAGING_THREADS, 4)
{
    copy_staged<true>(args);
}
KERNEL(staging_unpack, staging_kernel_args, STAGING_THREADS, 4)
{
    copy_staged<false>(args);
}
