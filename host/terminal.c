#include "terminal.h"

#include "../base/error.h"
#include "../engine/resize.h"
#include "image.h"

#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <unistd.h>

#define MAX_COLUMNS 80
#define CELL_WIDTH                                                                                           \
    8 /* pixels: what a column is taken to be worth; terminals scale to the columns asked for */

static int same(const char *a, const char *b)
{
    return a && !strcmp(a, b);
}

static int begins(const char *text, const char *start)
{
    return text && !strncmp(text, start, strlen(start));
}

enum terminal_picture terminal_judge(const char *(*get)(const char *name))
{
    const char *term = get("TERM"), *program = get("TERM_PROGRAM"), *color = get("COLORTERM"),
               *no_color = get("NO_COLOR");
    if (!term || !*term || same(term, "dumb") || same(term, "linux")) return TERMINAL_NONE;
    int multiplexed =
        get("TMUX") || begins(term, "tmux") || begins(term, "screen"); /* they swallow graphics */
    if (!multiplexed) {
        if (get("KITTY_WINDOW_ID") || same(term, "xterm-kitty") || same(term, "xterm-ghostty") ||
            same(program, "ghostty"))
            return TERMINAL_KITTY;
        if (same(program, "iTerm.app") || same(program, "WezTerm") || same(program, "mintty") ||
            same(get("LC_TERMINAL"), "iTerm2"))
            return TERMINAL_ITERM;
        if (begins(term, "foot") || begins(term, "mlterm") || begins(term, "contour") ||
            begins(term, "yaft") || strstr(term, "sixel"))
            return TERMINAL_SIXEL;
    }
    if (no_color && *no_color) return TERMINAL_NONE;
    /* Windows Terminal shows sixel only in recent versions, and blocks in all. */
    int true_color =
        same(color, "truecolor") || same(color, "24bit") || get("WT_SESSION") || strstr(term, "-direct");
    return true_color ? TERMINAL_BLOCKS : TERMINAL_NONE;
}

static const char *environment(const char *name)
{
    return getenv(name);
}

enum terminal_picture terminal_detect(void)
{
    return isatty(STDOUT_FILENO) ? terminal_judge(environment) : TERMINAL_NONE;
}

enum terminal_picture terminal_picture_named(const char *name)
{
    static const char *const names[] = {"none", "kitty", "iterm", "sixel", "blocks"};
    if (same(name, "auto")) return terminal_detect();
    for (int i = TERMINAL_NONE; i <= TERMINAL_BLOCKS; i++)
        if (same(name, names[i])) return (enum terminal_picture)i;
    return TERMINAL_UNKNOWN;
}

int terminal_columns(FILE *out)
{
    struct winsize size;
    return ioctl(fileno(out), TIOCGWINSZ, &size) || size.ws_col == 0 ? 80 : size.ws_col;
}

static void put_base64(FILE *out, const uint8_t *bytes, size_t n)
{
    static const char digits[] = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    for (size_t i = 0; i < n; i += 3) {
        size_t have = n - i < 3 ? n - i : 3;
        uint32_t v = 0;
        for (size_t k = 0; k < 3; k++) v = v << 8 | (k < have ? bytes[i + k] : 0u);
        for (size_t k = 0; k < 4; k++) putc(k <= have ? digits[v >> (18 - 6 * k) & 63] : '=', out);
    }
}

/* a=T: transmit and show; f=100: PNG; q=2: no answers. Data in portions of at most 4096 characters, m=1 on
 * all but the last. source: sw.kovidgoyal.net/kitty/graphics-protocol */
static void show_kitty(FILE *out, const uint8_t *png, size_t n, int columns)
{
    const size_t portion = 4096 / 4 * 3;
    for (size_t at = 0; at < n; at += portion) {
        int more = n - at > portion;
        fputs("\x1b_G", out);
        if (at == 0) fprintf(out, "a=T,f=100,q=2,c=%d,", columns);
        fprintf(out, "m=%d;", more);
        put_base64(out, png + at, more ? portion : n - at);
        fputs("\x1b\\", out);
    }
}

/*                                          source: iterm2.com/documentation-images.html */
static void show_iterm(FILE *out, const uint8_t *png, size_t n, int columns)
{
    fprintf(out, "\x1b]1337;File=inline=1;size=%zu;width=%d;preserveAspectRatio=1:", n, columns);
    put_base64(out, png, n);
    putc('\a', out);
}

