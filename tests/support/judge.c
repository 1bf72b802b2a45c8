#include "judge.h"
#include "support.h"

#include "../../host/image.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

#define BAND       12
#define CELL       3 /* pixels; an outline is ACROSS x DOWN cells */
#define ACROSS     20
#define DOWN       24
#define CELLS      (ACROSS * DOWN)
#define MIN_BOX    8  /* shorter sides are no object: the edge of a table, say */
#define MIN_PIXELS 60 /* less is no object */
#define THIN       5  /* rows of fewer pixels do not count: a balloon's string shows on some places only */
#define MAX_SIDE   256
#define BINS       32768 /* colours by 5 bits of each channel */

enum { COLOURS = 7, KINDS = 6, PLACES = 6, POSITIONS = 3, SIZES = 2, MOST = 7 };
static const int counts[ATTRIBUTES] = {COLOURS, KINDS, PLACES, POSITIONS, SIZES};
static const char *const names[ATTRIBUTES][MOST] = {
    {"red", "orange", "yellow", "green", "blue", "purple", "pink"},
    {"balloon", "ball", "box", "star", "cup", "heart"},
    {"table", "grass", "sky", "night", "brick", "sand"},
    {"left", "centre", "right"},
    {"small", "big"},
};
const char *const attribute_names[ATTRIBUTES] = {"colour", "kind", "place", "position", "size"};

struct judge {
    double bands[PLACES][6];
    uint8_t background[PLACES][BINS / 8]; /* bit set: the empty place shows that colour */
    double colours[COLOURS][3];
    double outlines[COLOURS][PLACES][KINDS * SIZES][CELLS]; /* share of objects that occupy the cell */
};

/* --- the tables --- */

static const json_t *member(const json_t *object, const char *key)
{
    const json_t *value = json_object_get(object, key);
    cr_assert(value, "the judge's tables lack \"%s\"", key);
    return value;
}

static void read_numbers(const json_t *array, int n, double *out)
{
    cr_assert((int)json_array_size(array) == n, "judge.json: a list of other than %d numbers", n);
    for (int i = 0; i < n; i++) out[i] = json_number_value(json_array_get(array, (size_t)i));
}

static void read_bits(const json_t *hex, uint8_t *out)
{
    const char *s = json_string_value(hex);
    cr_assert(s && strlen(s) == BINS / 4, "judge.json: a background is no string of %d digits", BINS / 4);
    for (int i = 0; i < BINS / 8; i++) {
        char digits[3] = {s[2 * i], s[2 * i + 1], 0};
        out[i] = (uint8_t)strtoul(digits, NULL, 16);
    }
}

static json_t *load(const char *path)
{
    json_error_t e;
    json_t *root = json_load_file(path, 0, &e);
    cr_assert(root, "%s: %s", path, e.text);
    return root;
}

static void read_outlines(struct judge *j)
{
    struct klein_error err;
    struct klein_image p;
    OK(image_read(KLEIN_SOURCE_DIR "/tests/nano/outlines.png", &p, &err));
    cr_assert(p.width == KINDS * SIZES * ACROSS && p.height == COLOURS * PLACES * DOWN);
    for (int y = 0; y < p.height; y++)
        for (int x = 0; x < p.width; x++)
            j->outlines[y / DOWN / PLACES][y / DOWN % PLACES][x / ACROSS][y % DOWN * ACROSS + x % ACROSS] =
                p.rgb[3 * (y * p.width + x)] / 255.0;
    image_free(&p);
}

struct judge *judge_open(void)
{
    json_t *root = load(KLEIN_SOURCE_DIR "/tests/nano/judge.json");
    struct judge *j = calloc(1, sizeof *j);
    cr_assert(j);
    read_outlines(j);
    for (int c = 0; c < COLOURS; c++)
        read_numbers(member(member(root, "colours"), names[COLOUR][c]), 3, j->colours[c]);
    for (int p = 0; p < PLACES; p++) {
        const char *place = names[PLACE][p];
        read_numbers(member(member(root, "bands"), place), 6, j->bands[p]);
        read_bits(member(member(root, "background"), place), j->background[p]);
    }
    json_decref(root);
    return j;
}

