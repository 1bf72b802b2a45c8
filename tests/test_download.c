/* tools/download against a hub of our own: an HTTP server on the loopback interface that serves a small repository, and misbehaves when told to. */
#include "support/program.h"

#include <arpa/inet.h>
#include <netinet/in.h>
#include <pthread.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#define N_FILES    9
#define REPOSITORY "someone/some-model"
#define WEIGHTS    "transformer/weights.safetensors"

/* --- the hub --- */

struct hub_file {
    const char *path;
    size_t size;
    int lfs; /* its hash is a SHA-256, else a git blob's */
    int wanted;
    char hash[65];
    char *bytes;
};

static const struct hub_file contents[N_FILES] = {
    {.path = "LICENSE.md", .size = 400, .wanted = 1},
    {.path = "model_index.json", .size = 300, .wanted = 1},
    {.path = "scheduler/empty.json", .size = 0, .wanted = 1},
    {.path = "text_encoder/model-00001-of-00002.safetensors", .size = 5000, .lfs = 1, .wanted = 1},
    {.path = "tokenizer/merges.txt", .size = 700, .wanted = 1},
    {.path = WEIGHTS, .size = 300000, .lfs = 1, .wanted = 1},
    {.path = "single.safetensors", .size = 9000, .lfs = 1},
    {.path = "teaser.png", .size = 2000, .lfs = 1},
    {.path = "vae/.gitattributes", .size = 100},
};

static struct hub {
    struct hub_file files[N_FILES];
    char address[64];
    int listening;
    pthread_t thread;

    /* how it behaves */
    int list_status, file_status; /* instead of 200 */
    int cut;                      /* so many answers about WEIGHTS break off half way */
    int cut_at_once;              /* all later ones break off before their first byte */
    int no_ranges;                /* Range is ignored */
    const char *token;            /* refuses requests without it */
    const char *list;             /* is sent instead of the list of files */

    /* what was asked of it */
    int file_requests, range_requests;
} hub;

/* The hash that FORMAT, a shell pipeline about the file %s of %zu bytes, prints first. */
static void hash_with(const char *pipeline, const char *path, size_t size, char hash[65])
{
    char command[1024];
    snprintf(command, sizeof command, "S=%zu F='%s'; %s", size, path, pipeline);
    FILE *f = popen(command, "r");
    cr_assert(f && fscanf(f, "%64[0-9a-f]", hash) == 1 && pclose(f) == 0, "%s", command);
}

static void make_contents(void)
{
    char path[512];
    uint32_t x = 1;
    memcpy(hub.files, contents, sizeof contents);
    for (int i = 0; i < N_FILES; i++) {
        struct hub_file *f = &hub.files[i];
        f->bytes = malloc(f->size + 1);
        cr_assert(f->bytes);
        for (size_t k = 0; k < f->size; k++) f->bytes[k] = (char)((x = x * 1664525 + 1013904223) >> 24);
        snprintf(path, sizeof path, "%s/content", test_dir());
        FILE *out = fopen(path, "wb");
        cr_assert(out && fwrite(f->bytes, 1, f->size, out) == f->size && fclose(out) == 0);
        hash_with(f->lfs ? "sha256sum <$F" : "(printf 'blob %d\\0' $S; cat $F) | sha1sum", path, f->size,
                  f->hash);
        unlink(path);
    }
}

static char *file_list(void)
{
    json_t *siblings = json_array(), *root;
    for (int i = 0; i < N_FILES; i++) {
        const struct hub_file *f = &hub.files[i];
        json_t *one = json_pack("{s:s, s:I}", "rfilename", f->path, "size", (json_int_t)f->size);
        if (f->lfs)
            json_object_set_new(one, "lfs",
                                json_pack("{s:s, s:I}", "sha256", f->hash, "size", (json_int_t)f->size));
        json_object_set_new(one, "blobId",
                            json_string(f->lfs ? "0123456789012345678901234567890123456789" : f->hash));
        json_array_append_new(siblings, one);
    }
    root = json_pack("{s:s, s:s, s:o}", "id", REPOSITORY, "sha", "c0ffee", "siblings", siblings);
    char *text = json_dumps(root, JSON_COMPACT);
    cr_assert(text);
    json_decref(root);
    return text;
}

