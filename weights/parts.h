/* parts.h: what checkpoint.c is made of; private to weights/. */
#ifndef KLEIN_PARTS_H
#define KLEIN_PARTS_H

#include "checkpoint.h"
#include "safetensors.h"

/* One canonical name and where its data are: piece `piece` of `pieces` equal row ranges of a tensor in a
 * file. */
struct source {
    char *name;
    const struct st_file *file;
    const struct st_tensor *tensor;
    int piece, pieces;
    int used;
};

/* The files of one part, by canonical name. */
struct part {
    enum checkpoint_part which;
    char *path; /* file or folder, for messages */
    struct st_file **file;
    struct source *source; /* sorted by name once part_sort was called */
    int files, sources, capacity;
};

/* Opens the safetensors files at `path`: a file, or a folder with one file or with shards and their index.
 * Shards that hold nothing but text encoder layers from `text_layers` on are not opened. May be called once
 * more for a part that lacks something: then only names that are not there yet are added, and none of the
 * decoder. part_sort after each call. */
enum klein_status part_open(struct part *p, const char *path, int text_layers, struct klein_error *err);
enum klein_status part_sort(struct part *p,
                            struct klein_error *err); /* a name that is there twice is an error */
void part_close(struct part *p);
struct source *part_find(const struct part *p, const char *name); /* NULL if absent */

/* Row range and size of a source: shape[0] is divided among the pieces. */
int64_t source_dim(const struct source *s, int d);

/* Numbers of c that the shapes of the part's tensors tell; those that they do not tell stay. */
enum klein_status infer_config(const struct part *p, struct model_config *c, struct klein_error *err);
/* The same numbers must already be in c, which came from `file`. */
enum klein_status infer_compare(const struct part *p, const struct model_config *c, const char *file,
                                struct klein_error *err);

/* What was asked for, in order. */
struct asked {
    struct checkpoint_entry entry; /* entry.name is owned */
    uint64_t hash;                 /* of the name */
    void *memory;                  /* random checkpoints: the tensor's own mapping */
    size_t bytes;
    float *scale;     /* quantised matrices: of each row */
    const void *data; /* of the tensor, wherever it is */
    int again;        /* it will be asked for once more */
};

struct checkpoint {
    enum { FROM_FILES, SHAPES_ONLY, RANDOM } kind;
    struct model_config config;
    struct part part[PART_COUNT]; /* FROM_FILES */
    char *tokenizer_dir;
    struct asked *asked;
    int n_asked, asked_capacity;
    enum dtype dtype; /* of SHAPES_ONLY and RANDOM */
    uint64_t seed;
    uintptr_t next_address; /* SHAPES_ONLY */
    checkpoint_placer *place;
    void *place_user;
};

enum klein_status checkpoint_new(const struct model_config *config, struct checkpoint **out,
                                 struct klein_error *err);

#endif
