#include "../host/image.h"
#include "../host/terminal.h"
#include "support/alloc.h"
#include "support/support.h"

#include <fcntl.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <unistd.h>

static struct klein_error err;

/* ---- which kind of picture ---- */

static const char *const *environment; /* name, value, ..., NULL */

static const char *get(const char *name)
{
    for (int i = 0; environment[i]; i += 2)
        if (!strcmp(environment[i], name)) return environment[i + 1];
    return NULL;
}

#define JUDGE(...) (environment = (const char *const[]){__VA_ARGS__, NULL}, terminal_judge(get))

Test(terminal, judges_the_environment)
{
    cr_assert(JUDGE("NOTHING", "") == TERMINAL_NONE);
    cr_assert(JUDGE("TERM", "dumb", "COLORTERM", "truecolor") == TERMINAL_NONE);
    cr_assert(JUDGE("TERM", "linux", "COLORTERM", "truecolor") == TERMINAL_NONE);
    cr_assert(JUDGE("TERM", "xterm-256color") == TERMINAL_NONE);
    cr_assert(JUDGE("TERM", "xterm-256color", "COLORTERM", "truecolor") == TERMINAL_BLOCKS);
    cr_assert(JUDGE("TERM", "xterm-256color", "COLORTERM", "truecolor", "NO_COLOR", "1") == TERMINAL_NONE);
    cr_assert(JUDGE("TERM", "xterm-256color", "COLORTERM", "truecolor", "NO_COLOR", "") == TERMINAL_BLOCKS);
    cr_assert(JUDGE("TERM", "xterm-256color", "WT_SESSION", "x") == TERMINAL_BLOCKS);
    cr_assert(JUDGE("TERM", "xterm-kitty") == TERMINAL_KITTY);
    cr_assert(JUDGE("TERM", "xterm-256color", "KITTY_WINDOW_ID", "1") == TERMINAL_KITTY);
    cr_assert(JUDGE("TERM", "xterm-256color", "TERM_PROGRAM", "ghostty") == TERMINAL_KITTY);
    cr_assert(JUDGE("TERM", "xterm-256color", "TERM_PROGRAM", "iTerm.app", "COLORTERM", "truecolor") ==
              TERMINAL_ITERM);
    cr_assert(JUDGE("TERM", "xterm-256color", "LC_TERMINAL", "iTerm2") == TERMINAL_ITERM);
    cr_assert(JUDGE("TERM", "xterm-256color", "TERM_PROGRAM", "WezTerm") == TERMINAL_ITERM);
    cr_assert(JUDGE("TERM", "foot-extra", "COLORTERM", "truecolor") == TERMINAL_SIXEL);
    cr_assert(JUDGE("TERM", "mlterm") == TERMINAL_SIXEL);
    /* multiplexers swallow graphics */
    cr_assert(JUDGE("TERM", "tmux-256color", "KITTY_WINDOW_ID", "1", "COLORTERM", "truecolor") ==
              TERMINAL_BLOCKS);
    cr_assert(JUDGE("TERM", "screen", "TERM_PROGRAM", "iTerm.app") == TERMINAL_NONE);
}

Test(terminal, knows_kinds_by_name)
{
    cr_assert(terminal_picture_named("kitty") == TERMINAL_KITTY &&
              terminal_picture_named("iterm") == TERMINAL_ITERM);
    cr_assert(terminal_picture_named("sixel") == TERMINAL_SIXEL &&
              terminal_picture_named("blocks") == TERMINAL_BLOCKS);
    cr_assert(terminal_picture_named("none") == TERMINAL_NONE &&
              terminal_picture_named("gif") == TERMINAL_UNKNOWN);
    cr_assert(terminal_picture_named("") == TERMINAL_UNKNOWN);
    FILE *no_terminal = freopen("/dev/null", "w", stdout);
    cr_assert(no_terminal && terminal_picture_named("auto") == TERMINAL_NONE);
}

/* ---- pictures ---- */

