/* The demo checkpoint weights/nano, judged by what its pictures show (support/judge.h): prompts whose combination of colour, kind and place
 * training never saw, edits, two references. tests/nano has the cases; what they are is written in tools/nano/README.md. The thresholds are
 * those that the checkpoint was asked to meet; of swapped references alone no figure was asked, and four of 16 pairs show the wrong kind of thing. --verbose prints every count, and every picture that shows something else than asked for.
 *
 * KLEIN_TEST_NANO=FOLDER judges another checkpoint, one in training say. */
#include "support/fixture.h"
#include "support/judge.h"
#include "support/program.h"

#include "../host/image.h"

#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#define NANO KLEIN_SOURCE_DIR "/tests/nano/"
#define SIDE 128
#define SHUFFLED                                                                                             \
    50 /* percent: a judge that is still right this often when asked for another picture sees nothing */
#define KEPT       5.0 /* levels of 255: mean difference away from the object that an edit may make */
#define REFERENCES 16

/* Of edits 90 percent were asked for; the checkpoint that is shipped reaches 91.0 (131 of 144: one picture more than needed). Of two references 85 were:
 * in both orders together it reaches 86.7 (104 of 120). Of those swapped alone, 75.0 (36 of 48), all show what was swapped in colour and place, and four
 * pairs of 16 the wrong kind of thing, with every seed (cups, small or at night, too soft to be told from balls): the floor is there to notice a broken
 * engine. */
#define EDITS_FLOOR   90
#define SWAPPED_FLOOR 65

/* The sanitizer build draws each case once, not three times. A third of 144 edits scatters by four or five percent, so that a checkpoint of 91 falls
 * below 90 as often as not: there the floors are lower by three such deviations, and what was asked for is judged by the other build. */
enum { SEEDS = SANITIZED ? 1 : 3, SLACK = SANITIZED ? 13 : 0 };

static const char *checkpoint(void)
{
    const char *other = getenv("KLEIN_TEST_NANO");
    return other ? other : KLEIN_SOURCE_DIR "/weights/nano";
}

static void skip_without_checkpoint(void)
{
    char path[1024];
    snprintf(path, sizeof path, "%s/model_index.json", checkpoint());
    if (access(path, R_OK)) cr_skip_test("weights/nano is not there yet");
}

static json_t *load(const char *name)
{
    json_error_t e;
    char path[512];
    snprintf(path, sizeof path, NANO "%s", name);
    json_t *root = json_load_file(path, 0, &e);
    cr_assert(root, "%s: %s", path, e.text);
    return root;
}

static const char *text_of(const json_t *object, const char *key)
{
    const char *s = json_string_value(json_object_get(object, key));
    cr_assert(s, "tests/nano: a case without \"%s\"", key);
    return s;
}

/* --- counting --- */

struct score {
    int right[ATTRIBUTES], all, n;
};

/* What was found against what was asked for; `what` names the picture in the log, NULL: not logged. */
static int count(struct score *s, const struct shown *found, const struct shown *wanted, const char *what)
{
    int all = 1;
    for (int a = 0; a < ATTRIBUTES; a++) {
        int right = found->value[a] == wanted->value[a];
        s->right[a] += right;
        all &= right;
        if (!right && what)
            cr_log_info("%s: %s is %s, not %s", what, attribute_names[a], shown_value(a, found->value[a]),
                        shown_value(a, wanted->value[a]));
    }
    s->all += all;
    s->n++;
    return all;
}

static void at_least(const char *what, int right, int n, int percent)
{
    cr_log_info("%s: %d of %d right, %.1f %%", what, right, n, 100.0 * right / n);
    cr_expect(n > 0 && 100 * right >= percent * n, "%s: %d of %d right, expected %d %%", what, right, n,
              percent);
}

static void less_than(const char *what, int right, int n, int percent)
{
    cr_log_info("%s: %d of %d right, %.1f %%", what, right, n, 100.0 * right / n);
    cr_expect(n > 0 && 100 * right < percent * n, "%s: %d of %d right, yet it should be under %d %%", what,
              right, n, percent);
}

/* --- the judge, without a checkpoint --- */