static void answer(int to, int status, const char *bytes, size_t size, size_t from, size_t sent)
{
    char head[256];
    int n = snprintf(head, sizeof head, "HTTP/1.1 %d x\r\nContent-Length: %zu\r\nConnection: close\r\n",
                     status, size - from);
    if (status == 206)
        n += snprintf(head + n, sizeof head - (size_t)n, "Content-Range: bytes %zu-%zu/%zu\r\n", from,
                      size - 1, size);
    n += snprintf(head + n, sizeof head - (size_t)n, "\r\n");
    send(to, head, (size_t)n, MSG_NOSIGNAL);
    for (size_t done = 0; done < sent;) {
        ssize_t k = send(to, bytes + from + done, sent - done, MSG_NOSIGNAL);
        if (k <= 0) break;
        done += (size_t)k;
    }
}

static void answer_file(int to, const char *path, const char *request)
{
    size_t from = 0;
    const struct hub_file *f = NULL;
    const char *range = strcasestr(request, "\r\nRange: bytes=");
    for (int i = 0; i < N_FILES; i++)
        if (!strcmp(hub.files[i].path, path)) f = &hub.files[i];
    hub.file_requests++;
    hub.range_requests += range != NULL;
    if (!f || hub.file_status) {
        answer(to, f ? hub.file_status : 404, "", 0, 0, 0);
        return;
    }
    if (range && !hub.no_ranges) from = strtoul(range + strlen("\r\nRange: bytes="), NULL, 10);
    size_t sent = f->size - from;
    if (!strcmp(path, WEIGHTS) && hub.cut > 0)
        hub.cut--, sent /= 2;
    else if (!strcmp(path, WEIGHTS) && hub.cut_at_once)
        sent = 0;
    answer(to, range && !hub.no_ranges ? 206 : 200, f->bytes, f->size, from, sent);
}

static void answer_request(int to, char *request)
{
    static const char api[] = "/api/models/" REPOSITORY "/revision/main?blobs=true",
                      resolve[] = "/" REPOSITORY "/resolve/c0ffee/";
    char path[512] = "", wanted[128];
    snprintf(wanted, sizeof wanted, "\r\nAuthorization: Bearer %s\r\n", hub.token ? hub.token : "");
    if (sscanf(request, "GET %511s", path) != 1 || (hub.token && !strstr(request, wanted)))
        answer(to, 401, "", 0, 0, 0);
    else if (!strcmp(path, api)) {
        char *made = file_list();
        const char *list = hub.list ? hub.list : made;
        answer(to, hub.list_status ? hub.list_status : 200, list, strlen(list), 0, strlen(list));
        free(made);
    } else if (!strncmp(path, resolve, strlen(resolve)))
        answer_file(to, path + strlen(resolve), request);
    else
        answer(to, 404, "", 0, 0, 0);
}

static void *serve(void *unused)
{
    char request[4096];
    for (int to; (to = accept(hub.listening, NULL, NULL)) >= 0;) {
        size_t n = 0;
        for (ssize_t k; n < sizeof request - 1 && (k = read(to, request + n, sizeof request - 1 - n)) > 0;) {
            request[n += (size_t)k] = 0;
            if (strstr(request, "\r\n\r\n")) break;
        }
        request[n] = 0;
        answer_request(to, request);
        shutdown(to, SHUT_WR);
        while (read(to, request, sizeof request) > 0) {
        }
        close(to);
    }
    return NULL;
}

