/* report.h: what klein generate says about a request and its result. */
#ifndef KLEIN_REPORT_H
#define KLEIN_REPORT_H

#include "../engine/klein.h"

#include <jansson.h>
#include <stdio.h>

struct report {
    const struct klein_request *request;
    const struct klein_result *result;
    const struct klein_model_info *model;
    char *const *files; /* one per picture */
    const char *noise;  /* what the pictures began with */
    int seeded;         /* 0: the seeds mean nothing, latents were given */
    const char *dump;   /* NULL: none */
};

/* Before the work, on stderr: model, references as they will be used. */
void report_request(const struct klein_request *request, const struct klein_model_info *model,
                    const char *const *reference_names);
/* After it, on stderr: seed, size, times. */
void report_notes(const struct report *r);
/* Where it runs: "cuda", "cuda:1", or of several GPUs "cuda:0,1 ulysses"; for people, pictures' metadata and JSON. */
struct device_text {
    char text[64];
};
struct device_text report_device(const struct klein_model_info *model);
/* "gpus" and "parallel" of a result, also where there is one device; 0, or -1 without memory. */
int report_gpus(json_t *o, const struct klein_model_info *model);
/* Whether a text can stand in JSON. */
int report_is_utf8(const char *text);
/* One JSON object in one line. KLEIN_E_NO_MEMORY. */
enum klein_status report_json(const struct report *r, FILE *out, struct klein_error *err);

#endif
