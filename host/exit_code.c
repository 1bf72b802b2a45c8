#include "exit_code.h"

#include <stddef.h>

enum exit_code exit_code_of(enum klein_status status)
{
    static const enum exit_code codes[KLEIN_STATUS_COUNT] = {
        [KLEIN_OK] = EXIT_OK,
        [KLEIN_E_USAGE] = EXIT_USAGE,
        [KLEIN_E_MODEL_MISSING] = EXIT_MODEL,
        [KLEIN_E_MODEL_CORRUPT] = EXIT_MODEL,
        [KLEIN_E_UNSUPPORTED] = EXIT_FAILED,
        [KLEIN_E_NO_DEVICE] = EXIT_DEVICE,
        [KLEIN_E_NO_MEMORY] = EXIT_DEVICE,
        [KLEIN_E_INPUT] = EXIT_FILES,
        [KLEIN_E_OUTPUT] = EXIT_FILES,
        [KLEIN_E_CANCELLED] = EXIT_INTERRUPTED,
        [KLEIN_E_NUMERIC] = EXIT_FAILED,
        [KLEIN_E_INTERNAL] = EXIT_FAILED,
    };
    return (unsigned)status < KLEIN_STATUS_COUNT ? codes[status] : EXIT_FAILED;
}

const char *exit_code_text(int i, enum exit_code *code)
{
    static const struct {
        enum exit_code code;
        const char *text;
    } rows[] = {
        {EXIT_OK, "success"},
        {EXIT_FAILED, "generation failed"},
        {EXIT_USAGE, "wrong use: an option, an argument or a size"},
        {EXIT_MODEL, "model missing, incomplete or damaged"},
        {EXIT_DEVICE, "no such device, or out of memory"},
        {EXIT_FILES, "an input cannot be read or an output cannot be written"},
        {EXIT_INTERRUPTED, "interrupted (Ctrl-C)"},
    };
    if (i < 0 || (size_t)i >= sizeof rows / sizeof rows[0]) return NULL;
    *code = rows[i].code;
    return rows[i].text;
}