static void open_hub(void)
{
    struct sockaddr_in a = {.sin_family = AF_INET, .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
    socklen_t n = sizeof a;
    if (system("command -v curl jq >/dev/null")) cr_skip_test("curl or jq is not installed");
    make_contents();
    hub.listening = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
    cr_assert(hub.listening >= 0 && !bind(hub.listening, (struct sockaddr *)&a, sizeof a) &&
              !listen(hub.listening, 8) && !getsockname(hub.listening, (struct sockaddr *)&a, &n));
    snprintf(hub.address, sizeof hub.address, "http://127.0.0.1:%d", ntohs(a.sin_port));
    setenv("KLEIN_HUB", hub.address, 1);
    setenv("no_proxy", "127.0.0.1", 1);
    unsetenv("HF_TOKEN");
    cr_assert(!pthread_create(&hub.thread, NULL, serve, NULL));
}

static void close_hub(void)
{
    if (!hub.address[0]) return; /* skipped */
    shutdown(hub.listening, SHUT_RDWR);
    pthread_join(hub.thread, NULL);
    close(hub.listening);
    for (int i = 0; i < N_FILES; i++) free(hub.files[i].bytes);
}

TestSuite(download, .init = open_hub, .fini = close_hub);

/* --- the script --- */

static char said[16384];

/* tools/download ARGUMENTS in test_dir(); everything it says comes into `said`. The exit code. */
static int download(const char *arguments)
{
    char command[1024];
    snprintf(command, sizeof command, "cd '%s' && '%s/tools/download' %s 2>&1 </dev/null", test_dir(),
             KLEIN_SOURCE_DIR, arguments);
    hub.file_requests = hub.range_requests = 0;
    FILE *f = popen(command, "r");
    cr_assert(f);
    size_t n = fread(said, 1, sizeof said - 1, f);
    said[n] = 0;
    int status = pclose(f);
    return WIFEXITED(status) ? WEXITSTATUS(status) : 128 + WTERMSIG(status);
}

#define FETCHES(arguments) cr_assert(download(arguments) == 0, "tools/download %s: %s", arguments, said)
#define REFUSES(arguments, text)                                                                             \
    do {                                                                                                     \
        int code_ = download(arguments);                                                                     \
        cr_assert(code_ == 1 && strstr(said, "error: ") && strstr(said, text),                               \
                  "tools/download %s: exit code %d, said \"%s\", expected \"%s\"", arguments, code_, said,   \
                  text);                                                                                     \
    } while (0)

static const char *at(const char *folder, const char *path)
{
    static char full[512];
    snprintf(full, sizeof full, "%s/%s/%s", test_dir(), folder, path);
    return full;
}

/* The folder has the wanted files, byte for byte, and of the others only those that `also` names. */
static void folder_is_whole(const char *folder, const char *also)
{
    for (int i = 0; i < N_FILES; i++) {
        const struct hub_file *f = &hub.files[i];
        size_t n;
        if (!f->wanted && (!also || strcmp(also, f->path))) {
            cr_assert(access(at(folder, f->path), F_OK), "%s came too", f->path);
            continue;
        }
        char *bytes = program_file(at(folder, f->path), &n);
        cr_assert(n == f->size && !memcmp(bytes, f->bytes, n), "%s is not what the hub has", f->path);
        free(bytes);
    }
    snprintf(said, sizeof said, "test -z \"$(find '%s/%s' -name '*.part')\"", test_dir(), folder);
    cr_assert(!system(said), "parts were left behind");
}

Test(download, whole_repository_once)
{
    FETCHES(REPOSITORY " m");
    cr_assert(strstr(said, "generate -m"), "%s", said);
    cr_assert(hub.file_requests == 5, "%d requests", hub.file_requests); /* the empty file needs none */
    folder_is_whole("m", NULL);
    FETCHES(REPOSITORY " m");
    cr_assert(hub.file_requests == 0, "%d requests for files that are there", hub.file_requests);
    FETCHES("--single-file " REPOSITORY " m");
    cr_assert(hub.file_requests == 1);
    folder_is_whole("m", "single.safetensors");
    FETCHES(REPOSITORY);
    folder_is_whole("some-model", NULL);
}

Test(download, broken_transfers_go_on)
{
    hub.cut = 3;
    FETCHES(REPOSITORY " m");
    cr_assert(hub.cut == 0 && hub.range_requests == 3, "%d range requests", hub.range_requests);
    folder_is_whole("m", NULL);
}

Test(download, a_hub_without_ranges)
{
    hub.cut = 1;
    hub.no_ranges = 1;
    FETCHES(REPOSITORY " m");
    folder_is_whole("m", NULL);
}

Test(download, a_later_call_goes_on)
{
    hub.cut_at_once = 1;
    hub.cut = 1;
    REFUSES(REPOSITORY " m", "Run the same command again");
    cr_assert(access(at("m", WEIGHTS), F_OK), "half a file has the whole file's name");
    hub.cut_at_once = 0;
    FETCHES(REPOSITORY " m");
    cr_assert(hub.range_requests == 1, "%d range requests", hub.range_requests);
    folder_is_whole("m", NULL);
}

Test(download, wrong_hashes)
{
    for (int i = 0; i < N_FILES; i++) { /* a git blob's, then a SHA-256 */
        struct hub_file *f = &hub.files[i];
        if (strcmp(f->path, WEIGHTS) && strcmp(f->path, "tokenizer/merges.txt")) continue;
        f->bytes[f->size / 2] ^= 1;
        REFUSES(REPOSITORY " m", "wrong hash");
        cr_assert(strstr(said, f->path) && access(at("m", f->path), F_OK), "%s", said);
        f->bytes[f->size / 2] ^= 1;
    }
    FETCHES(REPOSITORY " m");
    folder_is_whole("m", NULL);
}

Test(download, damage_later)
{
    FETCHES(REPOSITORY " m");
    FILE *f = fopen(at("m", WEIGHTS), "r+b");
    cr_assert(f && fputc('x', f) == 'x' && fputc('y', f) == 'y' && fclose(f) == 0);
    REFUSES("--verify " REPOSITORY " m", "wrong hash");
    cr_assert(!truncate(at("m", WEIGHTS), 1000));
    FETCHES(REPOSITORY " m"); /* another size needs no --verify */
    folder_is_whole("m", NULL);
}

Test(download, what_the_hub_refuses)
{
    hub.file_status = 403;
    REFUSES(REPOSITORY " m", "Accept the licence");
    hub.file_status = 404;
    REFUSES(REPOSITORY " m", "not found");
    hub.file_status = 500;
    REFUSES(REPOSITORY " m", "the download stops");
    hub.list_status = 503;
    REFUSES(REPOSITORY " m", "HTTP status 503");
    hub.list_status = 401;
    REFUSES(REPOSITORY " m", "HF_TOKEN");
    REFUSES("nobody/nothing m", "not found on http://127.0.0.1");
    hub.list_status = hub.file_status = 0;
    hub.token = "hf_secret";
    REFUSES(REPOSITORY " m", "HF_TOKEN");
    setenv("HF_TOKEN", "hf_secret", 1);
    FETCHES(REPOSITORY " m");
    cr_assert(!strstr(said, "hf_secret"), "the token was printed");
    folder_is_whole("m", NULL);
}

Test(download, lists_that_lie)
{
#define LIST(path, size)                                                                                     \
    "{\"sha\":\"c0ffee\",\"siblings\":[{\"rfilename\":\"model_index.json\",\"size\":2},{\"rfilename\":"      \
    "\"transformer/a.safetensors\",\"size\":3},{\"rfilename\":\"" path "\",\"size\":" size "}]}"
    hub.list = LIST("vae/x y.json", "1");
    REFUSES(REPOSITORY " m", "does not trust");
    hub.list = LIST("vae/$(touch pwned).json", "1");
    REFUSES(REPOSITORY " m", "does not trust");
    hub.list = LIST("vae/huge.safetensors", "900000000000000");
    REFUSES(REPOSITORY " m", "free on that disk");
    hub.list = "{\"sha\":\"c0ffee\",\"siblings\":[{\"rfilename\":\"../"
               "out.json\",\"size\":1},{\"rfilename\":\"a.safetensors\",\"size\":1}]}";
    REFUSES(REPOSITORY " m", "does not trust");
    hub.list = "{\"sha\":\"c0ffee\",\"siblings\":[]}";
    REFUSES(REPOSITORY " m", "no weights");
    hub.list = "<html>";
    REFUSES(REPOSITORY " m", "not what klein expects");
    cr_assert(hub.file_requests == 0);
}

Test(download, no_network)
{
    setenv("KLEIN_HUB", "http://127.0.0.1:1", 1); /* nobody listens there */
    REFUSES(REPOSITORY " m", "no connection to http://127.0.0.1:1");
}

Test(download, how_to_call_it)
{
    cr_assert(download("--help") == 0 && strstr(said, "black-forest-labs/FLUX.2-klein-4B"));
    cr_assert(download("") == 2 && strstr(said, "usage:"));
    cr_assert(download("klein-4b a b") == 2 && strstr(said, "usage:"));
    REFUSES("klein-5b m", "unknown model \"klein-5b\"");
    REFUSES("--faster klein-4b", "unknown option --faster");
}