Test(nano, judge_reads_rendered_scenes)
{
    struct klein_error err;
    struct klein_image sheet, scene = {SIDE, SIDE, malloc((size_t)SIDE * SIDE * 3)};
    struct score score = {{0}, 0, 0}, shuffled = {{0}, 0, 0};
    struct judge *judge = judge_open();
    json_t *expected = load("scenes.json");
    OK(image_read(NANO "scenes.webp", &sheet, &err));
    int n = (int)json_array_size(expected), columns = sheet.width / SIDE;
    cr_assert(scene.rgb && n == 60 && columns * (sheet.height / SIDE) == n);
    for (int i = 0; i < n; i++) {
        char name[32];
        for (int y = 0; y < SIDE; y++)
            memcpy(scene.rgb + (size_t)y * SIDE * 3,
                   sheet.rgb + ((size_t)(i / columns * SIDE + y) * (size_t)sheet.width +
                                (size_t)(i % columns) * SIDE) *
                                   3,
                   (size_t)SIDE * 3);
        struct shown found = judge_see(judge, &scene), wanted = shown_of(json_array_get(expected, (size_t)i)),
                     other = shown_of(json_array_get(expected, (size_t)(i + 1) % (size_t)n));
        snprintf(name, sizeof name, "scene %d", i);
        count(&score, &found, &wanted, name);
        count(&shuffled, &found, &other, NULL);
    }
    for (int a = 0; a < ATTRIBUTES; a++) at_least(attribute_names[a], score.right[a], n, 99);
    less_than("everything, of another scene", shuffled.all, n, SHUFFLED);
    json_decref(expected);
    judge_close(judge);
    image_free(&sheet);
    free(scene.rgb);
}

/* --- pictures of the checkpoint --- */

struct nano {
    struct klein *model;
    struct judge *judge;
    json_t *cases;
    struct klein_image references[REFERENCES];
    struct shown shows[REFERENCES];
};

/* One thread: Criterion runs the tests beside each other, and the picture does not depend on it. */
static struct nano *nano_open_on(const char *device)
{
    skip_without_checkpoint();
    struct klein_error err;
    /* F32 on the processor: the counts are then those of every machine. */
    struct klein_open_options o = {.size = sizeof o,
                                   .model = checkpoint(),
                                   .device = test_device(device),
                                   .dtype = strcmp(device, "cpu") ? KLEIN_DTYPE_AUTO : KLEIN_DTYPE_F32,
                                   .threads = 1};
    struct nano *nano = calloc(1, sizeof *nano);
    cr_assert(nano);
    OK(klein_open(&o, &nano->model, &err));
    nano->judge = judge_open();
    nano->cases = load("prompts.json");
    const json_t *references = json_object_get(nano->cases, "references");
    cr_assert(json_array_size(references) == REFERENCES);
    for (size_t r = 0; r < REFERENCES; r++) {
        char path[512];
        const json_t *reference = json_array_get(references, r);
        snprintf(path, sizeof path, NANO "%s", text_of(reference, "file"));
        OK(image_read(path, &nano->references[r], &err));
        nano->shows[r] = shown_of(json_object_get(reference, "shows"));
    }
    return nano;
}

static struct nano *nano_open(void)
{
    return nano_open_on("cpu");
}

static void nano_close(struct nano *nano)
{
    for (int r = 0; r < REFERENCES; r++) image_free(&nano->references[r]);
    json_decref(nano->cases);
    judge_close(nano->judge);
    klein_close(nano->model);
    free(nano);
}

/* Index of reference k of a case. */
static int reference_of(const struct nano *nano, const json_t *one, size_t k)
{
    const char *file = json_string_value(json_array_get(json_object_get(one, "references"), k));
    const json_t *references = json_object_get(nano->cases, "references");
    for (size_t r = 0; r < REFERENCES && file; r++)
        if (!strcmp(file, text_of(json_array_get(references, r), "file"))) return (int)r;
    cr_assert(0, "tests/nano/prompts.json: a case with an unknown reference");
    return 0;
}

/* At the model's defaults: four steps, guidance 1, 128 x 128. klein_result_free it. */
static struct klein_result draw(struct nano *nano, const char *prompt, int seed,
                                const struct klein_image *references, int n_references)
{
    struct klein_error err;
    struct klein_result result;
    struct klein_request q = {.size = sizeof q,
                              .prompt = prompt,
                              .seed = (uint64_t)seed,
                              .references = references,
                              .n_references = n_references};
    OK(klein_generate(nano->model, &q, &result, &err));
    cr_assert(result.steps == 4 && result.guidance == 1 && result.width == SIDE && result.height == SIDE);
    cr_assert(!result.warning[0], "\"%s\": %s", prompt, result.warning);
    return result;
}

/* The same, and what the picture shows. */
static struct shown see(struct nano *nano, const char *prompt, int seed, const struct klein_image *references,
                        int n_references)
{
    struct klein_result result = draw(nano, prompt, seed, references, n_references);
    struct shown found = judge_see(nano->judge, &result.images[0]);
    klein_result_free(&result);
    return found;
}

