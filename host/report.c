#include "report.h"
#include "message.h"
#include "table.h"

#include "../base/error.h"
#include "../engine/resize.h"

#include <inttypes.h>
#include <jansson.h>
#include <string.h>

struct device_text report_device(const struct klein_model_info *model)
{
    struct device_text t;
    size_t n = (size_t)snprintf(t.text, sizeof t.text, "%s", model->device);
    for (int i = 0; i < model->n_gpus; i++)
        n += (size_t)snprintf(t.text + n, sizeof t.text - n, "%c%d", i ? ',' : ':', model->gpus[i]);
    if (model->n_gpus > 1) snprintf(t.text + n, sizeof t.text - n, " %s", model->parallel);
    return t;
}

int report_gpus(json_t *o, const struct klein_model_info *model)
{
    json_t *list = json_array();
    int failed = 0;
    for (int i = 0; i < model->n_gpus; i++)
        failed |= json_array_append_new(list, json_integer(model->gpus[i]));
    failed |= json_object_set_new(o, "gpus", list);
    return failed |
           json_object_set_new(o, "parallel", model->n_gpus ? json_string(model->parallel) : json_null());
}

void report_request(const struct klein_request *request, const struct klein_model_info *model,
                    const char *const *reference_names)
{
    message(MESSAGE_NOTE, "%s%s, %s parameters, licence %s, on %s in %s%s", model->name,
            model->toy ? " (a toy)" : "", quantity((double)model->parameters).text, model->license,
            report_device(model).text, model->dtype,
            strcmp(model->precision, "fp8") ? "" : ", blocks in fp8");
    for (int i = 0; i < request->n_references; i++) {
        const struct klein_image *image = &request->references[i];
        struct klein_error ignored = {0};
        int scaled_w, scaled_h, w, h;
        if (reference_size(image->width, image->height, &scaled_w, &scaled_h, &w, &h, &ignored) == KLEIN_OK)
            message(MESSAGE_NOTE, "reference %d: %s, %dx%d, used as %dx%d", i + 1, reference_names[i],
                    image->width, image->height, w, h);
    }
}

void report_notes(const struct report *r)
{
    const struct klein_result *result = r->result;
    char stages[200] = "", seeds[64] = "";
    size_t used = 0;
    for (int s = 0; s < KLEIN_STAGE_COUNT; s++)
        if (result->seconds[s] > 0 && (s != KLEIN_STAGE_REFERENCES || r->request->n_references) &&
            used < sizeof stages)
            used += (size_t)snprintf(stages + used, sizeof stages - used, "%s%s %.2f", used ? ", " : "",
                                     klein_stage_name((enum klein_stage)s), result->seconds[s]);
    if (r->seeded)
        snprintf(seeds, sizeof seeds,
                 result->n_images > 1 ? "seeds %" PRIu64 " to %" PRIu64 ", " : "seed %" PRIu64 ", ",
                 result->seeds[0], result->seeds[result->n_images - 1]);
    message(MESSAGE_NOTE, "%s%dx%d, %d step%s, %.2f s (%s)", seeds, result->width, result->height,
            result->steps, result->steps == 1 ? "" : "s", result->total_seconds, stages);
}

int report_is_utf8(const char *text)
{
    json_t *string = json_string(text);
    json_decref(string);
    return string != NULL;
}

static json_t *files_json(const struct report *r)
{
    json_t *images = json_array();
    for (int i = 0; i < r->result->n_images; i++) {
        char hash[20];
        snprintf(hash, sizeof hash, "%016" PRIx64, r->result->latent_hashes[i]);
        json_t *image = json_pack("{s:s, s:s}", "file", r->files[i], "latent_hash", hash);
        if (r->seeded) json_object_set_new(image, "seed", json_integer((json_int_t)r->result->seeds[i]));
        json_array_append_new(images, image);
    }
    return images;
}

static json_t *seconds_json(const struct klein_result *result)
{
    json_t *seconds = json_object();
    for (int s = 0; s < KLEIN_STAGE_COUNT; s++)
        json_object_set_new(seconds, klein_stage_name((enum klein_stage)s), json_real(result->seconds[s]));
    json_object_set_new(seconds, "total", json_real(result->total_seconds));
    return seconds;
}

enum klein_status report_json(const struct report *r, FILE *out, struct klein_error *err)
{
    const struct klein_result *result = r->result;
    const struct klein_model_info *model = r->model;
    json_t *warnings = result->warning[0] ? json_pack("[s]", result->warning) : json_array();
    json_t *o = json_pack(
        "{s:o, s:s?, s:i, s:i, s:i, s:f, s:i, s:i, s:s, s:s, s:b, s:s, s:s, s:s, s:o, s:o, s:s}", "images",
        files_json(r), "prompt", r->request->prompt, "width", result->width, "height", result->height,
        "steps", result->steps, "guidance", (double)result->guidance, "prompt_tokens", result->prompt_tokens,
        "references", r->request->n_references, "noise", r->noise, "model", model->name, "toy", model->toy,
        "device", report_device(model).text, "dtype", model->dtype, "precision", model->precision, "seconds",
        seconds_json(result), "warnings", warnings, "version", klein_version());
    if (r->dump && o) json_object_set_new(o, "dump", json_string(r->dump));
    int failed = !o || report_gpus(o, model) || json_dumpf(o, out, JSON_COMPACT | JSON_REAL_PRECISION(9));
    fputc('\n', out);
    json_decref(o);
    return failed ? fail(err, KLEIN_E_NO_MEMORY, "cannot make the JSON result") : KLEIN_OK;
}
