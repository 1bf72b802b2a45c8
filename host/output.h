/* output.h: where pictures go. Names are decided here, pictures are encoded and written by image.h. */
#ifndef KLEIN_OUTPUT_H
#define KLEIN_OUTPUT_H

#include "image.h"

#include "../base/error.h"

#include <stddef.h>

struct output {
    const char
        *path; /* -o: a file, a pattern with %d or %03d, an existing folder, "-"; NULL: klein-SEED.png here */
    enum image_format format; /* IMAGE_AUTO: by the extension, else PNG */
    int images;               /* of the request */
};

/* Everything that can be known before the long work: the format, that the folder exists and can be written
 * to, that picture data are not for a terminal. Sets `format`. */
enum klein_status output_check(struct output *o, struct klein_error *err);

/* The path of picture `image` (from 0). With -o FILE and several pictures a number from 1 is put before the
 * extension. Names that klein chose itself never hit an existing file: -1, -2, ... is added. */
enum klein_status output_path(const struct output *o, int image, uint64_t seed, char *path, size_t size,
                              struct klein_error *err);

/* A file can be made there: KLEIN_E_OUTPUT if its folder is missing or not writable, or the path is a folder.
 */
enum klein_status output_check_file(const char *path, struct klein_error *err);

#endif
