/* The main function of kvmark: finds the subcommand, and writes the overview and the man pages. */
#include "base/file.h"
#include "base/log.h"
#include "base/mem.h"
#include "harness/cli/cmd.h"

#include <locale.h>
#include <signal.h>
#include <stdio.h>
#include <string.h>

#define ADDRESS(name) &cmd_##name,
static const struct cmd *const commands[] = {SUBCOMMANDS(ADDRESS)};
enum { N_COMMANDS = sizeof commands / sizeof *commands };

#define PURPOSE "measure what a KV-cache layer saves in LLM serving"
#define EXIT_STATUS                                                                                                    \
    "0: success. 1: the subcommand, or a run that it made, failed. 2: the command line is wrong. 3: a limit of "       \
    "compare --fail-if was missed."

static const struct cmd *find_command(const char *name)
{
    for (int i = 0; i < N_COMMANDS; i++)
        if (!strcmp(commands[i]->name, name))
            return commands[i];
    return NULL;
}

static int refuse_unknown(const char *name)
{
    const char *names[N_COMMANDS];
    for (int i = 0; i < N_COMMANDS; i++)
        names[i] = commands[i]->name;
    const char *near = km_nearest(name, names, N_COMMANDS);
    if (near)
        km_log(KM_LOG_ERROR, "unknown subcommand \"%s\"; did you mean \"%s\"?", name, near);
    else
        km_log(KM_LOG_ERROR, "unknown subcommand \"%s\"; kvmark help lists them", name);
    return CMD_USAGE;
}

static void print_overview(FILE *to)
{
    struct km_buf out = {0};
    km_buf_puts(&out, "kvmark " KVMARK_VERSION ": " PURPOSE ".\n\nusage: kvmark SUBCOMMAND [ARGUMENTS]\n\n");
    for (int i = 0; i < N_COMMANDS; i++) {
        km_buf_printf(&out, "  %-9s ", commands[i]->name);
        km_args_wrap(&out, commands[i]->summary, 12, cmd_help_width());
        km_buf_putc(&out, '\n');
    }
    km_buf_puts(&out, "\nkvmark help SUBCOMMAND describes a subcommand and its options.\n\nExit status: ");
    km_args_wrap(&out, EXIT_STATUS, 13, cmd_help_width());
    fprintf(to, "%s\n", km_buf_str(&out));
    km_buf_free(&out);
}

static int write_page(const char *dir, const char *file, const struct km_buf *page, struct km_err *err)
{
    char *path = km_path(dir, file);
    int rc = !path || !km_buf_ok(page) ? km_fail(err, KM_ENOMEM, "out of memory")
                                       : km_file_write(path, page->data, page->len, err);
    km_free(path);
    return rc;
}

/* Writes the man page kvmark-NAME.1. */
static int write_command_page(const char *dir, const struct cmd *c, struct km_err *err)
{
    struct km_buf out = {0};
    char file[64];
    snprintf(file, sizeof file, "kvmark-%s.1", c->name);
    km_buf_printf(&out, ".TH KVMARK-%s 1 \"\" \"kvmark %s\"\n", c->name, KVMARK_VERSION);
    int rc = cmd_man(c, &out, err);
    km_buf_puts(&out, ".SH EXIT STATUS\n" EXIT_STATUS "\n");
    if (!rc)
        rc = write_page(dir, file, &out, err);
    km_buf_free(&out);
    return rc;
}

/* Writes a man page for every subcommand, and kvmark.1, which lists them. The folder must exist. */
static int write_man_pages(const char *dir)
{
    struct km_err err;
    struct km_buf out = {0};
    km_buf_puts(&out, ".TH KVMARK 1 \"\" \"kvmark " KVMARK_VERSION "\"\n.SH NAME\nkvmark \\- ");
    km_args_roff(&out, PURPOSE);
    km_buf_puts(&out, "\n.SH SYNOPSIS\n.B kvmark\nSUBCOMMAND [ARGUMENTS]\n.SH SUBCOMMANDS\n");
    int rc = 0;
    for (int i = 0; i < N_COMMANDS && !rc; i++) {
        km_buf_printf(&out, ".TP\n.BR kvmark\\-%s (1)\n", commands[i]->name);
        km_args_roff(&out, commands[i]->summary);
        km_buf_puts(&out, ".\n");
        rc = write_command_page(dir, commands[i], &err);
    }
    km_buf_puts(&out, ".SH EXIT STATUS\n" EXIT_STATUS "\n");
    if (!rc)
        rc = write_page(dir, "kvmark.1", &out, &err);
    km_buf_free(&out);
    if (rc)
        km_log(KM_LOG_ERROR, "%s", err.msg);
    return rc ? CMD_FAILED : CMD_OK;
}

int main(int argc, char **argv)
{
    setlocale(LC_ALL, "C");
    signal(SIGPIPE, SIG_IGN);
    if (argc < 2) {
        print_overview(stderr);
        return CMD_USAGE;
    }
    const char *name = argv[1];
    if (!strcmp(name, "--version") || !strcmp(name, "version")) {
        printf("kvmark %s\n", KVMARK_VERSION);
        return CMD_OK;
    }
    bool help = !strcmp(name, "help") || !strcmp(name, "--help") || !strcmp(name, "-h");
    if (help && argc < 3) {
        print_overview(stdout);
        return CMD_OK;
    }
    if (help && argc == 4 && !strcmp(argv[2], "--man"))
        return write_man_pages(argv[3]);
    const struct cmd *c = find_command(help ? argv[2] : name);
    if (!c)
        return refuse_unknown(help ? argv[2] : name);
    char *help_option[] = {"--help"};
    return help ? cmd_execute(c, 1, help_option) : cmd_execute(c, argc - 2, argv + 2);
}
