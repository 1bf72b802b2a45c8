/* minimal.c: a prompt becomes a picture, as a PPM file.  cc minimal.c $(pkg-config --cflags --libs klein) && ./a.out MODEL "a prompt" out.ppm */
#include <klein.h>
#include <stdio.h>

static int on_progress(void *user, const struct klein_progress *p)
{
    fprintf(stderr, "\r%-10s %3.0f %%", klein_stage_name(p->stage), 100 * p->fraction);
    return 0; /* anything else cancels */
}

int main(int argc, char **argv)
{
    if (argc != 4) {
        fprintf(stderr, "usage: %s MODEL PROMPT OUT.ppm\n", argv[0]);
        return 2;
    }
    struct klein_error err;
    struct klein_open_options options = {.size = sizeof options, .model = argv[1]};
    struct klein *k;
    if (klein_open(&options, &k, &err) != KLEIN_OK) {
        fprintf(stderr, "%s: %s\n", argv[1], err.message);
        return 3;
    }
    struct klein_request request = {
        .size = sizeof request, .prompt = argv[2], .seed = 1, .progress = on_progress};
    struct klein_result result;
    enum klein_status status = klein_generate(k, &request, &result, &err);
    fprintf(stderr, "\n");
    if (status == KLEIN_OK) {
        FILE *out = fopen(argv[3], "wb");
        if (out) {
            const struct klein_image *image = &result.images[0];
            fprintf(out, "P6\n%d %d\n255\n", image->width, image->height);
            fwrite(image->rgb, 3, (size_t)image->width * (size_t)image->height, out);
        }
        if (!out || fclose(out)) {
            perror(argv[3]);
            status = KLEIN_E_OUTPUT;
        }
    } else {
        fprintf(stderr, "%s\n", err.message);
    }
    klein_result_free(&result);
    klein_close(k);
    return status == KLEIN_OK ? 0 : 1;
}
