/* route.h: rows to the devices of a group by the kernels that make them: an address instead of y's (args.h: exchange_route). Whoever
 * reads them has met the others after the kernel that stores them (exchange.cu). */
#ifndef KLEIN_GROUP_ROUTE_H
#define KLEIN_GROUP_ROUTE_H

#include "../device/device.h"
#include "../device/ptx_sm80.h"

enum { ROUTE_ROW_BITS = 28 }; /* ops.h: EXCHANGE_ROW_BITS */

/* Where a device has in its arena what this one has at `own`. */
DEVICE char *route_place(const exchange_state *s, int device, const void *own)
{
    return s->arena[device] + (static_cast<const char *>(own) - s->arena[s->rank]);
}

/* Row `row` of y, whose rows are `bytes` apart, on the device that has it. */
DEVICE char *route_row(const exchange_route &r, void *y, int row, int64_t bytes SITE)
{
    if (!r.state) return static_cast<char *>(y) + row * bytes;
    const uint32_t place = ld_global_4(r.place + row PASS_SITE);
    return route_place(r.state, (int)(place >> ROUTE_ROW_BITS), y) +
           (int64_t)(place & ((1u << ROUTE_ROW_BITS) - 1)) * bytes;
}

/* Column `column` of row 0 on the device that has it: whole columns of y are one device's. And the row there of row `row`. */
DEVICE char *route_column(const exchange_route &r, const void *y, int column, int element)
{
    return route_place(r.state, column / r.cols, y) + column % r.cols * element;
}
DEVICE int64_t route_row_of(const exchange_route &r, int row SITE)
{
    return (int64_t)ld_global_4(r.place + row PASS_SITE);
}

#endif
