/* Subcommands of kvmark.
 *
 * A subcommand is a file cmd_NAME.c that defines `const struct cmd cmd_NAME`, and a line in the registry below. Its
 * options are tables (base/option.h) over one struct of its own. cmd_execute makes that struct, with the defaults and
 * what the command line says, and calls `run`. Help and man pages come from the same tables. */
#ifndef CMD_H
#define CMD_H

#include "base/args.h"

/* Exit statuses of every subcommand. */
enum { CMD_OK = 0, CMD_FAILED = 1, CMD_USAGE = 2, CMD_LIMIT = 3 };
enum { CMD_MAX_GROUPS = 8 };

/* One call of a subcommand. */
struct cmd_call {
    void *options;      /* the subcommand's struct, as the user filled it */
    struct km_strs args; /* the arguments that are not options */
    struct km_option_group groups[CMD_MAX_GROUPS];
    int n_groups;
    int argc; /* the words after the subcommand's name, as typed: results record them */
    char **argv;
};

struct cmd {
    const char *name;
    const char *usage;   /* "WORKLOAD.json [--url URL] -o DIR [OPTIONS]" */
    const char *summary; /* one line, without a full stop */
    const char *text;    /* paragraphs for help and man page, separated by blank lines */
    size_t options_size; /* of the struct of options; 0: none */
    int (*groups)(void *options, struct km_option_group *out); /* fills out, at most CMD_MAX_GROUPS; returns how many */
    int (*run)(const struct cmd_call *call); /* prints its errors (cmd_error); returns the exit status */
};

/* The registry: a line per subcommand, in the order of the overview. */
#define SUBCOMMANDS(X)                                                                                                 \
    X(bench)                                                                                                           \
    X(run)                                                                                                             \
    X(serve)                                                                                                           \
    X(gen)                                                                                                             \
    X(compare)                                                                                                         \
    X(report)                                                                                                          \
    X(weights)                                                                                                         \
    X(info)

#define CMD_DECLARE(name) extern const struct cmd cmd_##name;
SUBCOMMANDS(CMD_DECLARE)
#undef CMD_DECLARE

/* Parses argv (the words after the subcommand's name) and runs the subcommand, or prints its help if argv has --help.
 * Errors go to stderr. Returns the exit status. */
int cmd_execute(const struct cmd *c, int argc, char **argv);
/* Prints an error on stderr and returns status. */
int cmd_error(const struct km_err *err, int status);
/* CMD_FAILED for an error of the machine (KM_EIO, KM_ENOMEM), CMD_USAGE for one in what the user asked for. */
int cmd_status_of(int rc);
/* Appends the sections NAME to OPTIONS of the subcommand's man page. */
int cmd_man(const struct cmd *c, struct km_buf *out, struct km_err *err);
/* Columns of help texts: the terminal's, within reason. */
int cmd_help_width(void);

#endif
