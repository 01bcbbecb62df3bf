/* kvmark: subcommands, help and man pages. Everything else lives in the commands and the libraries. */
#include "base/file.h"
#include "base/log.h"
#include "base/mem.h"
#include "harness/cli/cmd.h"

#include <locale.h>
#include <signal.h>
#include <stdio.h>
#include <string.h>

static const struct cmd *const commands[] = {&cmd_bench,   &cmd_run,    &cmd_serve,   &cmd_gen,
                                             &cmd_compare, &cmd_report, &cmd_weights, &cmd_info};
#define EXIT_STATUS "0 good, 1 failed run, 2 usage, 3 a limit missed."
#define PURPOSE "what a KV-cache layer saves in LLM serving, measured."
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
            "kvmark %s: " PURPOSE "\n\nusage: kvmark COMMAND [ARGUMENTS]\n\n",
            KVMARK_VERSION);
    for (int i = 0; i < N_COMMANDS; i++)
        fprintf(to, "  %-9s %s\n", commands[i]->name, commands[i]->summary);
    fprintf(to, "\nkvmark help COMMAND tells more. Exit: " EXIT_STATUS "\n");
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

/* Running text in roff, which reads "-" as a hyphen that may break and a blank line as a space. */
static void put_roff_text(struct km_buf *out, const char *s)
{
    for (; *s; s++) {
        if (s[0] == '\n' && s[1] == '\n') {
            km_buf_puts(out, "\n.PP");
            continue;
        }
        if (*s == '-')
            km_buf_putc(out, '\\');
        km_buf_putc(out, *s);
    }
}

static int write_page(const char *dir, const char *file, struct km_buf *page, struct km_err *err)
{
    char *path = km_path(dir, file);
    int rc = !path || !km_buf_ok(page) ? km_fail(err, KM_ENOMEM, "out of memory")
                                       : km_file_write(path, page->data, page->len, err);
    km_free(path);
    km_buf_free(page);
    return rc;
}

/* kvmark-NAME.1, from the table that the help is printed from. */
static int man_command(const char *dir, const struct cmd *c, struct km_err *err)
{
    struct km_flag flags[MAX_FLAGS];
    struct km_buf out = {0};
    km_buf_printf(&out, ".TH KVMARK-%s 1 \"\" \"kvmark %s\"\n.SH NAME\nkvmark\\-%s \\- %s\n", c->name, KVMARK_VERSION,
                  c->name, c->summary);
    km_buf_printf(&out, ".SH SYNOPSIS\n.B kvmark %s\n%s\n", c->name, c->usage);
    km_buf_printf(&out, ".SH DESCRIPTION\n%s.\n.PP\n", c->summary);
    put_roff_text(&out, c->text);
    km_buf_puts(&out, "\n.SH OPTIONS\n");
    km_args_man(flags, c->flags(flags, MAX_FLAGS), &out);
    km_buf_puts(&out, ".SH EXIT STATUS\n" EXIT_STATUS "\n");
    char file[64];
    snprintf(file, sizeof file, "kvmark-%s.1", c->name);
    return write_page(dir, file, &out, err);
}

/* A man page for every command, and kvmark.1, which lists them. The folder must exist. */
static int man_pages(const char *dir)
{
    struct km_err err;
    struct km_buf out = {0};
    km_buf_printf(&out, ".TH KVMARK 1 \"\" \"kvmark %s\"\n.SH NAME\nkvmark \\- ", KVMARK_VERSION);
    put_roff_text(&out, PURPOSE "\n.SH SYNOPSIS\n.B kvmark\nCOMMAND [ARGUMENTS]\n.SH COMMANDS\n");
    int rc = 0;
    for (int i = 0; i < N_COMMANDS && !rc; i++) {
        km_buf_printf(&out, ".TP\n.BR kvmark\\-%s (1)\n%s.\n", commands[i]->name, commands[i]->summary);
        rc = man_command(dir, commands[i], &err);
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
        help_overview(stderr);
        return CMD_USAGE;
    }
    const char *name = argv[1];
    if (!strcmp(name, "--version") || !strcmp(name, "version")) {
        printf("kvmark %s\n", KVMARK_VERSION);
        return CMD_OK;
    }
    if (!strcmp(name, "help") || !strcmp(name, "--help") || !strcmp(name, "-h")) {
        if (argc < 3) {
            help_overview(stdout);
            return CMD_OK;
        }
        if (!strcmp(argv[2], "--man") && argc == 4)
            return man_pages(argv[3]);
        const struct cmd *c = find(argv[2]);
        if (!c)
            return unknown(argv[2]);
        help_command(c);
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
