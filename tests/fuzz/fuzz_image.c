/* fuzz_image: pictures, as image_decode takes them from anywhere and, where it does not know the format, as stb_image takes them from
 * local files; and EXIF blocks. Seeds: tests/golden/images. The build for fuzzing has a low limit of pixels, so that runs are fast. */
#include "../../base/error.h"
#include "../../host/image_codec.h"

#include <stdlib.h>

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t n);

/* Either a picture or a message. */
static void check(enum klein_status status, struct klein_image *image, const struct klein_error *err)
{
    if ((status == KLEIN_OK) != (image->rgb != NULL) || (status != KLEIN_OK) != (err->message[0] != 0))
        abort();
    if (status == KLEIN_OK && (image->width < 1 || image->height < 1)) abort();
    image_free(image);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t n)
{
    const struct image_source from = {data, n, "fuzz"};
    struct klein_image image = {0};
    struct klein_error err = {0};
    int orientation = exif_orientation(data, n);
    if (orientation < 1 || orientation > 8) abort();

    enum klein_status status = image_decode(data, n, "fuzz", &image, &err);
    check(status, &image, &err);
    if (status == KLEIN_OK) return 0;
    err = (struct klein_error){0};
    status = image_stb_read(&from, &image, &orientation, &err);
    if (status != KLEIN_OK) image_free(&image); /* left to the caller */
    check(status, &image, &err);
    return 0;
}
