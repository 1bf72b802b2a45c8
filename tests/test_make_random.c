#include "../engine/model.h"
#include "../weights/make_random.h"
#include "../weights/random.h"
#include "../weights/tokenizer.h"
#include "support/alloc.h"
#include "support/models.h"
#include "support/support.h"

#include <jansson.h>
#include <omp.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/stat.h>
#include <unistd.h>

static struct klein_error err;

static int tensors_in(const char *file)
{
    struct st_file *f;
    OK(st_open(file, &f, &err));
    int n = st_count(f);
    st_close(f);
    return n;
}

static int entries_in_test_dir(void)
{
    char command[256], text[16] = "";
    snprintf(command, sizeof command, "ls -A %s | wc -l", test_dir());
    FILE *p = popen(command, "r");
    cr_assert(p && fgets(text, sizeof text, p));
    pclose(p);
    return atoi(text);
}

/* The tensor counts of the real files (model description 2.5, 2.6, 2.8), by formula for the transformer and the text encoder. */
Test(make_random, files_hold_what_the_official_ones_hold)
{
    struct model_config tiny;
    OK(config_named("tiny", &tiny, &err));
    small_model("m", &tiny, 0);
    const char *transformer = in_test_dir("m/transformer/diffusion_pytorch_model.safetensors");
    cr_assert(tensors_in(transformer) == 9 + 16 * 2 + 4 * 3);
    cr_assert(tensors_in(in_test_dir("m/text_encoder/model.safetensors")) == 1 + 11 * 4 + 1);
    cr_assert(tensors_in(in_test_dir("m/vae/diffusion_pytorch_model.safetensors")) == 251);
    struct st_file *f;
    OK(st_open(transformer, &f, &err));
    const struct st_tensor *t = st_find(f, "norm_out.linear.weight");
    cr_assert(t && t->dtype == DT_BF16 && t->ndim == 2 && t->shape[0] == 512 && t->shape[1] == 256);
    cr_assert_str_eq(st_metadata(f, "format"), "pt");
    st_close(f);
    OK(st_open(in_test_dir("m/vae/diffusion_pytorch_model.safetensors"), &f, &err));
    t = st_find(f, "bn.num_batches_tracked");
    cr_assert(t && t->dtype == DT_I64 && t->ndim == 0 && *(const int64_t *)t->data == 0);
    for (int i = 0; i < st_count(f); i++)
        cr_assert((uintptr_t)st_get(f, i)->data % 8 == 0 || st_get(f, i)->dtype == DT_BF16);
    st_close(f);
    cr_assert(entries_in_test_dir() == 1, "something is left beside the folder");
}

static struct make_random_options options(const struct model_config *c, const char *name)
{
    return (struct make_random_options){.config = c, .dir = in_test_dir("%s", name), .seed = 7};
}

Test(make_random, used_only_and_untied)
{
    struct model_config c = small_config();
    c.text.tied = 0;
    struct make_random_options o = options(&c, "all");
    OK(make_random(&o, model_visit, &err));
    cr_assert(tensors_in(in_test_dir("all/text_encoder/model.safetensors")) ==
              1 + 11 * 4 + 2); /* and lm_head */
    o = options(&c, "used");
    o.used_only = 1;
    OK(make_random(&o, model_visit, &err));
    cr_assert(tensors_in(in_test_dir("used/text_encoder/model.safetensors")) == 1 + 11 * 3);
    for (int i = 0; i < 2; i++) {
        struct checkpoint *k;
        OK(checkpoint_open(&(struct checkpoint_paths){.model = in_test_dir(i ? "all" : "used")}, &k, &err));
        OK(model_visit(k, &err));
        cr_assert(!checkpoint_config(k)->text.tied);
        checkpoint_close(k);
    }
}

Test(make_random, index_names_every_tensor)
{
    struct model_config c = small_config();
    const char *dir = small_model("m", &c, 300000);
    json_t *root = json_load_file(in_test_dir("m/text_encoder/model.safetensors.index.json"), 0, NULL);
    json_t *map = json_object_get(root, "weight_map"),
           *total = json_object_get(json_object_get(root, "metadata"), "total_size");
    cr_assert(json_object_size(map) == 1 + 11 * 4 + 1);
    int64_t bytes = 0;
    for (int i = 1; i <= 2; i++) {
        char path[512];
        snprintf(path, sizeof path, "%s/text_encoder/model-%05d-of-00002.safetensors", dir, i);
        struct st_file *f;
        OK(st_open(path, &f, &err));
        for (int k = 0; k < st_count(f); k++) {
            cr_assert_str_eq(json_string_value(json_object_get(map, st_get(f, k)->name)),
                             strrchr(path, '/') + 1);
            bytes += (int64_t)st_get(f, k)->bytes;
        }
        cr_assert(st_size(f) < 320000);
        st_close(f);
    }
    cr_assert(json_integer_value(total) == bytes);
    json_decref(root);
}

static void encode(const char *dir, int *first, int *letter)
{
    struct tokenizer *t;
    int32_t ids[64];
    int real, whole;
    OK(tokenizer_open(dir, &t, &err));
    OK(tokenizer_prompt(t, "a", 64, ids, &real, &whole, &err));
    /* <im_start> user\n a <im_end> \n <im_start> assistant\n <think> \n\n </think> \n\n, a token per byte */
    cr_assert(real == 26 && whole == 26, "%d tokens", real);
    *first = ids[0];
    *letter = ids[6];
    tokenizer_close(t);
}

