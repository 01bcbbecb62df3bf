/* A subcommand of `kvmark`: one entry, its flags as a table, its text for help and the man page. */
#ifndef HZ_CMD_H
#define HZ_CMD_H

#include "base/args.h"

/* Exit statuses of every subcommand. */
enum { CMD_OK = 0, CMD_FAILED = 1, CMD_USAGE = 2, CMD_LIMIT = 3 };

struct cmd {
    const char *name;
    const char *usage;   /* "WORKLOAD.json [--url URL] -o DIR" */
    const char *summary; /* one line */
    const char *text;    /* paragraphs for `help NAME` and the man page; may be "" */
    int (*run)(int argc, char **argv);              /* argv after the subcommand's name */
    int (*flags)(struct km_flag *out, int max);     /* the table, pointing at scratch values, for help; returns its length */
};

extern const struct cmd cmd_serve, cmd_gen, cmd_run, cmd_bench, cmd_compare, cmd_report, cmd_weights, cmd_info;

#endif
