/* async.c: two pictures by requests that run by themselves, while main does something else.
 * cc async.c $(pkg-config --cflags --libs klein) && ./a.out MODEL "a prompt" "another prompt" */
#include <klein.h>
#include <stdio.h>

/* In the context's thread. `user` is the request's own. */
static void on_done(void *user, uint64_t id, enum klein_status status, struct klein_result *result,
                    const struct klein_error *err)
{
    int *failed = user;
    if (status == KLEIN_OK)
        printf("request %d: %dx%d in %.2f s, latents %016llx\n", (int)id, result->width, result->height,
               result->total_seconds, (unsigned long long)result->latent_hashes[0]);
    else
        printf("request %d: %s\n", (int)id, err->message);
    *failed = status != KLEIN_OK;
}

int main(int argc, char **argv)
{
    if (argc < 3) {
        fprintf(stderr, "usage: %s MODEL PROMPT...\n", argv[0]);
        return 2;
    }
    struct klein_error err;
    struct klein_open_options options = {.size = sizeof options, .model = argv[1]};
    struct klein *k;
    if (klein_open(&options, &k, &err) != KLEIN_OK) {
        fprintf(stderr, "%s: %s\n", argv[1], err.message);
        return 3;
    }
    struct klein_request request = {.size = sizeof request, .width = 64, .height = 64};
    if (klein_warm_up(k, &request, 1, &err) != KLEIN_OK) fprintf(stderr, "%s\n", err.message);
    enum { MOST = 16 };
    int failed[MOST] = {0}, n = argc - 2 < MOST ? argc - 2 : MOST, sum = 0;
    for (int i = 0; i < n; i++) {
        uint64_t id;
        request.prompt = argv[2 + i];
        if (klein_submit(k, &request, on_done, &failed[i], &id, &err) != KLEIN_OK) {
            fprintf(stderr, "%s\n", err.message);
            failed[i] = 1;
        }
    }
    printf("%d submitted\n", n);
    klein_wait(k, 0); /* without it klein_close would cancel them */
    klein_close(k);
    for (int i = 0; i < n; i++) sum += failed[i];
    return sum ? 1 : 0;
}