static struct klein_image picture(int width, int height)
{
    struct klein_image image = {width, height, malloc(3 * (size_t)width * (size_t)height)};
    for (int i = 0; i < 3 * width * height; i++) {
        int x = i / 3 % width, y = i / 3 / width;
        image.rgb[i] = (uint8_t)(i % 3 == 0   ? x * 255 / width
                                 : i % 3 == 1 ? y * 255 / height
                                              : (x * 7 + y * 3) % 256);
    }
    return image;
}

/* What terminal_show writes, malloc'ed and terminated. */
static char *shown(const struct klein_image *image, enum terminal_picture how, int max_columns)
{
    char *text = NULL;
    size_t n = 0;
    FILE *out = open_memstream(&text, &n);
    cr_assert(terminal_show(out, image, how, max_columns) == KLEIN_OK);
    fclose(out);
    return text;
}

/* Appends the bytes of base64 from *text up to a character that is none; *text ends there. */
static void decode_base64(const char **text, uint8_t *bytes, size_t *n)
{
    static const char digits[] = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    for (;; *text += 4) {
        uint32_t v = 0;
        int have = 0;
        for (const char *d; have < 4 && (*text)[have] && (d = strchr(digits, (*text)[have])); have++)
            v |= (uint32_t)(d - digits) << (18 - 6 * have);
        if (have == 0) return;
        cr_assert(have == 4 || (have >= 2 && !strncmp(*text + have, "==", 4 - (size_t)have)), "padding");
        for (int k = 0; k < have - 1; k++) bytes[(*n)++] = (uint8_t)(v >> (16 - 8 * k));
    }
}

static void is_png_of(const uint8_t *bytes, size_t n, const struct klein_image *image)
{
    struct klein_image back;
    OK(image_decode(bytes, n, "shown", &back, &err));
    cr_assert(back.width == image->width && back.height == image->height);
    cr_assert(!memcmp(back.rgb, image->rgb, 3 * (size_t)image->width * (size_t)image->height));
    image_free(&back);
}

Test(terminal, kitty_sends_the_pixels)
{
    struct klein_image image = picture(100, 70);
    char *text = shown(&image, TERMINAL_KITTY, 40);
    uint8_t *png = malloc(strlen(text));
    size_t n = 0;
    const char *p = text;
    for (int chunk = 0, more = 1; more; chunk++) {
        int length = 0;
        const char *begin =
            chunk == 0 ? "\x1b_Ga=T,f=100,q=2,c=13," : "\x1b_G"; /* 100 pixels are 13 columns of 8 */
        cr_assert(!strncmp(p, begin, strlen(begin)), "chunk %d", chunk);
        p += strlen(begin);
        cr_assert(sscanf(p, "m=%d;%n", &more, &length) == 1 && length > 0 && (more == 0 || more == 1));
        p += length;
        const char *data = p;
        decode_base64(&p, png, &n);
        cr_assert(p - data <= 4096 && p > data, "%td", p - data);
        cr_assert(!strncmp(p, "\x1b\\", 2));
        p += 2;
    }
    cr_assert(!strcmp(p, "\n"));
    is_png_of(png, n, &image);
    free(png);
    free(text);
    image_free(&image);
}

Test(terminal, iterm_sends_the_pixels)
{
    struct klein_image image = picture(100, 70);
    char *text = shown(&image, TERMINAL_ITERM, 10);
    uint8_t *png = malloc(strlen(text));
    size_t n = 0, size = 0;
    int columns = 0, length = 0;
    cr_assert(sscanf(text, "\x1b]1337;File=inline=1;size=%zu;width=%d;preserveAspectRatio=1:%n", &size,
                     &columns, &length) == 2);
    const char *p = text + length;
    decode_base64(&p, png, &n);
    cr_assert(n == size && columns == 10 && !strcmp(p, "\a\n"));
    is_png_of(png, n, &image);
    free(png);
    free(text);
    image_free(&image);
}