static enum klein_status show_encoded(FILE *out, const struct klein_image *image, enum terminal_picture how,
                                      int columns)
{
    struct klein_error err = {0};
    uint8_t *png;
    size_t n;
    int natural = (image->width + CELL_WIDTH - 1) / CELL_WIDTH;
    TRY(image_encode(image, IMAGE_PNG, 0, NULL, &png, &n, &err));
    (how == TERMINAL_KITTY ? show_kitty : show_iterm)(out, png, n, natural < columns ? natural : columns);
    putc('\n', out);
    free(png);
    return KLEIN_OK;
}

/* The sixel palette: a cube of 6 levels a channel and 24 greys between. Sixel colours are in percent, so
 * these are exact. */
enum { CUBE = 6, GREYS = 24, PALETTE = CUBE * CUBE * CUBE + GREYS };

static void palette_percent(int index, int percent[3])
{
    int grey = index - CUBE * CUBE * CUBE;
    percent[0] = grey >= 0 ? 4 * (grey + 1) : index / (CUBE * CUBE) * 20;
    percent[1] = grey >= 0 ? 4 * (grey + 1) : index / CUBE % CUBE * 20;
    percent[2] = grey >= 0 ? 4 * (grey + 1) : index % CUBE * 20;
}

static int byte_of_percent(int percent)
{
    return (percent * 255 + 50) / 100;
}

static int clamp(int v, int low, int high)
{
    return v < low ? low : v > high ? high : v;
}

/* The nearer one of the cube's and the greys' best. shown[] is what that entry looks like. */
static int nearest(const int want[3], int shown[3])
{
    int cube = 0, sum = 0, best = 0, best_distance = -1;
    for (int c = 0; c < 3; c++) {
        cube = cube * CUBE + (want[c] + 25) / 51;
        sum += want[c];
    }
    int grey = CUBE * CUBE * CUBE + clamp((sum * 25 + 382) / 765 - 1, 0, GREYS - 1);
    for (int i = 0; i < 2; i++) {
        int index = i ? grey : cube, percent[3], distance = 0;
        palette_percent(index, percent);
        for (int c = 0; c < 3; c++) {
            int d = byte_of_percent(percent[c]) - want[c];
            distance += d * d;
        }
        if (best_distance >= 0 && distance >= best_distance) continue;
        best = index;
        best_distance = distance;
        for (int c = 0; c < 3; c++) shown[c] = byte_of_percent(percent[c]);
    }
    return best;
}

/* Palette indices with the error spread to the neighbours not yet done (Floyd and Steinberg). errors: room
 * for 2 rows of 3 * (width + 2), zeroed; in sixteenths. */
static void dither(const struct klein_image *image, uint8_t *index, int *errors)
{
    size_t row = 3 * ((size_t)image->width + 2);
    int *here = errors, *below = errors + row;
    for (int y = 0; y < image->height; y++) {
        for (int x = 0; x < image->width; x++) {
            const uint8_t *pixel = image->rgb + 3 * ((size_t)y * image->width + x);
            int want[3], shown[3], *e = here + 3 * (x + 1), *b = below + 3 * (x + 1);
            for (int c = 0; c < 3; c++) want[c] = clamp(pixel[c] + e[c] / 16, 0, 255);
            index[(size_t)y * image->width + x] = (uint8_t)nearest(want, shown);
            for (int c = 0; c < 3; c++) {
                int d = want[c] - shown[c];
                e[3 + c] += 7 * d;
                b[-3 + c] += 3 * d;
                b[c] += 5 * d;
                b[3 + c] += d;
            }
        }
        int *done = here;
        here = below;
        below = done;
        memset(below, 0, row * sizeof *below);
    }
}

static void put_run(FILE *out, int sixel, int length)
{
    if (length > 3) {
        fprintf(out, "!%d%c", length, '?' + sixel);
        return;
    }
    while (length-- > 0) putc('?' + sixel, out);
}

/* One colour's pixels in a band of `rows` (at most 6) rows: a column is a character with a bit per row, from
 * the top. */
