/* nccl_standin.cu: sends and receives through mailboxes, all of a group at once. Who gets another length than was sent waits for ever. */
#include "../../kernels/device/device.h"
#include "../../kernels/device/ptx_peer.h"
#include "nccl_standin.h"

DEVICE void copy(char *to, const char *from, uint64_t bytes)
{
    for (uint64_t i = 0; i < bytes; i += 16) st_global_16(to + i, ld_global_16(from + i));
}

KERNEL(nccl_standin_transfer, standin_args, STANDIN_THREADS, 1)
{
    uint64_t done[2 * STANDIN_RANKS] = {};
    if (thread_index()) return;
    for (int left = args.n; left;) {
        bool moved = false;
        for (int i = 0; i < args.n; i++) {
            const auto &op = args.op[i];
            if (done[i] == op.bytes) continue;
            const uint32_t filled = ld_acquire_sys_4(&op.box->filled),
                           emptied = ld_acquire_sys_4(&op.box->emptied);
            if ((filled == emptied) != (op.send != 0) || (!op.send && op.box->message != op.bytes)) continue;
            const uint64_t chunk = STANDIN_CHUNK, rest = op.bytes - done[i],
                           bytes = rest < chunk ? rest : chunk;
            if (op.send) op.box->message = op.bytes;
            copy(op.send ? op.box->data : op.buffer + done[i], op.send ? op.buffer + done[i] : op.box->data,
                 bytes);
            st_release_sys_4(op.send ? &op.box->filled : &op.box->emptied, (op.send ? filled : emptied) + 1);
            done[i] += bytes;
            left -= done[i] == op.bytes;
            moved = true;
        }
        if (moved) continue;
        if (ld_acquire_sys_4(args.stop)) return;
        nanosleep(100);
    }
}