/* A terminal's view of a sixel picture: every pixel must be painted exactly once. */
static struct klein_image decode_sixel(const char *p)
{
    uint8_t palette[256][3] = {{0}};
    int width, height, length = 0, x = 0, y = 0, color = 0;
    cr_assert(sscanf(p, "\x1bP0;1;0q\"1;1;%d;%d%n", &width, &height, &length) == 2);
    struct klein_image image = {width, height, malloc(3 * (size_t)width * (size_t)height)};
    uint8_t *painted = calloc((size_t)width, (size_t)height);
    for (p += length; *p != '\x1b';) {
        int repeat = 1, percent[3];
        length = 0;
        if (*p == '#') {
            cr_assert(sscanf(p, "#%d%n", &color, &length) == 1 && color >= 0 && color < 256);
            p += length;
            if (*p == ';') {
                cr_assert(sscanf(p, ";2;%d;%d;%d%n", &percent[0], &percent[1], &percent[2], &length) == 3);
                for (int c = 0; c < 3; c++) palette[color][c] = (uint8_t)lround(percent[c] * 2.55);
                p += length;
            }
            continue;
        }
        if (*p == '$' || *p == '-') {
            x = 0;
            if (*p++ == '-') y += 6;
            continue;
        }
        if (*p == '!') {
            cr_assert(sscanf(p, "!%d%n", &repeat, &length) == 1);
            p += length;
        }
        cr_assert(*p >= '?' && *p <= '~' && x + repeat <= width, "at %.10s", p);
        for (int bits = *p++ - '?'; repeat--; x++)
            for (int row = 0; row < 6; row++) {
                if (!(bits >> row & 1)) continue;
                cr_assert(y + row < height && !painted[(size_t)(y + row) * width + x]++, "pixel %d, %d", x,
                          y + row);
                memcpy(image.rgb + 3 * ((size_t)(y + row) * width + x), palette[color], 3);
            }
    }
    cr_assert(!strcmp(p, "\x1b\\\n"));
    cr_assert(!memchr(painted, 0, (size_t)width * (size_t)height));
    free(painted);
    return image;
}

/* Colours of the palette come back exactly, at any height. */
Test(terminal, sixel_keeps_palette_colors)
{
    for (int height = 1; height <= 14; height++) {
        struct klein_image image = picture(50, height);
        for (int i = 0; i < 3 * 50 * height; i++) image.rgb[i] = (uint8_t)(image.rgb[i] / 51 * 51);
        char *text = shown(&image, TERMINAL_SIXEL, 40);
        struct klein_image back = decode_sixel(text);
        cr_assert(back.width == 50 && back.height == height);
        cr_assert(!memcmp(back.rgb, image.rgb, 3 * 50 * (size_t)height));
        image_free(&back);
        image_free(&image);
        free(text);
    }
}

/* Dithering keeps the mean colour of every 8x8 block: an error carried out of a block is at most a few pixels' worth of half a palette step. */
Test(terminal, sixel_keeps_mean_colors)
{
    struct klein_image image = picture(160, 120);
    char *text = shown(&image, TERMINAL_SIXEL, 80);
    struct klein_image back = decode_sixel(text);
    cr_assert(back.width == 160 && back.height == 120);
    double worst = 0;
    for (int block = 0; block < 20 * 15; block++)
        for (int c = 0; c < 3; c++) {
            double difference = 0;
            for (int i = 0; i < 64; i++) {
                int x = block % 20 * 8 + i % 8, y = block / 20 * 8 + i / 8, at = 3 * (y * 160 + x) + c;
                difference += (back.rgb[at] - image.rgb[at]) / 64.;
            }
            if (!(fabs(difference) <= worst)) worst = fabs(difference);
        }
    cr_assert(worst < 51 / 2. * 2 * 8 / 64, "%f", worst); /* half a step for each of 16 pixels on the edges */
    image_free(&back);
    image_free(&image);
    free(text);
}