Test(make_random, tokenizer)
{
    struct model_config c = small_config();
    int first, letter;
    small_model("small", &c, 0);
    encode(in_test_dir("small/tokenizer"), &first, &letter);
    cr_assert(first == 257 && letter == 64, "%d %d", first, letter);
    c.text.vocab = 151936; /* Qwen3's: then the special tokens, and the bytes anyway, have Qwen3's ids */
    small_model("large", &c, 0);
    encode(in_test_dir("large/tokenizer"), &first, &letter);
    cr_assert(first == 151644 && letter == 64, "%d %d", first, letter);

    c = small_config();
    struct make_random_options o = options(&c, "copied");
    o.tokenizer_dir = in_test_dir("small/tokenizer");
    OK(make_random(&o, model_visit, &err));
    encode(in_test_dir("copied/tokenizer"), &first, &letter);
    cr_assert(first == 257);
    cr_assert(!access(in_test_dir("copied/tokenizer/tokenizer_config.json"), R_OK));
    o = options(&c, "too-large");
    o.tokenizer_dir = in_test_dir("large/tokenizer");
    FAILS(make_random(&o, model_visit, &err), KLEIN_E_USAGE,
          "this tokenizer has ids up to 151668, the model a vocabulary of 300");
    c.text.vocab = 260;
    o.tokenizer_dir = NULL;
    FAILS(make_random(&o, model_visit, &err), KLEIN_E_USAGE, "no room for 256 bytes");
    cr_assert(entries_in_test_dir() == 3, "something was left");
}

static int stop_after_a_while(void *user, uint64_t done, uint64_t total)
{
    uint64_t *last = user;
    cr_assert(done > *last && done <= total);
    *last = done;
    return done > total / 2;
}

static int note(void *user, uint64_t done, uint64_t total)
{
    uint64_t *last = user;
    last[0] = done;
    last[1] = total;
    return 0;
}

Test(make_random, nothing_half_made)
{
    struct model_config c = small_config();
    struct make_random_options o = options(&c, "m");
    uint64_t progress[2] = {0};
    o.user = progress;
    o.progress = stop_after_a_while;
    FAILS(make_random(&o, model_visit, &err), KLEIN_E_CANCELLED, "cancelled");
    cr_assert(entries_in_test_dir() == 0);
    o.progress = note;
    OK(make_random(&o, model_visit, &err));
    cr_assert(progress[0] + 8 == progress[1]); /* all but the batch counter */
    FAILS(make_random(&o, model_visit, &err), KLEIN_E_OUTPUT, "m: is not empty");
    cr_assert(!mkdir(in_test_dir("empty"), 0700));
    o.dir = in_test_dir("empty/");
    OK(make_random(&o, model_visit, &err));
    cr_assert(!access(in_test_dir("empty/model_index.json"), R_OK));
    o.dir = in_test_dir("m/model_index.json");
    FAILS(make_random(&o, model_visit, &err), KLEIN_E_OUTPUT, "Not a directory");
    o.dir = in_test_dir("none/m");
    FAILS(make_random(&o, model_visit, &err), KLEIN_E_OUTPUT, "cannot create: No such file");
    cr_assert(entries_in_test_dir() == 2);
    c.text.vocab = 1 << 30; /* 64 TB */
    c.text.width = 32768;
    o.dir = in_test_dir("huge");
    FAILS(make_random(&o, model_visit, &err), KLEIN_E_OUTPUT, "the disk has room for");
    cr_assert(entries_in_test_dir() == 2);
}

static enum klein_status failing_bind(struct checkpoint *c, struct klein_error *e)
{
    return fail(e, KLEIN_E_INTERNAL, "cannot bind");
}

Test(make_random, failures_of_the_caller)
{
    struct model_config c = small_config();
    struct make_random_options o = options(&c, "m");
    FAILS(make_random(&o, failing_bind, &err), KLEIN_E_INTERNAL, "cannot bind");
    cr_assert(entries_in_test_dir() == 0);
}

Test(make_random, values_do_not_depend_on_threads_or_pieces)
{
    enum { N = 300001 };
    static bf16 a[N], b[N], pieces[N];
    int64_t shape[] = {N, 1};
    omp_set_num_threads(1);
    random_values(a, DT_BF16, 0, N, 5, PART_TEXT, "w", 2, shape);
    omp_set_num_threads(3);
    random_values(b, DT_BF16, 0, N, 5, PART_TEXT, "w", 2, shape);
    for (size_t from = 0, n; from < N; from += n) {
        n = from + 70004 < N ? 70004 : N - from;
        random_values(pieces + from, DT_BF16, from, n, 5, PART_TEXT, "w", 2, shape);
    }
    cr_assert(!memcmp(a, b, sizeof a) && !memcmp(a, pieces, sizeof a));
    random_values(a, DT_BF16, 0, 128, 5, PART_VAE, "bn.running_mean", 1, (int64_t[]){128});
    random_values(b, DT_BF16, 4, 124, 5, PART_VAE, "bn.running_mean", 1, (int64_t[]){128});
    cr_assert(!memcmp(a + 4, b, 124 * sizeof *a));
}

Test(make_random, allocations_that_fail)
{
    struct model_config c = small_config();
    struct make_random_options o = options(&c, "m");
    EACH_ALLOCATION_FAILS(make_random(&o, model_visit, &err), remove_tree(in_test_dir("m")));
    cr_assert(entries_in_test_dir() == 0);
}
