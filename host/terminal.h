/* terminal.h: pictures in terminals, and the progress bar. Everything is written to the FILE given; nothing
 * is ever asked of the terminal (an answer may never come, or land in the user's next command). */
#ifndef KLEIN_TERMINAL_H
#define KLEIN_TERMINAL_H

#include "../engine/klein.h"

#include <stdio.h>

enum terminal_picture {
    TERMINAL_UNKNOWN = -1, /* of terminal_picture_named: no such name */
    TERMINAL_NONE,
    TERMINAL_KITTY,  /* kitty graphics protocol: kitty, Ghostty */
    TERMINAL_ITERM,  /* iTerm2 inline images: iTerm2, WezTerm, mintty */
    TERMINAL_SIXEL,  /* foot, mlterm, contour, Konsole, xterm -ti vt340 */
    TERMINAL_BLOCKS, /* Unicode half blocks in 24-bit colour: most others */
};

/* What standard output can show, judged by the environment alone; TERMINAL_NONE when it is no terminal or
 * that is unclear. */
enum terminal_picture terminal_detect(void);
/* The same judgement of any environment; get(name) is getenv's contract. */
enum terminal_picture terminal_judge(const char *(*get)(const char *name));
/* "kitty", "iterm", "sixel", "blocks", "none"; "auto" is terminal_detect(). */
enum terminal_picture terminal_picture_named(const char *name);

/* Writes the image and a newline: at most max_columns wide (0: as wide as the terminal), never more than 80.
 * TERMINAL_NONE writes nothing. KLEIN_E_NO_MEMORY, or KLEIN_E_OUTPUT if writing fails. */
enum klein_status terminal_show(FILE *out, const struct klein_image *image, enum terminal_picture how,
                                int max_columns);

/* Columns of the terminal behind `out`; 80 when there is none. */
int terminal_columns(FILE *out);

/* Progress of a request: a bar that redraws itself in one line, or plain lines, one per step. */
enum progress_style { PROGRESS_NONE, PROGRESS_LINES, PROGRESS_BAR };

struct progress_bar {
    FILE *out;
    enum progress_style style;
    int columns; /* width of the line; 0: asked of the terminal at every redraw */
    int plain;   /* ASCII without colour: NO_COLOR is set, or the locale is not UTF-8 */
    /* the rest is its own */
    double begun, drawn;    /* seconds, on the caller's clock */
    int visible;            /* a line stands on the screen */
    int stage, image, step; /* last drawn */
};

/* PROGRESS_BAR if `out` is a terminal that can redraw a line (TERM is set and not "dumb"); otherwise lines if
 * verbose; none if quiet. */
enum progress_style progress_style_for(FILE *out, int verbose, int quiet);

/* Times are seconds on any monotonic clock, passed in. The bar is redrawn when a step ends, otherwise at most
 * ten times a second. */
void progress_begin(struct progress_bar *bar, FILE *out, enum progress_style style, double now);
void progress_update(struct progress_bar *bar, const struct klein_progress *p, double now);
void progress_clear(
    struct progress_bar *bar); /* takes the bar off the screen: before other output, and at the end */

#endif
