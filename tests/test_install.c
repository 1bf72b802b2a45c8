/* What cmake --install gives a person, at a prefix that the build did not know: klein with its demo model, man page and completions, and a
 * library to build against. */
#include "support/program.h"

#include <stdlib.h>
#include <unistd.h>

static const char script[] = "set -e; cd '%s'; prefix=$PWD/prefix; "
                             "cmake --install '%s' --prefix $prefix; "
                             "export PKG_CONFIG_PATH=$(dirname $(find $prefix -name klein.pc)); "
                             "lib=$(pkg-config --variable=libdir klein); example='%s/examples/minimal.c'; "
                             "cc $example -o shared $(pkg-config --cflags --libs klein); "
                             "cc $example -o static $(pkg-config --static --cflags --libs klein | sed "
                             "s/-lklein/-l:libklein.a/); "
                             "LD_LIBRARY_PATH=$lib ./shared '%s' 'a cat' shared.ppm; "
                             "./static '%s' 'a cat' static.ppm; "
                             "cmp shared.ppm static.ppm; "
                             "prefix/bin/klein generate 'a red balloon' -s 1 --size 32x32 -o x.png";

Test(install, is_whole_and_stands_alone)
{
    static const char *const files[] = {"share/man/man1/klein.1",
                                        "share/klein/nano/model_index.json",
                                        "share/bash-completion/completions/klein",
                                        "share/zsh/site-functions/_klein",
                                        "share/fish/vendor_completions.d/klein.fish",
                                        "include/klein/klein.h"};
    if (SANITIZED) SKIP("a library with sanitizers needs them in the program too");
    char command[4096], log[256], path[256];
    snprintf(log, sizeof log, "%s/log", test_dir());
    int n = snprintf(command, sizeof command, "{ ");
    n += snprintf(command + n, sizeof command - (size_t)n, script, test_dir(), KLEIN_BINARY_DIR,
                  KLEIN_SOURCE_DIR, GOLDEN_MODEL("tiny"), GOLDEN_MODEL("tiny"));
    snprintf(command + n, sizeof command - (size_t)n, "; } >'%s' 2>&1", log);
    unsetenv("KLEIN_MODEL");
    int status = system(command);
    char *said = program_file(log, NULL);
    cr_assert(status == 0, "%s", said);
    for (size_t i = 0; i < sizeof files / sizeof *files; i++) {
        snprintf(path, sizeof path, "%s/prefix/%s", test_dir(), files[i]);
        cr_assert(access(path, R_OK) == 0, "%s is missing", path);
    }
    cr_assert(strstr(said, "/prefix/share/klein/nano"), "the demo model is not the installed one: %s", said);
    free(said);
}
