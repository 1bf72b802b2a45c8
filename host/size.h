/* size.h: picture sizes as people write them. Both sides of a picture are multiples of SIZE_STEP pixels. */
#ifndef KLEIN_SIZE_H
#define KLEIN_SIZE_H

#include "../base/error.h"

#define SIZE_STEP 16
#define SIZE_LARGEST                                                                                         \
    4096 /* pixels per side: more than the models were trained for, and still a bounded amount of memory */

struct size {
    int width, height;
};

/* "1024x768": two positive numbers. `name` is what to call it in messages: "--size". KLEIN_E_USAGE. */
enum klein_status size_parse(const char *text, const char *name, struct size *out, struct klein_error *err);

/* Multiples of 16 from 16 to SIZE_LARGEST; otherwise KLEIN_E_USAGE naming the nearest size that will do. */
enum klein_status size_check(struct size size, struct klein_error *err);

/* What the options --size, -W, -H and --aspect (NULL, 0, 0, NULL: not given) ask for; {0, 0} if they leave it
 * open. usual: the size that would be made without them. --aspect keeps about its area; a side alone keeps
 * its proportions. */
enum klein_status size_choose(const char *size, int width, int height, const char *aspect, struct size usual,
                              struct size *out, struct klein_error *err);

#endif
