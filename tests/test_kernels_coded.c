/* Index-coded data: every product is of one element of x and one of w, so that each element of y says of which; all exact. A fragment, a
 * swizzle, a scale or a tap that is another's gives another number, where among random ones it may pass as an error of rounding.
 * Every matrix kernel of op linear and of op conv, on the chip that it is for. */
#include "soft/products.h"

#include "../kernels/conv/conv_launch.h"
#include "../kernels/conv/conv_pick.h"
#include "../kernels/gemm/gemm_pick.h"
#include "../kernels/gemm/linear_launch.h"

/* Quicker; the kernels' own tests look for races. */
static struct gpu *open_quick(const char *chip)
{
    setenv("KLEIN_SOFT_RACES", "0", 1);
    return open_gpu(chip, 7, SOFTGPU_RANDOM);
}

/* ---- op linear ------------------------------------------------------------------------------------------------------------ */

/* What one of y is if the digit is 1. */
static double unit_of(const struct product *p, int row, int i, int g, int col)
{
    const int swiglu = p->s->kind[i] == SWIGLU, hot = hot_k(p->s, row);
    const struct operand *v = p->vector[i][g];
    if (!(p->s->options & E4M3)) return swiglu ? CODED_GATE : 1;
    const double x = at(&p->x_scale, scale_rows(p->s) > 1 ? hot / 128 : 0, row),
                 w = x * at(&v[W_SCALE], 0, col);
    return swiglu ? CODED_GATE * w * x * at(&v[UP_SCALE], 0, col) : w;
}

/* One digit of each element of y, added to what is known of it; heads, which are normed and rotated, by their value. */
static void read_digit(const struct product *p, int digit, const char *y, uint64_t *codes, const char *kernel)
{
    for (int row = 0; row < p->s->m; row++)
        for (int i = 0; i < p->segments; i++)
            for (int c = 0; c < p->s->cols[i]; c++) {
                const int g = p->s->split && row >= p->s->split, n = p->from[i] + c;
                const double v = value(p, y, row, n), t = p->truth[row * p->cols + n],
                             d = v / unit_of(p, row, i, g, c);
                if (p->s->kind[i] == HEADS) {
                    cr_assert(fabs(v - t) <= 0x1p-7 * fmax(1, fabs(t)),
                              "%s, digit %d: y[%d, %d] is %g, not %g", kernel, digit, row, n, v, t);
                    continue;
                }
                cr_assert(d == rint(d) && d >= 0 && d < 16, "%s, digit %d: y[%d, %d] is %g digits", kernel,
                          digit, row, n, d);
                codes[row * p->cols + n] |= (uint64_t)d << 4 * digit;
            }
}

static void check_codes(const struct shape *s, const struct product *p, const uint64_t *codes,
                        const char *kernel)
{
    for (int row = 0; row < s->m; row++)
        for (int i = 0; i < p->segments; i++)
            for (int c = 0; c < s->cols[i]; c++) {
                const int g = s->split && row >= s->split, n = p->from[i] + c;
                const uint64_t wanted = code((uint64_t)(g * p->cols + n), hot_k(s, row), s),
                               got = codes[row * p->cols + n], k = (uint64_t)s->k;
                cr_assert(s->kind[i] == HEADS || got == wanted,
                          "%s: y[%d, %d] has weight [%llu, %llu], not [%llu, %llu]", kernel, row, n,
                          (unsigned long long)(got / k), (unsigned long long)(got % k),
                          (unsigned long long)(wanted / k), (unsigned long long)(wanted % k));
            }
}