/* Pixels of a picture in half blocks. */
static struct klein_image decode_blocks(const char *p, int width, int height)
{
    struct klein_image image = {width, height, calloc(3, (size_t)width * (size_t)(height + 1))};
    int rgb[2][3] = {{-1, -1, -1}, {-1, -1, -1}}, x = 0, y = 0, layer, length;
    while (*p) {
        length = 0;
        if (!strncmp(p, "\x1b[0m\n", 5)) {
            cr_assert(x == width, "a line of %d", x);
            memset(rgb, -1, sizeof rgb);
            x = 0;
            y += 2;
            p += 5;
        } else if (!strncmp(p, "\xe2\x96\x80", 3)) {
            cr_assert(x < width && y < height && rgb[0][0] >= 0 && (rgb[1][0] >= 0) == (y + 1 < height));
            for (int half = 0; half < 2; half++)
                for (int c = 0; c < 3; c++)
                    image.rgb[3 * ((size_t)(y + half) * width + x) + c] = (uint8_t)rgb[half][c];
            x++;
            p += 3;
        } else {
            int v[3];
            cr_assert(sscanf(p, "\x1b[%d;2;%d;%d;%dm%n", &layer, &v[0], &v[1], &v[2], &length) == 4 &&
                      length > 0);
            cr_assert(layer == 38 || layer == 48);
            memcpy(rgb[layer == 48], v, sizeof v);
            p += length;
        }
    }
    cr_assert(y == height + height % 2, "%d lines", y / 2);
    return image;
}

Test(terminal, blocks_show_the_pixels)
{
    static const int sizes[][2] = {{1, 1}, {40, 30}, {33, 31}, {80, 2}};
    for (int i = 0; i < 4; i++) {
        struct klein_image image = picture(sizes[i][0], sizes[i][1]);
        if (i == 1) memset(image.rgb, 9, 3 * 40 * 10); /* runs of one colour */
        char *text = shown(&image, TERMINAL_BLOCKS, 200);
        struct klein_image back = decode_blocks(text, image.width, image.height);
        cr_assert(!memcmp(back.rgb, image.rgb, 3 * (size_t)image.width * (size_t)image.height), "%dx%d",
                  image.width, image.height);
        image_free(&back);
        image_free(&image);
        free(text);
    }
}

Test(terminal, pictures_fit)
{
    struct klein_image image = picture(1000, 500);
    char *text = shown(&image, TERMINAL_BLOCKS, 0); /* no terminal: 80 */
    struct klein_image back = decode_blocks(text, 80, 40);
    image_free(&back);
    free(text);
    text = shown(&image, TERMINAL_BLOCKS, 30);
    back = decode_blocks(text, 30, 15);
    for (int y = 0; y < 15; y++) /* red rises with x, green with y */
        for (int x = 0; x < 30; x++) {
            const uint8_t *p = back.rgb + 3 * (y * 30 + x);
            cr_assert(abs(p[0] - (int)((x + 0.5) / 30 * 255)) <= 5 &&
                          abs(p[1] - (int)((y + 0.5) / 15 * 255)) <= 9,
                      "%d %d", x, y);
        }
    image_free(&back);
    free(text);
    text = shown(&image, TERMINAL_SIXEL, 30);
    back = decode_sixel(text);
    cr_assert(back.width == 240 && back.height == 120);
    image_free(&back);
    free(text);
    text = shown(&image, TERMINAL_KITTY, 500);
    cr_assert(strstr(text, ",c=80,"));
    free(text);
    text = shown(&image, TERMINAL_NONE, 80);
    cr_assert(!*text);
    free(text);
    image_free(&image);

    image = picture(2000, 1); /* shrinks to less than a row */
    text = shown(&image, TERMINAL_BLOCKS, 10);
    back = decode_blocks(text, 10, 1);
    image_free(&back);
    image_free(&image);
    free(text);
}

Test(terminal, showing_can_fail)
{
    struct klein_image image = picture(200, 100);
    FILE *full = fopen("/dev/full", "w"), *null = fopen("/dev/null", "w");
    for (int how = TERMINAL_KITTY; how <= TERMINAL_BLOCKS; how++) {
        cr_assert(terminal_show(full, &image, (enum terminal_picture)how, 20) == KLEIN_E_OUTPUT);
        int failures = 0;
        for (enum klein_status status = KLEIN_E_NO_MEMORY; status != KLEIN_OK; failures++) {
            alloc_fail_at(failures);
            status = terminal_show(null, &image, (enum terminal_picture)how, 20);
            int hit = alloc_fail_off();
            cr_assert(status == (hit ? KLEIN_E_NO_MEMORY : KLEIN_OK), "%d: %s", how, status_name(status));
        }
        cr_assert(failures > 1);
    }
    fclose(full);
    fclose(null);
    image_free(&image);
}

