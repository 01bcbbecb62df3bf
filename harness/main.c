/* kvmark: subcommands, help and man pages. Everything else lives in the commands and the libraries. */
#include "base/log.h"
#include "base/mem.h"
#include "harness/cmd.h"

#include <locale.h>
#include <signal.h>
#include <stdio.h>
#include <string.h>

static const struct cmd *const commands[] = {&cmd_bench,   &cmd_run,    &cmd_serve,   &cmd_gen,
                                             &cmd_compare, &cmd_report, &cmd_weights, &cmd_info};
enum { N_COMMANDS = sizeof commands / sizeof *commands, MAX_FLAGS = 128 };

static const struct cmd *find(const char *name)
{
    for (int i = 0; i < N_COMMANDS; i++)
        if (!strcmp(commands[i]->name, name))
            return commands[i];
    return NULL;
}

static int unknown(const char *name)
{
    const char *names[N_COMMANDS];
    for (int i = 0; i < N_COMMANDS; i++)
        names[i] = commands[i]->name;
    const char *near = km_nearest(name, names, N_COMMANDS);
    km_log(KM_LOG_ERROR, "unknown command \"%s\"; %s%s%s", name,
           near ? "did you mean \"" : "kvmark help lists the commands", near ? near : "", near ? "\"?" : "");
    return CMD_USAGE;
}

static void help_overview(FILE *to)
{
    fprintf(to,
            "kvmark %s: what a KV-cache layer saves in LLM serving, measured.\n\nusage: kvmark COMMAND [ARGUMENTS]\n\n",
            KVMARK_VERSION);
    for (int i = 0; i < N_COMMANDS; i++)
        fprintf(to, "  %-9s %s\n", commands[i]->name, commands[i]->summary);
    fprintf(to, "\nkvmark help COMMAND tells more. Exit: 0 good, 1 failed run, 2 usage, 3 a limit missed.\n");
}

static void help_command(const struct cmd *c)
{
    struct km_flag flags[MAX_FLAGS];
    struct km_buf out = {0};
    km_buf_printf(&out, "usage: kvmark %s %s\n\n%s.\n", c->name, c->usage, c->summary);
    if (*c->text)
        km_buf_printf(&out, "\n%s\n", c->text);
    km_buf_puts(&out, "\n");
    km_args_help(flags, c->flags(flags, MAX_FLAGS), &out);
    fputs(km_buf_str(&out), stdout);
    km_buf_free(&out);
}

/* A man page in section 1, from the same tables as the help. */
static void man_command(const struct cmd *c)
{
    struct km_flag flags[MAX_FLAGS];
    struct km_buf out = {0};
    km_buf_printf(&out, ".TH KVMARK-%s 1 \"\" \"kvmark %s\"\n.SH NAME\nkvmark\\-%s \\- %s\n", c->name, KVMARK_VERSION,
                  c->name, c->summary);
    km_buf_printf(&out, ".SH SYNOPSIS\n.B kvmark %s\n%s\n", c->name, c->usage);
    km_buf_printf(&out, ".SH DESCRIPTION\n%s.\n.PP\n", c->summary);
    for (const char *p = c->text; *p; p++) {
        if (p[0] == '\n' && p[1] == '\n')
            km_buf_puts(&out, "\n.PP"), p++;
        if (*p == '-')
            km_buf_putc(&out, '\\');
        km_buf_putc(&out, *p);
    }
    km_buf_puts(&out, "\n.SH OPTIONS\n");
    km_args_man(flags, c->flags(flags, MAX_FLAGS), &out);
    km_buf_puts(&out, ".SH EXIT STATUS\n0 good, 1 failed run, 2 usage, 3 a limit missed.\n");
    fputs(km_buf_str(&out), stdout);
    km_buf_free(&out);
}

int main(int argc, char **argv)
{
    setlocale(LC_ALL, "C");
    signal(SIGPIPE, SIG_IGN);
    if (argc < 2) {
        help_overview(stderr);
        return CMD_USAGE;
    }
    const char *name = argv[1];
    if (!strcmp(name, "--version") || !strcmp(name, "version")) {
        printf("kvmark %s\n", KVMARK_VERSION);
        return CMD_OK;
    }
    if (!strcmp(name, "help") || !strcmp(name, "--help") || !strcmp(name, "-h")) {
        bool man = argc > 3 && !strcmp(argv[3], "--man");
        if (argc < 3) {
            help_overview(stdout);
            return CMD_OK;
        }
        const struct cmd *c = find(argv[2]);
        if (!c)
            return unknown(argv[2]);
        (man ? man_command : help_command)(c);
        return CMD_OK;
    }
    const struct cmd *c = find(name);
    if (!c)
        return unknown(name);
    for (int i = 2; i < argc && strcmp(argv[i], "--"); i++)
        if (!strcmp(argv[i], "--help") || !strcmp(argv[i], "-h")) {
            help_command(c);
            return CMD_OK;
        }
    return c->run(argc - 2, argv + 2);
}