static void check_gemm(const struct gemm_variant *v)
{
    static const struct shape linear = {"linear", 140, 144, 37, {PLAIN}, {200}, CODED, 1},
                              qkv = {"qkv", 140, 144, 0, {HEADS, PLAIN, SWIGLU}, {128, 72, 72}, CODED, 1};
    struct shape s = v->kinds == GEMM_QKV ? qkv : linear;
    s.options |= v->groups ? SCALE_GROUPS : v->type == DT_F8E4M3 ? E4M3 : 0;
    struct gpu *g = open_quick(v->arch_exact ? "sm_90a" : v->arch == 80 ? "sm_80" : "sm_89");
    uint64_t *codes = NULL;
    setenv("KLEIN_GEMM", v->name, 1);
    for (int digit = 0; digit < DIGITS; digit++) {
        struct shape of_digit = s;
        of_digit.options |= CODED_DIGIT(digit);
        struct product *p = make_product(&of_digit);
        if (!codes) codes = calloc((size_t)s.m * (size_t)p->cols, sizeof *codes);
        char *y = malloc(p->y.bytes);
        cr_assert(codes && y);
        upload(g, p);
        const struct linear_kernel_args a = args_of(p);
        OK(gemm_launch(g, v->type, &a, &err));
        OK(gpu_download(g, y, p->y.memory, p->y.bytes, &err));
        check_untouched(p, y, v->name);
        read_digit(p, digit, y, codes, v->name);
        if (digit == DIGITS - 1) check_codes(&s, p, codes, v->name);
        free(y);
        release(g, p);
        free_product(p);
    }
    free(codes);
    close_gpu(g);
}

/* Those whose results are e4m3 are fp8_linear's: a digit would come out times what the largest of 128 columns allows. */
Test(kernels_coded, linear)
{
    const struct gemm_variant *v;
    int checked = 0;
    for (int i = 0; (v = gemm_variant(i)); i++) {
        if (gemm_to_e4m3(v)) continue;
        check_gemm(v);
        checked++;
    }
    cr_assert_geq(checked, 29);
}

/* ---- op conv -------------------------------------------------------------------------------------------------------------- */

/* Of 3 x 3 pixels of x one has a 1, in a channel of its own: each window of 3 x 3 has one, or none at the edges. Enlarged, a pixel is four,
 * of which a window has up to four: y is then a sum of digits. */
enum { H = 10, W = 20, CIN = 72, COUT = 88, TAPS = 9, LARGEST = 4 * H * W * COUT };
static const struct form {
    const char *name;
    int stride, upsample;
} forms[] = {{"stride 1", 1, 0}, {"stride 2", 2, 0}, {"upsample", 1, 1}};

/* The channel that has it; -1: none. */
static int hot_channel(int r, int c)
{
    return r % 3 == 1 && c % 3 == 2 ? (5 * (r / 3 * (W / 3) + c / 3) + 3) % CIN : -1;
}

static uint64_t weight_code(int cout, int cin, int tap)
{
    return ((uint64_t)cout * CIN + (uint64_t)cin) * TAPS + (uint64_t)tap;
}

static float digit_of(uint64_t n, int digit)
{
    return (float)(n >> 4 * digit & 15);
}

/* What y is, by the definition; the weights that it is the digits of, if text is not NULL. */
static float window(const struct form *f, int row, int col, int cout, int digit, char *text, size_t size)
{
    float sum = 0;
    for (int tap = 0; tap < TAPS; tap++) {
        int r = row * f->stride + tap / 3, c = col * f->stride + tap % 3;
        if (f->stride == 1) r--, c--; /* stride 2 has its zeros at the right and below */
        if (r < 0 || c < 0 || r >= H << f->upsample || c >= W << f->upsample) continue;
        const int cin = hot_channel(r >> f->upsample, c >> f->upsample);
        if (cin < 0) continue;
        sum += digit_of(weight_code(cout, cin, tap), digit);
        if (text) {
            const int n = snprintf(text, size, " [%d, %d, tap %d]", cout, cin, tap);
            text += n, size -= (size_t)n;
        }
    }
    return sum;
}

