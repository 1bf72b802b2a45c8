/* workload.h: a request without content: the sizes that `klein plan` and `klein bench` work on. */
#ifndef KLEIN_WORKLOAD_H
#define KLEIN_WORKLOAD_H

#include "cli.h"

#include "../engine/klein.h"
#include "../weights/config.h"

struct workload_settings {
    const char *size;
    struct cli_texts references;
    int steps, images;
};

extern const struct cli_option workload_options[];

/* request->references points into images (KLEIN_MAX_REFERENCES of them, rgb NULL). Sizes are checked. */
enum klein_status workload_request(const struct workload_settings *s, struct klein_image *images,
                                   struct klein_request *request, struct klein_error *err);

#endif
