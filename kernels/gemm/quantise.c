#include "quantise.h"
#include "../pointwise/launch_rows.h"

enum klein_status quantise_rows(struct gpu *g, struct tensor y, struct tensor row_scale, struct tensor x,
                                struct klein_error *err)
{
    if (x.dtype != DT_BF16 || y.dtype != DT_F8E4M3 || row_scale.dtype != DT_F32)
        return fail(err, KLEIN_E_UNSUPPORTED, "quantise: %s to %s with %s scales; needs BF16, F8_E4M3, F32",
                    dtype_name(x.dtype), dtype_name(y.dtype), dtype_name(row_scale.dtype));
    if (y.rows != x.rows || y.cols != x.cols || row_scale.cols != x.rows)
        return fail(err, KLEIN_E_INTERNAL, "quantise: x is %dx%d, y %dx%d with %d scales", x.rows, x.cols,
                    y.rows, y.cols, row_scale.cols);
    if (!vectors_fit(x, 8) || !vectors_fit(y, 16))
        return fail(err, KLEIN_E_UNSUPPORTED,
                    "quantise: rows of %d; needs a multiple of 16, and aligned operands", x.cols);
    const struct quantise_args k = {matrix_of(y), matrix_of(x), row_scale.ptr, x.rows, x.cols};
    return launch_rows(g, "quantise_sm89_bf16", x.rows, QUANTISE_THREADS, QUANTISE_SHARED, &k, err);
}
