#include "support.h"

#include <ftw.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

double relative_l2(struct tensor a, struct tensor b)
{
    cr_assert(a.rows == b.rows && a.cols == b.cols, "shapes differ: %dx%d, %dx%d", a.rows, a.cols, b.rows,
              b.cols);
    double difference = 0, norm = 0;
    for (int r = 0; r < a.rows; r++)
        for (int c = 0; c < a.cols; c++) {
            double x = tensor_get(a, r, c), y = tensor_get(b, r, c);
            if (!isfinite(x)) return INFINITY;
            difference += (x - y) * (x - y);
            norm += y * y;
        }
    return norm > 0 ? sqrt(difference / norm) : difference > 0 ? INFINITY : 0;
}

double max_abs_diff(struct tensor a, struct tensor b)
{
    cr_assert(a.rows == b.rows && a.cols == b.cols, "shapes differ: %dx%d, %dx%d", a.rows, a.cols, b.rows,
              b.cols);
    double worst = 0;
    for (int r = 0; r < a.rows; r++)
        for (int c = 0; c < a.cols; c++) {
            double d = fabs((double)tensor_get(a, r, c) - tensor_get(b, r, c));
            if (!(d <= worst)) worst = isfinite(d) ? d : INFINITY;
        }
    return worst;
}

uint64_t fnv1a(const void *bytes, size_t n)
{
    uint64_t h = 0xcbf29ce484222325u;
    for (const uint8_t *b = bytes; n--; b++) h = (h ^ *b) * 0x100000001b3u;
    return h;
}

static char directory[64];

static int remove_entry(const char *path, const struct stat *st, int flag, struct FTW *ftw)
{
    return remove(path);
}

static void remove_directory(void)
{
    nftw(directory, remove_entry, 16, FTW_DEPTH | FTW_PHYS);
}

const char *test_dir(void)
{
    if (!directory[0]) {
        snprintf(directory, sizeof directory, "/tmp/klein-test-XXXXXX");
        cr_assert(mkdtemp(directory), "mkdtemp");
        atexit(remove_directory);
    }
    return directory;
}

const char *test_device(const char *spec)
{
    if (strncmp(spec, "soft ", 5)) return spec;
    cr_assert(!setenv("KLEIN_SOFT", spec + 5, 1));
    return "soft";
}
