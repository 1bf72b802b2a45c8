#include "terminal.h"

#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#define REDRAW 0.1 /* seconds */
enum { BAR_MIN = 8, BAR_MAX = 40 };

static int is_utf8_locale(void)
{
    static const char *const names[] = {"LC_ALL", "LC_CTYPE", "LANG"}; /* the first that is set counts */
    for (int i = 0; i < 3; i++) {
        const char *value = getenv(names[i]);
        if (value && *value) return strcasestr(value, "utf-8") || strcasestr(value, "utf8");
    }
    return 0;
}

enum progress_style progress_style_for(FILE *out, int verbose, int quiet)
{
    const char *term = getenv("TERM");
    if (quiet) return PROGRESS_NONE;
    if (isatty(fileno(out)) && term && *term && strcmp(term, "dumb")) return PROGRESS_BAR;
    return verbose ? PROGRESS_LINES : PROGRESS_NONE;
}

void progress_begin(struct progress_bar *bar, FILE *out, enum progress_style style, double now)
{
    const char *no_color = getenv("NO_COLOR");
    *bar = (struct progress_bar){.out = out, .style = style, .begun = now, .stage = -1};
    bar->plain = (no_color && *no_color) || !is_utf8_locale();
}

/* "image 2/3 denoise 3/4" */
static void write_label(char *to, size_t room, const struct klein_progress *p)
{
    char image[40] = "", step[40] = "";
    if (p->images > 1) snprintf(image, sizeof image, "image %d/%d ", p->image + 1, p->images);
    if (p->steps > 0) snprintf(step, sizeof step, " %d/%d", p->step, p->steps);
    snprintf(to, room, "%s%s%s", image, klein_stage_name(p->stage), step);
}

/* "9 s", "2:05", "1:02:05" */
static void write_time(char *to, size_t room, double seconds)
{
    long s = (long)(seconds + 0.5);
    if (s < 60)
        snprintf(to, room, "%ld s", s);
    else if (s < 3600)
        snprintf(to, room, "%ld:%02ld", s / 60, s % 60);
    else
        snprintf(to, room, "%ld:%02ld:%02ld", s / 3600, s / 60 % 60, s % 60);
}

static void put_bar(const struct progress_bar *bar, int width, double fraction)
{
    int filled = (int)(fraction * width + 0.5);
    fputs(bar->plain ? "[" : "\x1b[36m", bar->out);
    for (int i = 0; i < width; i++) {
        if (i == filled && !bar->plain) fputs("\x1b[90m", bar->out);
        fputs(bar->plain ? (i < filled ? "#" : ".") : "\xe2\x94\x81", bar->out); /* U+2501 */
    }
    fputs(bar->plain ? "]" : "\x1b[0m", bar->out);
}

/* label, bar, percent and time left, as far as they fit; the bar goes first, then the time, then the label.
 */
static void draw(struct progress_bar *bar, const struct klein_progress *p, double fraction, double now)
{
    char label[128], left[48] = "", time[24];
    int room =
        (bar->columns > 0 ? bar->columns : terminal_columns(bar->out)) - 1; /* a full line would wrap */
    double elapsed = now - bar->begun;
    write_label(label, sizeof label, p);
    if (elapsed >= 1 && fraction >= 0.01) {
        write_time(time, sizeof time, elapsed * (1 - fraction) / fraction);
        snprintf(left, sizeof left, "  %s left", time);
    }
    int label_width = (int)strlen(label), left_width = (int)strlen(left),
        percent_width = 5; /* "  9 %", "100 %" */
    int bar_width = room - label_width - 2 - 2 - percent_width - left_width - (bar->plain ? 2 : 0);
    if (bar_width > BAR_MAX) bar_width = BAR_MAX;
    int fits_left = label_width + 2 + percent_width + left_width <= room,
        fits_label = label_width + 2 + percent_width <= room;

    fputs("\r\x1b[K", bar->out);
    if (fits_label) fprintf(bar->out, "%s  ", label);
    if (bar_width >= BAR_MIN) {
        put_bar(bar, bar_width, fraction);
        fputs("  ", bar->out);
    }
    if (percent_width <= room) fprintf(bar->out, "%3.0f %%", 100 * fraction);
    if (fits_left) fputs(left, bar->out);
    fflush(bar->out);
    bar->visible = 1;
}

void progress_update(struct progress_bar *bar, const struct klein_progress *p, double now)
{
    int news = (int)p->stage != bar->stage || p->image != bar->image || p->step != bar->step;
    double fraction = p->fraction >= 0 && p->fraction <= 1 ? p->fraction : p->fraction > 1;
    if (bar->style == PROGRESS_NONE || (!news && (bar->style == PROGRESS_LINES || now - bar->drawn < REDRAW)))
        return;
    if (bar->style == PROGRESS_BAR) {
        draw(bar, p, fraction, now);
    } else {
        char label[128];
        write_label(label, sizeof label, p);
        fprintf(bar->out, "klein: %s, %.0f %% after %.1f s\n", label, 100 * fraction, now - bar->begun);
        fflush(bar->out);
    }
    bar->stage = (int)p->stage;
    bar->image = p->image;
    bar->step = p->step;
    bar->drawn = now;
}

void progress_clear(struct progress_bar *bar)
{
    if (!bar->visible) return;
    fputs("\r\x1b[K", bar->out);
    fflush(bar->out);
    bar->visible = 0;
}
