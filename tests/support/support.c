#include "support.h"

#include "../../kernels/check/op_cases.h"

#include <ftw.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

static void check_shapes(struct tensor a, struct tensor b)
{
    cr_assert(a.rows == b.rows && a.cols == b.cols, "shapes differ: %dx%d, %dx%d", a.rows, a.cols, b.rows,
              b.cols);
}

double relative_l2(struct tensor a, struct tensor b)
{
    check_shapes(a, b);
    return tensor_relative_l2(a, b);
}

double max_abs_diff(struct tensor a, struct tensor b)
{
    check_shapes(a, b);
    return tensor_max_difference(a, b);
}

/* What a user's cache has is no matter of the tests; those of tuned kernels unset it. */
__attribute__((constructor)) static void no_tuned_kernels(void)
{
    setenv("KLEIN_TUNE", "off", 1);
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
