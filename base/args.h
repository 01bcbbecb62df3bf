/* Command lines over option tables (base/option.h): parsing, help and man pages.
 *
 * `--name value`, `--name=value` and, with the row's letter, `-x value` set an option. `--name` and `--no-name` switch
 * a bool on and off. An unknown name or a bad value is an error that says what is accepted; for an unknown name it
 * suggests the most similar one. */
#ifndef KM_ARGS_H
#define KM_ARGS_H

#include "base/buf.h"
#include "base/option.h"

/* Parses argv[0..argc) into the groups' objects, which must hold their defaults already (km_options_default). Arguments
 * that are not options are appended to pos in order; after "--" all arguments are. If --help or -h is among the
 * options, *help is set and nothing is parsed. */
int km_args_parse(const struct km_option_group *groups, int n, int argc, char **argv, struct km_strs *pos, bool *help,
                  struct km_err *err);

/* Appends the help text of the options, `width` columns wide: each with its help and its default, under the title of
 * its group if there are several groups. */
void km_args_help(const struct km_option_group *groups, int n, int width, struct km_buf *out);
/* Appends the options as the body of a man page's OPTIONS section. */
void km_args_man(const struct km_option_group *groups, int n, struct km_buf *out);

/* Appends text in lines of at most `width` columns, broken at spaces. Every line but the first is indented; the caller
 * has written `indent` columns of the first. A newline in the text begins a line, and a blank line a paragraph. */
void km_args_wrap(struct km_buf *out, const char *text, int indent, int width);
/* Appends text for a man page: roff's special characters are escaped, and a blank line begins a paragraph. */
void km_args_roff(struct km_buf *out, const char *text);

#endif
