#include "workload.h"
#include "size.h"

#define AT(field) offsetof(struct workload_settings, field)
const struct cli_option workload_options[] = {
    {0, "size", "WxH", CLI_TEXT, AT(size), .help = "size of the picture",
     .standard = "that of the first reference, else the model's"},
    {'i', "image", "WxH", CLI_TEXTS, AT(references),
     .help = "size of a reference picture; may be repeated, up to 16 times", .max = KLEIN_MAX_REFERENCES},
    {'s', "steps", "N", CLI_INT, AT(steps), .help = "denoising steps", .standard = "4; base models 50",
     CLI_RANGE(1, KLEIN_MAX_STEPS)},
    {'n', "count", "N", CLI_INT, AT(images), .help = "number of pictures", .standard = "1",
     CLI_RANGE(1, KLEIN_MAX_IMAGES)},
    {0},
};

enum klein_status workload_request(const struct workload_settings *s, struct klein_image *images,
                                   struct klein_request *request, struct klein_error *err)
{
    struct size size = {0, 0};
    if (s->size) {
        TRY(size_parse(s->size, "--size", &size, err));
        TRY(size_check(size, err));
    }
    for (int i = 0; i < s->references.n; i++) {
        struct size reference;
        TRY(size_parse(s->references.item[i], "-i", &reference, err));
        images[i] = (struct klein_image){reference.width, reference.height, NULL};
    }
    *request = (struct klein_request){.size = sizeof *request,
                                      .prompt = "a red balloon on a wooden table",
                                      .width = size.width,
                                      .height = size.height,
                                      .steps = s->steps,
                                      .images = s->images,
                                      .references = images,
                                      .n_references = s->references.n};
    return KLEIN_OK;
}