/* ---- progress ---- */

struct screen {
    FILE *out;
    char *text;
    size_t n, seen;
};

static void screen_open(struct screen *s)
{
    s->text = NULL;
    s->seen = 0;
    s->out = open_memstream(&s->text, &s->n);
}

/* What was written since the last call. */
static const char *news(struct screen *s)
{
    fflush(s->out);
    const char *text = s->text + s->seen;
    s->seen = s->n;
    return text;
}

/* Columns that the text takes: without escape sequences and carriage returns; code points count one. */
static int columns_of(const char *p)
{
    int n = 0;
    while (*p) {
        if (*p == '\x1b') {
            p += 2;
            while (*p < '@' || *p > '~') p++;
        } else if (*p != '\r') {
            n += ((uint8_t)*p & 0xc0) != 0x80;
        }
        p++;
    }
    return n;
}

static struct klein_progress denoising(int step, double fraction)
{
    return (struct klein_progress){
        .stage = KLEIN_STAGE_DENOISE, .images = 1, .step = step, .steps = 4, .fraction = fraction};
}

static void bar_begin(struct progress_bar *bar, struct screen *s, int columns, int plain)
{
    screen_open(s);
    progress_begin(bar, s->out, PROGRESS_BAR, 100);
    bar->columns = columns;
    bar->plain = plain;
}

Test(progress, bar_shows_stage_percent_and_time)
{
    struct progress_bar bar;
    struct screen s;
    bar_begin(&bar, &s, 70, 1);
    struct klein_progress p = denoising(1, 0.25);
    progress_update(&bar, &p, 110);
    cr_assert_str_eq(news(&s),
                     "\r\x1b[Kdenoise 1/4  [#########...........................]   25 %  30 s left");
    p = denoising(2, 0.5);
    p.images = 3;
    p.image = 1;
    progress_update(&bar, &p, 300);
    cr_assert_str_eq(news(&s),
                     "\r\x1b[Kimage 2/3 denoise 2/4  [#############.............]   50 %  3:20 left");
    p.fraction = 0.01;
    p.step = 3;
    progress_update(&bar, &p, 200);
    cr_assert(strstr(news(&s), "  2:45:00 left"));
    p = (struct klein_progress){.stage = KLEIN_STAGE_TEXT, .images = 1, .fraction = 0};
    progress_update(&bar, &p, 200);
    const char *text = news(&s);
    cr_assert(!strncmp(text, "\r\x1b[Ktext  [.....", 15) && strstr(text, "    0 %") && !strstr(text, "left"),
              "%s", text);
    progress_clear(&bar);
    cr_assert_str_eq(news(&s), "\r\x1b[K");
    progress_clear(&bar);
    cr_assert_str_eq(news(&s), "");
    fclose(s.out);
    free(s.text);
}

Test(progress, bar_is_redrawn_seldom)
{
    struct progress_bar bar;
    struct screen s;
    bar_begin(&bar, &s, 80, 0);
    int draws = 0;
    for (int ms = 0; ms < 10000; ms += 10) {
        struct klein_progress p = denoising(1, ms / 10000.);
        progress_update(&bar, &p, 100 + ms / 1000.);
        draws += *news(&s) != 0;
    }
    cr_assert(draws >= 90 && draws <= 101, "%d", draws);
    struct klein_progress p = denoising(2, 1);
    progress_update(&bar, &p, 109.991); /* a finished step at once */
    cr_assert(*news(&s));
    fclose(s.out);
    free(s.text);
}

