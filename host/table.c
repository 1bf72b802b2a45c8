#include "table.h"

#include <stdarg.h>
#include <stdlib.h>
#include <string.h>

void table_begin(struct table *t, const char *align)
{
    *t = (struct table){.columns = (int)strlen(align), .align = align};
}

void table_cell(struct table *t, const char *format, ...)
{
    if (t->n == t->capacity) {
        size_t capacity = t->capacity ? 2 * t->capacity : 128;
        char **cells = realloc(t->cells, capacity * sizeof *cells);
        if (!cells) {
            t->failed = 1;
            return;
        }
        t->cells = cells;
        t->capacity = capacity;
    }
    char text[256];
    va_list ap;
    va_start(ap, format);
    vsnprintf(text, sizeof text, format, ap);
    va_end(ap);
    t->cells[t->n] = strdup(text);
    if (t->cells[t->n])
        t->n++;
    else
        t->failed = 1;
}

static int column_width(const struct table *t, int column)
{
    int width = 0;
    for (size_t i = (size_t)column; i < t->n; i += (size_t)t->columns) {
        int n = (int)strlen(t->cells[i]);
        width = n > width ? n : width;
    }
    return width;
}

int table_print(struct table *t, FILE *out)
{
    int ok = !t->failed;
    for (size_t i = 0; ok && i < t->n; i++) {
        int column = (int)(i % (size_t)t->columns), last = column == t->columns - 1;
        int left = t->align[column] == 'l';
        int width = left && last ? 0 : column_width(t, column); /* no blanks at the end of a line */
        fprintf(out, left ? "%-*s%s" : "%*s%s", width, t->cells[i], last ? "\n" : "  ");
    }
    for (size_t i = 0; i < t->n; i++) free(t->cells[i]);
    free(t->cells);
    *t = (struct table){0};
    return ok;
}

struct quantity quantity(double value)
{
    static const char *const units[] = {"", " k", " M", " G", " T", " P"};
    struct quantity q;
    int unit = 0;
    while (value >= 999.5 && unit < 5) {
        value /= 1000;
        unit++;
    }
    int decimals = unit == 0 || value >= 99.95 ? 0 : value >= 9.995 ? 1 : 2;
    snprintf(q.text, sizeof q.text, "%.*f%s", decimals, value, units[unit]);
    return q;
}