void judge_close(struct judge *j)
{
    free(j);
}

struct shown shown_of(const json_t *expected)
{
    struct shown s = {{0}, {0}};
    for (int a = 0; a < ATTRIBUTES; a++) {
        const json_t *value = json_object_get(expected, attribute_names[a]);
        cr_assert(json_is_string(value) || (json_is_null(value) && a != PLACE), "no \"%s\" is expected",
                  attribute_names[a]);
        s.value[a] = NOTHING;
        for (int v = 0; v < counts[a] && json_is_string(value); v++)
            if (!strcmp(names[a][v], json_string_value(value))) s.value[a] = v;
        cr_assert(json_is_null(value) || s.value[a] != NOTHING, "\"%s\" is no %s", json_string_value(value),
                  attribute_names[a]);
    }
    return s;
}

const char *shown_value(enum attribute a, int value)
{
    return value == NOTHING ? "nothing" : names[a][value];
}

/* --- looking --- */

/* The row of a table [n, width] nearest to v. */
static int nearest(const double *table, int n, int width, const double *v)
{
    int best = 0;
    double least = INFINITY;
    for (int i = 0; i < n; i++) {
        double distance = 0;
        for (int k = 0; k < width; k++) distance += fabs(v[k] - table[i * width + k]);
        if (distance < least) least = distance, best = i;
    }
    return best;
}

static int place_of(const struct judge *j, const struct klein_image *p)
{
    double bands[6] = {0};
    for (int half = 0; half < 2; half++)
        for (int y = 0; y < BAND; y++)
            for (int x = 0; x < p->width; x++)
                for (int c = 0; c < 3; c++)
                    bands[3 * half + c] += p->rgb[3 * ((half ? p->height - 1 - y : y) * p->width + x) + c];
    for (int i = 0; i < 6; i++) bands[i] /= BAND * p->width;
    return nearest(j->bands[0], PLACES, 6, bands);
}

/* Marks the 4-connected piece of 1s that holds pixel `at` with `label`; returns its size. */
static int mark_piece(uint16_t *mask, int w, int h, int at, uint16_t label, int *stack)
{
    int top = 0, size = 0;
    mask[at] = label;
    stack[top++] = at;
    while (top) {
        int i = stack[--top], x = i % w, y = i / w;
        const int next[4] = {x > 0 ? i - 1 : -1, x < w - 1 ? i + 1 : -1, y > 0 ? i - w : -1,
                             y < h - 1 ? i + w : -1};
        size++;
        for (int k = 0; k < 4; k++)
            if (next[k] >= 0 && mask[next[k]] == 1) {
                mask[next[k]] = label;
                stack[top++] = next[k];
            }
    }
    return size;
}

/* Leaves 1 where the largest piece of what is not background is, 0 elsewhere; returns its size. */
static int object_mask(const uint8_t *background, const struct klein_image *p, uint16_t *mask, int *stack)
{
    int n = p->width * p->height, most = 0;
    uint16_t label = 1, largest = 0;
    for (int i = 0; i < n; i++) {
        const uint8_t *c = p->rgb + 3 * i;
        int bin = (c[0] >> 3) * 1024 + (c[1] >> 3) * 32 + (c[2] >> 3);
        mask[i] = !(background[bin / 8] >> (7 - bin % 8) & 1);
    }
    for (int i = 0; i < n; i++) {
        if (mask[i] != 1) continue;
        int size = mark_piece(mask, p->width, p->height, i, ++label, stack);
        if (size > most) most = size, largest = label;
    }
    for (int i = 0; i < n; i++) mask[i] = largest && mask[i] == largest;
    return most;
}

