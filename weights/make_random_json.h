/* make_random_json.h: the files of a diffusers folder that are not weights; private to make_random.c. Folders
 * exist. */
#ifndef KLEIN_MAKE_RANDOM_JSON_H
#define KLEIN_MAKE_RANDOM_JSON_H

#include "config.h"

#include <jansson.h>

/* model_index.json, the config.json of each part, scheduler_config.json, and klein.json if anything needs it.
 */
enum klein_status make_random_configs(const struct model_config *c, const char *folder,
                                      struct klein_error *err);
/* A copy of the tokenizer in `from`, or (NULL) one of single bytes and the special tokens. */
enum klein_status make_random_tokenizer(const struct model_config *c, const char *from, const char *folder,
                                        struct klein_error *err);
/* Writes and frees `json`; NULL stands for an allocation that failed. */
enum klein_status make_random_write_json(json_t *json, const char *folder, const char *name,
                                         struct klein_error *err);

#endif