static const char *label(const char *prompt, int seed)
{
    static char text[256];
    snprintf(text, sizeof text, "\"%s\", seed %d", prompt, seed);
    return text;
}

/* --- text --- */

static int is_held_out(const json_t *held_out, const json_t *expected)
{
    char combination[64];
    size_t i;
    const json_t *one;
    snprintf(combination, sizeof combination, "%s %s %s", text_of(expected, "colour"),
             text_of(expected, "kind"), text_of(expected, "place"));
    json_array_foreach(held_out, i, one) if (!strcmp(json_string_value(one), combination)) return 1;
    return 0;
}

Test(nano, prompts_held_out_of_training)
{
    struct nano *nano = nano_open();
    json_t *held_out = load("heldout.json");
    const json_t *texts = json_object_get(nano->cases, "texts");
    size_t n = json_array_size(texts);
    struct score score = {{0}, 0, 0}, shuffled = {{0}, 0, 0};
    cr_assert(n >= 60);
    for (size_t i = 0; i < n; i++) {
        const json_t *one = json_array_get(texts, i), *next = json_array_get(texts, (i + 1) % n);
        const char *prompt = text_of(one, "prompt");
        struct shown wanted = shown_of(json_object_get(one, "expect")),
                     other = shown_of(json_object_get(next, "expect"));
        uint64_t hashes[SEEDS];
        cr_assert(is_held_out(held_out, json_object_get(one, "expect")), "\"%s\" was in training", prompt);
        for (int seed = 0; seed < SEEDS; seed++) {
            struct klein_result result = draw(nano, prompt, seed, NULL, 0);
            struct shown found = judge_see(nano->judge, &result.images[0]);
            hashes[seed] = result.latent_hashes[0];
            klein_result_free(&result);
            count(&score, &found, &wanted, label(prompt, seed));
            count(&shuffled, &found, &other, NULL);
            cr_expect(!seed || hashes[seed] != hashes[0], "\"%s\": the seed changes nothing", prompt);
        }
    }
    at_least("colour", score.right[COLOUR], score.n, 95 - SLACK);
    at_least("kind", score.right[KIND], score.n, 85 - SLACK);
    at_least("place", score.right[PLACE], score.n, 95 - SLACK);
    at_least("position", score.right[POSITION], score.n, 90 - SLACK);
    cr_log_info("size: %d of %d right; everything: %d", score.right[SIZE], score.n, score.all);
    for (int a = COLOUR; a <= POSITION; a++) {
        char what[64];
        snprintf(what, sizeof what, "%s of the next prompt", attribute_names[a]);
        less_than(what, shuffled.right[a], shuffled.n, SHUFFLED);
    }
    json_decref(held_out);
    nano_close(nano);
}

/* --- edits --- */

/* Whether (x, y) may change when an object with this box does: the box, a rim for the shadow, and below it a balloon's string. */
static int near_object(const int box[4], int x, int y)
{
    return x >= box[0] - 14 && x < box[2] + 14 && y >= box[1] - 14 && y < box[3] + 28;
}

static double difference_elsewhere(const struct klein_image *before, const struct klein_image *after,
                                   const struct shown *first, const struct shown *second)
{
    double sum = 0;
    int n = 0;
    cr_assert(before->width == after->width && before->height == after->height);
    for (int i = 0; i < before->width * before->height; i++) {
        int x = i % before->width, y = i / before->width;
        if (near_object(first->box, x, y) || near_object(second->box, x, y)) continue;
        for (int c = 0; c < 3; c++) sum += abs(before->rgb[3 * i + c] - after->rgb[3 * i + c]);
        n += 3;
    }
    cr_assert(n > 0);
    return sum / n;
}