/* The bounding box of rows that are not thin; 0: there is none, or it is too flat. */
static int object_box(const uint16_t *mask, int w, int h, int box[4])
{
    box[0] = w, box[1] = -1, box[2] = box[3] = 0;
    for (int y = 0; y < h; y++) {
        int pixels = 0, first = w, last = -1;
        for (int x = 0; x < w; x++)
            if (mask[y * w + x]) {
                pixels++;
                if (first == w) first = x;
                last = x;
            }
        if (pixels < THIN) continue;
        if (box[1] < 0) box[1] = y;
        box[3] = y + 1;
        if (first < box[0]) box[0] = first;
        if (last + 1 > box[2]) box[2] = last + 1;
    }
    return box[1] >= 0 && box[2] - box[0] >= MIN_BOX && box[3] - box[1] >= MIN_BOX;
}

/* The median of each channel over the object's pixels in the middle half of its box; 0: there are none. */
static int object_colour(const struct klein_image *p, const uint16_t *mask, const int box[4], double out[3])
{
    int dx = (box[2] - box[0]) / 4, dy = (box[3] - box[1]) / 4;
    for (int c = 0; c < 3; c++) {
        int histogram[256] = {0}, n = 0, seen = 0;
        for (int y = box[1] + dy; y < box[3] - dy; y++)
            for (int x = box[0] + dx; x < box[2] - dx; x++)
                if (mask[y * p->width + x]) n++, histogram[p->rgb[3 * (y * p->width + x) + c]]++;
        if (!n) return 0;
        out[c] = 0;
        for (int level = 0; level < 256; level++) {
            int before = seen;
            seen += histogram[level];
            out[c] += 0.5 * level *
                      ((before <= (n - 1) / 2 && (n - 1) / 2 < seen) + (before <= n / 2 && n / 2 < seen));
        }
    }
    return 1;
}

/* The object by cells: across round the middle of its box, down to just below the ground, where things stand or, in the sky, float. */
static void object_cells(const uint16_t *mask, int w, int h, const int box[4], int ground, double *cells)
{
    for (int r = 0; r < DOWN; r++)
        for (int c = 0; c < ACROSS; c++) {
            int x = (int)floor(0.5 * (box[0] + box[2]) + CELL * (c + 0.5 - ACROSS / 2));
            int y = (int)floor(ground + 2 + CELL * (r + 0.5 - DOWN));
            cells[r * ACROSS + c] = x >= 0 && x < w && y >= 0 && y < h && mask[y * w + x];
        }
}

struct shown judge_see(const struct judge *j, const struct klein_image *p)
{
    struct shown s = {{NOTHING, NOTHING, NOTHING, NOTHING, NOTHING}, {0}};
    int w = p->width, h = p->height, box[4];
    double colour[3], cells[CELLS];
    cr_assert(w >= BAND && h >= 2 * BAND && w <= MAX_SIDE && h <= MAX_SIDE);
    uint16_t *mask = malloc((size_t)w * (size_t)h * sizeof *mask);
    int *stack = malloc((size_t)w * (size_t)h * sizeof *stack);
    cr_assert(mask && stack);
    int place = s.value[PLACE] = place_of(j, p);
    if (object_mask(j->background[place], p, mask, stack) >= MIN_PIXELS && object_box(mask, w, h, box) &&
        object_colour(p, mask, box, colour)) {
        memcpy(s.box, box, sizeof box);
        object_cells(mask, w, h, box, strcmp(names[PLACE][place], "sky") ? 104 : 80, cells);
        int c = nearest(j->colours[0], COLOURS, 3, colour);
        int outline = nearest(j->outlines[c][place][0], KINDS * SIZES, CELLS, cells);
        double middle = 0.5 * (box[0] + box[2]) / w;
        s.value[COLOUR] = c;
        s.value[KIND] = outline / SIZES;
        s.value[POSITION] = (middle >= 49.0 / 128) + (middle >= 79.0 / 128);
        s.value[SIZE] = outline % SIZES;
    }
    free(mask);
    free(stack);
    return s;
}
