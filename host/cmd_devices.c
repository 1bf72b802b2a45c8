/* klein devices: where this build can compute. */
#include "commands.h"
#include "shared_options.h"

#include "../engine/klein.h"
#include "../kernels/device.h"

#include <jansson.h>
#include <string.h>
#include <unistd.h>

struct settings {
    int json;
};

/* What klein_open takes for "auto", but for models that a GPU cannot hold. */
static struct device_label default_device(void)
{
    struct klein_error none = {0};
    struct device *dev;
    char passed_over[KLEIN_MESSAGE_MAX];
    struct device_label label = {"cpu"};
    if (device_open_best(&(struct device_options){0}, NULL, NULL, &dev, passed_over, &none) != KLEIN_OK)
        return label;
    label = device_label(dev->name, dev->number);
    device_close(dev);
    return label;
}

/* One device that computes, as JSON or as a line; how it failed to open if it did. */
static json_t *device_row(const char *name, int is_default, int json)
{
    struct klein_error err = {0};
    struct device *dev = NULL;
    json_t *row = NULL;
    if (device_open(name, &(struct device_options){0}, &dev, &err) == KLEIN_OK && dev->computes) {
        const char *dtype = dev->act == DT_BF16 ? "bf16" : "f32";
        if (json)
            row = json_pack("{s:s, s:s, s:s, s:i, s:b}", "name", name, "description", dev->description,
                            "dtype", dtype, "threads", dev->threads, "default", is_default);
        else
            printf("%-8s %-5s %s%s\n", name, dtype, dev->description, is_default ? " (default)" : "");
    } else if (!dev && !json) {
        printf("%-8s %-5s not available: %s\n", name, "-", err.message);
    }
    device_close(dev);
    return row;
}

static enum klein_status run(const void *settings, struct klein_error *err)
{
    int json = ((const struct settings *)settings)->json;
    json_t *rows = json_array();
    const char *name;
    const struct device_label standard = default_device();
    int failed = !rows;
    if (!json) printf("%-8s %-5s %s\n", "DEVICE", "DTYPE", "WHAT");
    for (int i = 0; (name = device_backend(i)); i++)
        for (int n = 0, all = device_count(name); n == 0 || n < all; n++) { /* not there: it says why */
            const struct device_label label = device_label(name, n);
            json_t *row = device_row(label.text, !strcmp(label.text, standard.text), json);
            if (row) failed |= json_array_append_new(rows, row);
        }
    double memory = (double)sysconf(_SC_PHYS_PAGES) * (double)sysconf(_SC_PAGESIZE);
    if (json) {
        json_t *o = json_pack("{s:O, s:I}", "devices", rows, "memory_bytes", (json_int_t)memory);
        failed |= !o || json_dumpf(o, stdout, JSON_COMPACT);
        putchar('\n');
        json_decref(o);
    } else {
        printf("memory of this machine: %.1f GiB\n", memory / 0x1p30);
    }
    json_decref(rows);
    return failed ? fail(err, KLEIN_E_NO_MEMORY, "cannot make the JSON result") : KLEIN_OK;
}

#define AT(field) offsetof(struct settings, field)
static const struct cli_group groups[] = {{"Options", json_options, AT(json)}, {0}};

const struct cli_command command_devices = {
    .name = "devices",
    .summary = "list the devices that can compute",
    .about = "The default is the first GPU that can hold the model, else cpu; what is marked holds for "
             "models that "
             "fit.",
    .groups = groups,
    .settings_size = sizeof(struct settings),
    .run = run,
};
