/* table.h: tables of text on a terminal: columns as wide as their widest cell. */
#ifndef KLEIN_TABLE_H
#define KLEIN_TABLE_H

#include <stddef.h>
#include <stdio.h>

struct table {
    int columns;
    const char *align; /* one letter per column: 'l' left, 'r' right */
    char **cells;
    size_t n, capacity; /* cells */
    int failed;         /* out of memory: table_print says nothing */
};

/* The first row is the heading. */
void table_begin(struct table *t, const char *align);
__attribute__((format(printf, 2, 3))) void table_cell(struct table *t, const char *format, ...);
/* Prints and frees. 0 if there was no memory. */
int table_print(struct table *t, FILE *out);

/* A number with its unit, three or more digits: "34.8 T", "7.75 G", "512"; for FLOP, bytes, parameters. */
struct quantity {
    char text[16];
};
struct quantity quantity(double value);

#endif