Test(nano, edits_change_what_they_should)
{
    struct nano *nano = nano_open();
    static const char *const kinds[] = {"colour", "place", "remove", "kind", "size", "move"};
    enum { N_KINDS = sizeof kinds / sizeof *kinds };
    const json_t *edits = json_object_get(nano->cases, "edits");
    struct score score = {{0}, 0, 0}, of_kind[N_KINDS] = {{{0}, 0, 0}}, blind = {{0}, 0, 0};
    double changed = 0;
    int same_place = 0;
    uint8_t *zeros = calloc(SIDE * SIDE, 3);
    struct klein_image black = {SIDE, SIDE, zeros};
    size_t i;
    const json_t *one;
    cr_assert(zeros);
    json_array_foreach(edits, i, one)
    {
        const char *prompt = text_of(one, "prompt"), *kind = text_of(one, "edit");
        const struct klein_image *before = &nano->references[reference_of(nano, one, 0)];
        struct shown wanted = shown_of(json_object_get(one, "expect")), was = judge_see(nano->judge, before);
        int k = 0;
        while (k < N_KINDS && strcmp(kinds[k], kind)) k++;
        cr_assert(k < N_KINDS, "an edit of kind %s", kind);
        for (int seed = 0; seed < SEEDS; seed++) {
            struct klein_result result = draw(nano, prompt, seed, before, 1);
            struct shown found = judge_see(nano->judge, &result.images[0]);
            count(&score, &found, &wanted, label(prompt, seed));
            count(&of_kind[k], &found, &wanted, NULL);
            if (strcmp(kind, "place")) {
                changed += difference_elsewhere(before, &result.images[0], &was, &found);
                same_place++;
            }
            klein_result_free(&result);
        }
        struct shown unseen = see(nano, prompt, 0, &black, 1);
        count(&blind, &unseen, &wanted, NULL);
    }
    for (int k = 0; k < N_KINDS; k++)
        cr_log_info("%s: %d of %d right", kinds[k], of_kind[k].all, of_kind[k].n);
    cr_log_info("away from the object %.2f levels change, mean of %d edits", changed / same_place,
                same_place);
    at_least("edits", score.all, score.n, EDITS_FLOOR - SLACK);
    cr_expect(changed / same_place <= KEPT, "away from the object edits change %.2f levels, %.1f are allowed",
              changed / same_place, KEPT);
    less_than("edits of a black reference", blind.all, blind.n, SHUFFLED);
    free(zeros);
    nano_close(nano);
}

/* --- two references --- */

/* "the object of the first image ..." fits the pair in either order; "the heart of ..." does not. */
static int fits_swapped(const char *prompt)
{
    return strstr(prompt, "object") || strstr(prompt, "thing");
}

Test(nano, two_references_in_order)
{
    struct nano *nano = nano_open();
    const json_t *pairs = json_object_get(nano->cases, "pairs");
    struct score score = {{0}, 0, 0}, swapped = {{0}, 0, 0}, unmoved = {{0}, 0, 0};
    size_t i;
    const json_t *one;
    json_array_foreach(pairs, i, one)
    {
        const char *prompt = text_of(one, "prompt");
        int a = reference_of(nano, one, 0), b = reference_of(nano, one, 1);
        struct klein_image in_order[2] = {nano->references[a], nano->references[b]},
                           other_order[2] = {in_order[1], in_order[0]};
        struct shown wanted = shown_of(json_object_get(one, "expect")), reversed = nano->shows[b];
        reversed.value[PLACE] = nano->shows[a].value[PLACE];
        for (int seed = 0; seed < SEEDS; seed++) {
            struct shown found = see(nano, prompt, seed, in_order, 2);
            count(&score, &found, &wanted, label(prompt, seed));
            if (!fits_swapped(prompt)) continue;
            found = see(nano, prompt, seed, other_order, 2);
            count(&swapped, &found, &reversed, label(prompt, seed));
            count(&unmoved, &found, &wanted, NULL);
        }
    }
    at_least("pairs", score.all, score.n, 85 - SLACK);
    at_least("pairs in both orders", score.all + swapped.all, score.n + swapped.n, 85 - SLACK);
    at_least("pairs swapped", swapped.all, swapped.n, SWAPPED_FLOOR - SLACK);
    at_least("pairs swapped, colour", swapped.right[COLOUR], swapped.n, 95 - SLACK);
    at_least("pairs swapped, kind", swapped.right[KIND], swapped.n, SWAPPED_FLOOR - SLACK);
    at_least("pairs swapped, place", swapped.right[PLACE], swapped.n, 95 - SLACK);
    at_least("pairs swapped, position", swapped.right[POSITION], swapped.n, 90 - SLACK);
    less_than("pairs swapped, against the result in order", unmoved.all, unmoved.n, SHUFFLED);
    nano_close(nano);
}

/* --- as diffusers does --- */

struct comparison {
    struct st_file *file;
    int seen;
};