static void put_color(FILE *out, const uint8_t *band, int width, int rows, int color)
{
    int run = 0, last = 0;
    fprintf(out, "#%d", color);
    for (int x = 0; x < width; x++) {
        int sixel = 0;
        for (int y = 0; y < rows; y++) sixel |= (band[(size_t)y * width + x] == color) << y;
        if (sixel != last) {
            put_run(out, last, run);
            run = 0;
            last = sixel;
        }
        run++;
    }
    if (last) put_run(out, last, run);
}

/*                                          source: vt100.net/docs/vt3xx-gp/chapter14.html */
static void put_sixels(FILE *out, const uint8_t *index, int width, int height)
{
    fprintf(out, "\x1bP0;1;0q\"1;1;%d;%d", width, height);
    for (int i = 0; i < PALETTE; i++) {
        int percent[3];
        palette_percent(i, percent);
        fprintf(out, "#%d;2;%d;%d;%d", i, percent[0], percent[1], percent[2]);
    }
    for (int y = 0; y < height; y += 6) {
        int rows = height - y < 6 ? height - y : 6;
        const uint8_t *band = index + (size_t)y * width;
        uint8_t used[PALETTE] = {0};
        for (size_t i = 0; i < (size_t)rows * width; i++) used[band[i]] = 1;
        for (int color = 0; color < PALETTE; color++) {
            if (!used[color]) continue;
            put_color(out, band, width, rows, color);
            putc('$', out); /* back to the left edge */
        }
        putc('-', out); /* next band */
    }
    fputs("\x1b\\\n", out);
}

/* Scaled to `width` pixels, at most its own, and a height of at least 1. */
static enum klein_status shrink(const struct klein_image *image, int width, struct klein_image *out)
{
    struct klein_error err = {0};
    if (width > image->width) width = image->width;
    int64_t height = ((int64_t)image->height * width + image->width / 2) / image->width;
    return resize_lanczos(image, width, height > 0 ? (int)height : 1, out, &err);
}

static enum klein_status show_sixel(FILE *out, const struct klein_image *image, int columns)
{
    struct klein_image small;
    TRY(shrink(image, columns * CELL_WIDTH, &small));
    uint8_t *index = malloc((size_t)small.width * (size_t)small.height);
    int *errors = calloc(6 * ((size_t)small.width + 2), sizeof *errors);
    enum klein_status status = index && errors ? KLEIN_OK : KLEIN_E_NO_MEMORY;
    if (status == KLEIN_OK) {
        dither(&small, index, errors);
        put_sixels(out, index, small.width, small.height);
    }
    free(errors);
    free(index);
    free(small.rgb);
    return status;
}

static void put_color_code(FILE *out, int layer, const uint8_t *rgb)
{
    fprintf(out, "\x1b[%d;2;%d;%d;%dm", layer, rgb[0], rgb[1], rgb[2]);
}

/* A character cell is twice as high as wide: an upper half block shows two pixels, in its foreground and
 * background colours. */
static enum klein_status show_blocks(FILE *out, const struct klein_image *image, int columns)
{
    struct klein_image small;
    TRY(shrink(image, columns, &small));
    for (int y = 0; y < small.height; y += 2) {
        const uint8_t *upper = small.rgb + 3 * (size_t)y * small.width,
                      *lower = upper + 3 * (size_t)small.width;
        int both = y + 1 < small.height;
        for (int x = 0; x < 3 * small.width; x += 3) {
            if (x == 0 || memcmp(upper + x, upper + x - 3, 3)) put_color_code(out, 38, upper + x);
            if (both && (x == 0 || memcmp(lower + x, lower + x - 3, 3))) put_color_code(out, 48, lower + x);
            fputs("\xe2\x96\x80", out); /* U+2580 */
        }
        fputs("\x1b[0m\n", out);
    }
    free(small.rgb);
    return KLEIN_OK;
}

enum klein_status terminal_show(FILE *out, const struct klein_image *image, enum terminal_picture how,
                                int max_columns)
{
    int columns = max_columns > 0 ? max_columns : terminal_columns(out);
    if (columns > MAX_COLUMNS) columns = MAX_COLUMNS;
    if (how == TERMINAL_KITTY || how == TERMINAL_ITERM) TRY(show_encoded(out, image, how, columns));
    if (how == TERMINAL_SIXEL) TRY(show_sixel(out, image, columns));
    if (how == TERMINAL_BLOCKS) TRY(show_blocks(out, image, columns));
    return fflush(out) || ferror(out) ? KLEIN_E_OUTPUT : KLEIN_OK;
}
