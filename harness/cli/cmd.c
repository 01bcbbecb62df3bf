/* Executes a subcommand: defaults, command line, help, run. */
#include "harness/cli/cmd.h"

#include "base/log.h"
#include "base/mem.h"
#include "harness/cli/terminal.h"

#include <stdio.h>
#include <string.h>

int cmd_help_width(void)
{
    int width = term_width(1);
    return width > 110 ? 110 : width; /* longer lines are hard to read */
}

/* Prepares a call: makes the struct of options and sets the defaults. end_call frees it. */
static int begin_call(struct cmd_call *call, const struct cmd *c, struct km_err *err)
{
    *call = (struct cmd_call){0};
    call->options = km_calloc(1, c->options_size);
    if (!call->options)
        return km_fail(err, KM_ENOMEM, "out of memory");
    call->n_groups = c->groups ? c->groups(call->options, call->groups) : 0;
    km_options_default(call->groups, call->n_groups);
    return 0;
}

static void end_call(struct cmd_call *call)
{
    km_options_free(call->groups, call->n_groups);
    km_free(call->args.v);
    km_free(call->options);
}

static void help_command(const struct cmd *c, const struct cmd_call *call)
{
    struct km_buf out = {0};
    km_buf_printf(&out, "usage: kvmark %s ", c->name);
    km_args_wrap(&out, c->usage, 14 + (int)strlen(c->name) + 1, cmd_help_width());
    km_buf_puts(&out, "\n\n");
    km_args_wrap(&out, c->summary, 0, cmd_help_width() - 1);
    km_buf_puts(&out, ".\n");
    if (*c->text) {
        km_buf_putc(&out, '\n');
        km_args_wrap(&out, c->text, 0, cmd_help_width());
        km_buf_putc(&out, '\n');
    }
    if (call->n_groups) {
        km_buf_putc(&out, '\n');
        km_args_help(call->groups, call->n_groups, cmd_help_width(), &out);
    }
    fputs(km_buf_str(&out), stdout);
    km_buf_free(&out);
}

int cmd_man(const struct cmd *c, struct km_buf *out, struct km_err *err)
{
    struct cmd_call call;
    int rc = begin_call(&call, c, err);
    if (rc)
        return rc;
    km_buf_printf(out, ".SH NAME\nkvmark\\-%s \\- ", c->name);
    km_args_roff(out, c->summary);
    km_buf_printf(out, "\n.SH SYNOPSIS\n.B kvmark %s\n", c->name);
    km_args_roff(out, c->usage);
    km_buf_puts(out, "\n.SH DESCRIPTION\n");
    km_args_roff(out, c->summary);
    km_buf_puts(out, ".\n.PP\n");
    km_args_roff(out, c->text);
    km_buf_puts(out, "\n");
    if (call.n_groups) {
        km_buf_puts(out, ".SH OPTIONS\n");
        km_args_man(call.groups, call.n_groups, out);
    }
    end_call(&call);
    return 0;
}

int cmd_error(const struct km_err *err, int status)
{
    fflush(stdout);
    km_log(KM_LOG_ERROR, "%s", err->msg);
    return status;
}

int cmd_status_of(int rc)
{
    return rc == KM_EIO || rc == KM_ENOMEM ? CMD_FAILED : CMD_USAGE;
}

int cmd_execute(const struct cmd *c, int argc, char **argv)
{
    struct cmd_call call;
    struct km_err err;
    bool help = false;
    int status, rc = begin_call(&call, c, &err);
    call.argc = argc;
    call.argv = argv;
    if (!rc)
        rc = km_args_parse(call.groups, call.n_groups, argc, argv, &call.args, &help, &err);
    if (rc) {
        status = cmd_error(&err, CMD_USAGE);
    } else if (help) {
        help_command(c, &call);
        status = CMD_OK;
    } else {
        status = c->run(&call);
    }
    end_call(&call);
    return status;
}