static void compare_tap(void *user, const struct klein_tap *tap)
{
    struct comparison *c = user;
    char name[64];
    int every = st_find(c->file, tap->name) ? 1 : 7; /* all of it, or every seventh row as NAME@7 */
    snprintf(name, sizeof name, "%s%s", tap->name, every > 1 ? "@7" : "");
    if (!st_find(c->file, name)) return;
    struct tensor ours = tensor_of((void *)tap->data, tap->is_int32 ? DT_I32 : DT_F32,
                                   tap->ndim > 1 ? (int)tap->shape[0] : 1, (int)tap->shape[tap->ndim > 1]);
    double tolerance = tap->is_int32 ? 0 : strncmp(tap->name, "latents.", 8) ? 1e-4 : 1e-3;
    double error = relative_l2(every_row(ours, every), golden(c->file, name));
    cr_expect(error <= tolerance, "%s: relative L2 %.3g, allowed %.3g", name, error, tolerance);
    c->seen++;
}

Test(nano, same_picture_as_diffusers)
{
    if (getenv("KLEIN_TEST_NANO")) cr_skip_test("the golden is of weights/nano");
    skip_without_checkpoint();
    struct klein_error err;
    struct klein *k;
    struct klein_result result;
    struct klein_open_options o = {
        .size = sizeof o, .model = checkpoint(), .device = "cpu", .dtype = KLEIN_DTYPE_F32, .threads = 1};
    struct st_file *file = golden_open(GOLDEN("nano.safetensors"));
    struct comparison comparison = {file, 0};
    struct tensor prompt = golden(file, "prompt"), want = golden(file, "image_u8");
    const int32_t *request = golden(file, "request").ptr;
    char *text = strndup(prompt.ptr, (size_t)prompt.cols);
    cr_assert(text);
    OK(klein_open(&o, &k, &err));
    struct klein_request q = {.size = sizeof q,
                              .prompt = text,
                              .width = request[0],
                              .height = request[1],
                              .steps = request[2],
                              .seed = (uint64_t)request[3],
                              .tap = compare_tap,
                              .tap_user = &comparison};
    OK(klein_generate(k, &q, &result, &err));
    cr_expect(comparison.seen == 4, "%d tensors compared, expected 4", comparison.seen);
    int worst = 0;
    cr_assert(want.rows == result.height && want.cols == result.width * 3);
    for (int i = 0; i < want.rows * want.cols; i++) {
        int d = abs((int)result.images[0].rgb[i] - ((const uint8_t *)want.ptr)[i]);
        if (d > worst) worst = d;
    }
    cr_expect(worst <= 1, "the picture differs by %d levels", worst);
    klein_result_free(&result);
    klein_close(k);
    st_close(file);
    free(text);
}

Test(nano, info_finds_it_whole_and_a_toy)
{
    skip_without_checkpoint();
    json_t *info = program_json(OK_RUN("info", "--json", "-m", checkpoint()));
    cr_assert(json_is_true(json_object_get(info, "toy")));
    json_decref(info);
}

#if !SANITIZED
/* --- the GPU's code ---------------------------------------------------------------------------------------- */

/* A few texts, an edit and a pair on the soft GPU, in bf16 as on a real one: they show what was asked for. One may be wrong: about as often
 * as on the processor. */
static void check_on_soft(const char *device, size_t texts, size_t others)
{
    static const char *const kinds[] = {"texts", "edits", "pairs"};
    setenv("KLEIN_SOFT_RACES", "0", 1); /* they are looked for elsewhere */
    struct nano *nano = nano_open_on(device);
    struct score score = {{0}, 0, 0};
    for (int kind = 0; kind < 3; kind++) {
        const json_t *all = json_object_get(nano->cases, kinds[kind]);
        size_t n = kind == 0 ? texts : others;
        for (size_t i = 0; i < n; i++) {
            const json_t *one = json_array_get(all, i * json_array_size(all) / n);
            struct klein_image references[2];
            size_t count_ = json_array_size(json_object_get(one, "references"));
            for (size_t k = 0; k < count_; k++) references[k] = nano->references[reference_of(nano, one, k)];
            struct shown wanted = shown_of(json_object_get(one, "expect")),
                         found = see(nano, text_of(one, "prompt"), 0, references, (int)count_);
            count(&score, &found, &wanted, label(text_of(one, "prompt"), 0));
        }
    }
    cr_expect(score.n > 0 && score.all >= score.n - 1, "%s: %d of %d pictures show what was asked for",
              device, score.all, score.n);
    nano_close(nano);
}

Test(nano, on_the_soft_gpu_as_sm_90a)
{
    check_on_soft("soft sm_90a", 3, 1);
}

Test(nano, on_the_soft_gpu_as_sm_80)
{
    check_on_soft("soft sm_80", 1, 1);
}

Test(nano, on_the_soft_gpu_as_sm_89)
{
    check_on_soft("soft sm_89", 2, 0);
}

#endif
