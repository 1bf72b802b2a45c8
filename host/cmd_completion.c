/* klein completion: the option tables as completion scripts for shells. */
#include "commands.h"

#include <string.h>

struct settings {
    int shell;
};

/* What may follow an option or stand as an operand. */
enum values { VALUES_NONE, VALUES_ANY, VALUES_FILE, VALUES_DIR, VALUES_CHOICE };

static enum values values_of(const struct cli_option *o)
{
    if (!o->argument) return VALUES_NONE;
    if (o->kind == CLI_CHOICE) return VALUES_CHOICE;
    return !strcmp(o->argument, "DIR") ? VALUES_DIR : !strcmp(o->argument, "FILE") ? VALUES_FILE : VALUES_ANY;
}

static void print_choices(const struct cli_option *o)
{
    const char *item;
    int length;
    for (int i = 0; (item = cli_choice(o->choices, i, &length)); i++)
        printf("%s%.*s", i ? " " : "", length, item);
}

static void print_command_names(void)
{
    for (int i = 0; commands[i]; i++) printf("%s%s", i ? " " : "", commands[i]->name);
}

/* Text inside single quotes of a shell, with a backslash before each of `special`. */
static void print_quoted(const char *text, const char *special)
{
    for (; *text; text++) {
        if (strchr(special, *text)) putchar('\\');
        if (*text == '\'')
            fputs("'\\''", stdout);
        else
            putchar(*text);
    }
}

/* --- bash ------------------------------------------------------------------------------------------------
 */

static void bash_values(const struct cli_option *o)
{
    switch (values_of(o)) {
    case VALUES_FILE:
        fputs("compgen -f -- \"$cur\"", stdout);
        break;
    case VALUES_DIR:
        fputs("compgen -d -- \"$cur\"", stdout);
        break;
    case VALUES_CHOICE:
        fputs("compgen -W \"", stdout);
        print_choices(o);
        fputs("\" -- \"$cur\"", stdout);
        break;
    default:
        fputs(":", stdout);
    }
}

static void bash_command(const struct cli_command *c)
{
    const struct cli_option *o;
    printf("    %s)\n        case $prev in\n", c->name);
    for (int i = 0; (o = cli_option_at(c, i, NULL, NULL)); i++) {
        if (!o->argument || o->bare) continue;
        fputs("        ", stdout);
        if (o->letter) printf("-%c | ", o->letter);
        printf("--%s) ", o->name);
        bash_values(o);
        fputs("; return ;;\n", stdout);
    }
    fputs("        esac\n        case $cur in\n        -*) compgen -W \"", stdout);
    for (int i = 0; (o = cli_option_at(c, i, NULL, NULL)); i++) printf("%s--%s", i ? " " : "", o->name);
    fputs("\" -- \"$cur\" ;;\n        *) ", stdout);
    bash_values(&c->operand);
    fputs(" ;;\n        esac ;;\n", stdout);
}

static void print_bash(void)
{
    puts("# bash completion for klein; in ~/.bashrc: source <(klein completion bash)\n"
         "_klein_words() {\n"
         "    local cur=$1 prev=$2\n"
         "    case $3 in");
    for (int i = 0; commands[i]; i++) bash_command(commands[i]);
    puts("    esac\n"
         "}\n"
         "_klein() {\n"
         "    local cur=${COMP_WORDS[COMP_CWORD]}\n"
         "    if [ \"$COMP_CWORD\" -eq 1 ]; then");
    fputs("        mapfile -t COMPREPLY < <(compgen -W \"", stdout);
    print_command_names();
    puts(" --help --version\" -- \"$cur\")\n"
         "    else\n"
         "        mapfile -t COMPREPLY < <(_klein_words \"$cur\" \"${COMP_WORDS[COMP_CWORD-1]}\" "
         "\"${COMP_WORDS[1]}\")\n"
         "    fi\n"
         "}\n"
         "complete -o filenames -F _klein klein");
}

/* --- zsh -------------------------------------------------------------------------------------------------
 */

static void zsh_values(const struct cli_option *o)
{
    enum values values = values_of(o);
    if (values == VALUES_NONE) return;
    putchar(':');
    print_quoted(o->argument, ":\\");
    putchar(':');
    if (values == VALUES_FILE) fputs("_files", stdout);
    if (values == VALUES_DIR) fputs("_files -/", stdout);
    if (values != VALUES_CHOICE) return;
    putchar('(');
    print_choices(o);
    putchar(')');
}