/* All digits by one kernel; want: y of each. */
static void check_conv(const struct form *f, const struct conv_variant *v, const char *chip,
                       const float *want)
{
    static bf16 x[H * W * CIN], w[COUT * CIN * TAPS], y[LARGEST];
    const int oh = (H << f->upsample) / f->stride, ow = (W << f->upsample) / f->stride;
    const size_t bytes = (size_t)(oh * ow) * COUT * sizeof(bf16);
    struct gpu *g = open_quick(chip);
    setenv("KLEIN_CONV", v->name, 1);
    for (int i = 0; i < H * W * CIN; i++)
        x[i] = bf16_from_f32(hot_channel(i / CIN / W, i / CIN % W) == i % CIN);
    struct conv_args a = {.x = tensor_of(to_device(g, x, sizeof x), DT_BF16, H * W, CIN),
                          .y = tensor_of(NULL, DT_BF16, oh * ow, COUT),
                          .w = conv_packed(COUT, CIN, 3, DT_BF16),
                          .h = H,
                          .w_px = W,
                          .ksize = 3,
                          .stride = f->stride,
                          .upsample = f->upsample};
    void *scratch = NULL;
    const size_t scratch_bytes = conv_scratch(&a);
    if (scratch_bytes) OK(gpu_alloc(g, scratch_bytes, &scratch, &err));
    OK(gpu_alloc(g, bytes, &a.y.ptr, &err));
    OK(gpu_alloc(g, COUT * (size_t)a.w.ld * sizeof(bf16), &a.w.ptr, &err));
    for (int digit = 0; digit < DIGITS; digit++, want += oh * ow * COUT) {
        for (int i = 0; i < COUT * CIN * TAPS; i++) w[i] = bf16_from_f32(digit_of((uint64_t)i, digit));
        const struct tensor file = tensor_of(to_device(g, w, sizeof w), DT_BF16, COUT, CIN * TAPS);
        OK(conv_pack(g, a.w, file, 3, &err));
        OK(conv_launch(g, &a, scratch, scratch_bytes, &err));
        OK(gpu_download(g, y, a.y.ptr, bytes, &err));
        gpu_free(g, file.ptr);
        for (int i = 0; i < oh * ow * COUT; i++) {
            if (f32_from_bf16(y[i]) == want[i]) continue;
            const int row = i / COUT / ow, col = i / COUT % ow, cout = i % COUT;
            char text[TAPS * 40] = "";
            window(f, row, col, cout, digit, text, sizeof text);
            cr_assert(0, "%s, %s: digit %d of y[%d, %d, %d] is %g, not %g: that of weight%s", v->name,
                      f->name, digit, row, col, cout, f32_from_bf16(y[i]), want[i], text);
        }
    }
    close_gpu(g);
}

Test(kernels_coded, conv)
{
    static const int expected[] = {8, 5, 8}; /* wgmma does not do stride 2 */
    float *want = malloc(sizeof *want * DIGITS * LARGEST);
    cr_assert(want);
    for (int x = 0; x < 3; x++) {
        const struct form *f = &forms[x];
        const int oh = (H << f->upsample) / f->stride, ow = (W << f->upsample) / f->stride;
        for (int i = 0; i < DIGITS * oh * ow * COUT; i++)
            want[i] = window(f, i / COUT / ow % oh, i / COUT % ow, i % COUT, i / (oh * ow * COUT), NULL, 0);
        const struct conv_variant *v;
        int taken = 0;
        for (int i = 0; (v = conv_variant(i)); i++) {
            const int hopper = strstr(v->name, "sm90") != NULL;
            const struct conv_shape s = {hopper ? 90 : 80, 132,         DT_BF16, CIN, COUT, 3,
                                         f->stride,        f->upsample, oh,      ow,  1,    1};
            if (!conv_takes(v, &s)) continue;
            check_conv(f, v, hopper ? "sm_90a" : "sm_80", want);
            taken++;
        }
        cr_assert(taken == expected[x], "%s: %d", f->name, taken);
    }
    free(want);
}
