#include "program.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <pty.h>
#include <spawn.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#define PROGRAM KLEIN_BINARY_DIR "/klein"

extern char **environ;

static int exit_code(int status)
{
    return WIFEXITED(status) ? WEXITSTATUS(status) : 128 + WTERMSIG(status);
}

char *program_file(const char *path, size_t *n)
{
    FILE *f = fopen(path, "rb");
    cr_assert(f, "%s: %s", path, strerror(errno));
    fseek(f, 0, SEEK_END);
    size_t size = (size_t)ftell(f);
    rewind(f);
    char *bytes = malloc(size + 1);
    cr_assert(bytes && fread(bytes, 1, size, f) == size);
    fclose(f);
    bytes[size] = 0;
    if (n) *n = size;
    return bytes;
}

/* Standard streams from and to files; a NULL path is /dev/null. */
static pid_t start(const char *in, const char *out, const char *err, const char *const *argv)
{
    posix_spawn_file_actions_t actions;
    pid_t pid;
    posix_spawn_file_actions_init(&actions);
    posix_spawn_file_actions_addopen(&actions, 0, in ? in : "/dev/null", O_RDONLY, 0);
    posix_spawn_file_actions_addopen(&actions, 1, out ? out : "/dev/null", O_WRONLY | O_CREAT | O_TRUNC,
                                     0600);
    posix_spawn_file_actions_addopen(&actions, 2, err ? err : "/dev/null", O_WRONLY | O_CREAT | O_TRUNC,
                                     0600);
    posix_spawn_file_actions_addchdir_np(&actions, test_dir());
    int failed = posix_spawn(&pid, PROGRAM, &actions, NULL, (char *const *)argv, environ);
    posix_spawn_file_actions_destroy(&actions);
    cr_assert(!failed, "%s: %s", PROGRAM, strerror(failed));
    return pid;
}

static const char *stream_path(const char *name)
{
    static char paths[3][128];
    static int next;
    char *path = paths[next++ % 3];
    snprintf(path, sizeof paths[0], "%s-%s", test_dir(), name); /* beside the folder, which tests look into */
    return path;
}

struct outcome program_run(const char *input, const char *const *argv)
{
    static char *kept[2];
    struct rusage usage;
    struct outcome o = {0};
    const char *in = stream_path("in"), *out = stream_path("out"), *err = stream_path("err");
    FILE *f = fopen(in, "wb");
    cr_assert(f && fputs(input ? input : "", f) >= 0 && fclose(f) == 0);
    int status;
    cr_assert(wait4(start(in, out, err, argv), &status, 0, &usage) > 0);
    o.code = exit_code(status);
    o.cpu = (double)(usage.ru_utime.tv_sec + usage.ru_stime.tv_sec) +
            1e-6 * (double)(usage.ru_utime.tv_usec + usage.ru_stime.tv_usec);
    free(kept[0]);
    free(kept[1]);
    o.out = kept[0] = program_file(out, &o.n);
    o.err = kept[1] = program_file(err, NULL);
    unlink(in);
    unlink(out);
    unlink(err);
    return o;
}

void program_card(const char *chip, const char *name)
{
    setenv("LD_LIBRARY_PATH", KLEIN_BINARY_DIR "/tests/driver", 1);
    setenv("KLEIN_SOFT", chip, 1);
    if (name) setenv("KLEIN_STANDIN_NAME", name, 1);
}

struct outcome program_on_terminal(int columns, const char *const *argv)
{
    static char seen[1 << 16];
    struct winsize size = {.ws_row = 24, .ws_col = (unsigned short)columns};
    struct outcome o = {.out = seen, .err = ""};
    int terminal, status;
    pid_t pid = forkpty(&terminal, NULL, NULL, &size);
    cr_assert(pid >= 0, "forkpty: %s", strerror(errno));
    if (pid == 0) {
        if (chdir(test_dir()) == 0) execv(PROGRAM, (char *const *)argv);
        _exit(127);
    }
    for (ssize_t got; o.n < sizeof seen - 1 && (got = read(terminal, seen + o.n, sizeof seen - 1 - o.n)) > 0;)
        o.n += (size_t)got;
    seen[o.n] = 0;
    waitpid(pid, &status, 0);
    close(terminal);
    o.code = exit_code(status);
    return o;
}

pid_t program_start(const char *err_path, const char *const *argv)
{
    return start(NULL, NULL, err_path, argv);
}

int program_wait(pid_t pid)
{
    int status;
    cr_assert(waitpid(pid, &status, 0) == pid);
    return exit_code(status);
}

struct outcome program_ok(struct outcome o, const char *what)
{
    cr_assert(o.code == 0, "klein %s: exit code %d: %s", what, o.code, o.err);
    return o;
}

json_t *program_json(struct outcome o)
{
    json_error_t e;
    cr_assert(o.n && strchr(o.out, '\n') == o.out + o.n - 1, "not one line: %s", o.out);
    json_t *object = json_loads(o.out, 0, &e);
    cr_assert(json_is_object(object), "%s: %s", e.text, o.out);
    return object;
}

int program_count_files(const char *folder)
{
    DIR *d = opendir(folder);
    int n = 0;
    cr_assert(d, "%s: %s", folder, strerror(errno));
    for (struct dirent *e; (e = readdir(d));) n += strcmp(e->d_name, ".") && strcmp(e->d_name, "..");
    closedir(d);
    return n;
}