static void zsh_option(const struct cli_option *o)
{
    static const char special[] = "[]:\\";
    fputs(" \\\n        ", stdout);
    if (o->kind == CLI_TEXTS) fputs("'*'", stdout);
    if (o->letter && o->kind != CLI_TEXTS) printf("'(-%c --%s)'", o->letter, o->name);
    if (o->letter)
        printf("{-%c,--%s}'[", o->letter, o->name);
    else
        printf("'--%s%s[", o->name, o->bare ? "=-" : "");
    print_quoted(o->help, special);
    fputs(o->bare ? "]:" : "]", stdout);
    zsh_values(o);
    putchar('\'');
}

static void print_zsh(void)
{
    puts("#compdef klein\n"
         "# zsh completion for klein: klein completion zsh > a file named _klein in a folder of $fpath\n"
         "_klein() {\n"
         "    local -a names=(");
    for (int i = 0; commands[i]; i++) {
        printf("        '%s:", commands[i]->name);
        print_quoted(commands[i]->summary, ":\\");
        puts("'");
    }
    puts("    )\n"
         "    if (( CURRENT == 2 )); then _describe command names; return; fi\n"
         "    shift words\n"
         "    (( CURRENT-- ))\n"
         "    case $words[1] in");
    for (int i = 0; commands[i]; i++) {
        const struct cli_option *o;
        printf("    %s) _arguments -s", commands[i]->name);
        for (int j = 0; (o = cli_option_at(commands[i], j, NULL, NULL)); j++) zsh_option(o);
        if (commands[i]->operand.argument) {
            fputs(" \\\n        '", stdout);
            zsh_values(&commands[i]->operand);
            putchar('\'');
        }
        puts(" ;;");
    }
    puts("    esac\n"
         "}\n"
         "if [ \"$funcstack[1]\" = _klein ]; then _klein \"$@\"; else compdef _klein klein; fi");
}

/* --- fish ------------------------------------------------------------------------------------------------
 */

static void fish_values(const struct cli_option *o)
{
    switch (values_of(o)) {
    case VALUES_NONE:
        break;
    case VALUES_ANY:
        fputs(" -x", stdout);
        break;
    case VALUES_FILE:
        fputs(" -r -F", stdout);
        break;
    case VALUES_DIR:
        fputs(" -x -a '(__fish_complete_directories)'", stdout);
        break;
    case VALUES_CHOICE:
        printf(" %s -a '", o->bare ? "-f" : "-x");
        print_choices(o);
        putchar('\'');
        break;
    }
}

static void print_fish(void)
{
    puts("# fish completion for klein: klein completion fish > ~/.config/fish/completions/klein.fish\n"
         "complete -c klein -f");
    for (int i = 0; commands[i]; i++) {
        const struct cli_command *c = commands[i];
        const struct cli_option *o;
        printf("complete -c klein -n __fish_use_subcommand -a %s -d '", c->name);
        print_quoted(c->summary, "");
        puts("'");
        if (values_of(&c->operand) > VALUES_ANY) {
            printf("complete -c klein -n '__fish_seen_subcommand_from %s'", c->name);
            fish_values(&c->operand);
            putchar('\n');
        }
        for (int j = 0; (o = cli_option_at(c, j, NULL, NULL)); j++) {
            printf("complete -c klein -n '__fish_seen_subcommand_from %s'", c->name);
            if (o->letter) printf(" -s %c", o->letter);
            printf(" -l %s", o->name);
            fish_values(o);
            fputs(" -d '", stdout);
            print_quoted(o->help, "");
            puts("'");
        }
    }
}

/* --- the command -----------------------------------------------------------------------------------------
 */

static enum klein_status run(const void *settings, struct klein_error *err)
{
    static void (*const print[])(void) = {print_bash, print_zsh, print_fish};
    print[((const struct settings *)settings)->shell]();
    return KLEIN_OK;
}

#define AT(field) offsetof(struct settings, field)
const struct cli_command command_completion = {
    .name = "completion",
    .summary = "print a completion script for a shell",
    .examples = "source <(klein completion bash)\n"
                "klein completion zsh > ~/.zfunc/_klein\n"
                "klein completion fish > ~/.config/fish/completions/klein.fish\n",
    .operand = {0, NULL, "SHELL", CLI_CHOICE, AT(shell), .choices = "bash|zsh|fish"},
    .operand_needed = 1,
    .settings_size = sizeof(struct settings),
    .run = run,
};
