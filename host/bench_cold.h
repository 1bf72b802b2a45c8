/* bench_cold.h: klein bench --cold: the time to the first picture, from the start of a process whose files were not in memory. */
#ifndef KLEIN_BENCH_COLD_H
#define KLEIN_BENCH_COLD_H

#include "shared_options.h"

/* The model, request and device as the options of bench say. Starts the program anew, so this does not return the first time but for
 * failures; the second time it opens the model, makes the picture, and prints. */
enum klein_status bench_cold(const struct model_settings *model, const struct device_settings *device,
                             const struct klein_request *request, int json, struct klein_error *err);

#endif