/* A line that fills the terminal would wrap and could not be redrawn. */
Test(progress, bar_fits_every_width)
{
    for (int plain = 0; plain < 2; plain++)
        for (int columns = 1; columns < 140; columns++) {
            struct progress_bar bar;
            struct screen s;
            bar_begin(&bar, &s, columns, plain);
            struct klein_progress p = denoising(3, 0.87);
            progress_update(&bar, &p, 5000);
            const char *text = news(&s);
            int width = columns_of(text);
            cr_assert(width < columns, "%d of %d columns: %s", width, columns, text);
            cr_assert(columns <= 6 || strstr(text, " 87 %"), "%d columns: %s", columns, text);
            cr_assert(columns < 60 || (strstr(text, "denoise 3/4") && strstr(text, "left") &&
                                       strstr(text, plain ? "#" : "\xe2\x94\x81")));
            cr_assert(!plain || !strstr(text, "\x1b[3"));
            fclose(s.out);
            free(s.text);
        }
}

Test(progress, fraction_may_be_anything)
{
    static const double fractions[] = {-1, 2, NAN, INFINITY, -INFINITY, 1};
    for (int i = 0; i < 6; i++) {
        struct progress_bar bar;
        struct screen s;
        bar_begin(&bar, &s, 80, 1);
        struct klein_progress p = denoising(1, fractions[i]);
        progress_update(&bar, &p, 200);
        const char *text = news(&s);
        cr_assert(columns_of(text) < 80 && (strstr(text, "  0 %") || strstr(text, "100 %")), "%s", text);
        fclose(s.out);
        free(s.text);
    }
}

Test(progress, lines_come_once_per_step)
{
    struct progress_bar bar;
    struct screen s;
    screen_open(&s);
    progress_begin(&bar, s.out, PROGRESS_LINES, 100);
    struct klein_progress p = denoising(1, 0.25);
    progress_update(&bar, &p, 101.5);
    cr_assert_str_eq(news(&s), "klein: denoise 1/4, 25 % after 1.5 s\n");
    p.fraction = 0.3;
    progress_update(&bar, &p, 109);
    cr_assert_str_eq(news(&s), "");
    p = denoising(2, 0.5);
    progress_update(&bar, &p, 103);
    cr_assert_str_eq(news(&s), "klein: denoise 2/4, 50 % after 3.0 s\n");
    progress_clear(&bar);
    cr_assert_str_eq(news(&s), "");
    progress_begin(&bar, s.out, PROGRESS_NONE, 100);
    progress_update(&bar, &p, 103);
    cr_assert_str_eq(news(&s), "");
    fclose(s.out);
    free(s.text);
}

Test(progress, style_follows_the_stream)
{
    FILE *file = tmpfile();
    setenv("TERM", "xterm", 1);
    cr_assert(progress_style_for(file, 0, 0) == PROGRESS_NONE);
    cr_assert(progress_style_for(file, 1, 0) == PROGRESS_LINES);
    cr_assert(progress_style_for(file, 1, 1) == PROGRESS_NONE);
    fclose(file);

    int master = posix_openpt(O_RDWR | O_NOCTTY); /* a real terminal's other end */
    cr_assert(master >= 0 && !grantpt(master) && !unlockpt(master));
    FILE *terminal = fdopen(open(ptsname(master), O_RDWR | O_NOCTTY), "r+");
    cr_assert(terminal);
    cr_assert(progress_style_for(terminal, 0, 0) == PROGRESS_BAR &&
              progress_style_for(terminal, 0, 1) == PROGRESS_NONE);
    struct winsize size = {.ws_col = 123, .ws_row = 30};
    cr_assert(!ioctl(master, TIOCSWINSZ, &size) && terminal_columns(terminal) == 123);
    setenv("TERM", "dumb", 1);
    cr_assert(progress_style_for(terminal, 0, 0) == PROGRESS_NONE &&
              progress_style_for(terminal, 1, 0) == PROGRESS_LINES);

    struct progress_bar bar;
    setenv("LC_ALL", "en_US.UTF-8", 1);
    unsetenv("NO_COLOR");
    progress_begin(&bar, terminal, PROGRESS_BAR, 0);
    cr_assert(!bar.plain);
    setenv("NO_COLOR", "1", 1);
    progress_begin(&bar, terminal, PROGRESS_BAR, 0);
    cr_assert(bar.plain);
    unsetenv("NO_COLOR");
    setenv("LC_ALL", "C", 1);
    progress_begin(&bar, terminal, PROGRESS_BAR, 0);
    cr_assert(bar.plain);
    fclose(terminal);
    close(master);
}
