/* Subcommands of kvmark.
 *
 * A subcommand is a file cmd_NAME.c that defines `const struct cmd cmd_NAME`, and a line in the registry below. Its
 * options are tables (base/option.h) over one struct of its own. cmd_execute makes that struct, fills it with the
 * defaults and then from the command line, and calls `run`. Help and man pages derive from the same tables. */
#ifndef CMD_H
#define CMD_H

#include "base/args.h"

/* Exit statuses of every subcommand. */
enum { CMD_OK = 0, CMD_FAILED = 1, CMD_USAGE = 2, CMD_LIMIT = 3 };
enum { CMD_MAX_GROUPS = 8 };

/* One call of a subcommand. */
struct cmd_call {
    void *options;       /* the subcommand's struct of options, filled from defaults and command line */
    struct km_strs args; /* the arguments that are not options */
    struct km_option_group groups[CMD_MAX_GROUPS]; /* [n_groups] of `options` */
    int n_groups;
    int argc; /* the words after the subcommand's name as the user typed them, which results record */
    char **argv;
};

struct cmd {
    const char *name;
    const char *usage;   /* "WORKLOAD.json [--url URL] -o DIR [OPTIONS]" */
    const char *summary; /* one line, without a full stop */
    const char *text;    /* paragraphs for help and man page, separated by blank lines */
    size_t options_size; /* of the struct of options; 0: none */
    /* Fills `out` with the option groups over the struct `options`, at most CMD_MAX_GROUPS. Returns their number. NULL:
     * the subcommand has no options. */
    int (*groups)(void *options, struct km_option_group *out);
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
    X(cache)                                                                                                           \
    X(info)

#define CMD_DECLARE(name) extern const struct cmd cmd_##name;
SUBCOMMANDS(CMD_DECLARE)
#undef CMD_DECLARE

/* Parses argv (the words after the subcommand's name) and runs the subcommand, or prints its help if argv has --help.
 * Errors go to stderr. Returns the exit status. */
int cmd_execute(const struct cmd *c, int argc, char **argv);
/* Prints an error on stderr and returns status. */
int cmd_error(const struct km_err *err, int status);
/* The exit status for an error code: CMD_FAILED for an error of the machine (KM_EIO, KM_ENOMEM), CMD_USAGE for an error
 * in the command line or in a file that it names. */
int cmd_status_of(int rc);
/* Appends the sections NAME to OPTIONS of the subcommand's man page. */
int cmd_man(const struct cmd *c, struct km_buf *out, struct km_err *err);
/* The width of help texts in columns: the terminal's, at most 110. */
int cmd_help_width(void);

#endif
