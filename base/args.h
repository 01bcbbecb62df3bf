/* Command lines over option tables (base/option.h): parsing, help and man pages.
 *
 * `--name value`, `--name=value` and `-x value` set an option; `--name` and `--no-name` switch a bool on and off. An
 * unknown name or a bad value is an error that says what would be right, with the nearest known name as a hint. */
#ifndef KM_ARGS_H
#define KM_ARGS_H

#include "base/buf.h"
#include "base/option.h"

/* Parses argv[0..argc) into the groups' structs, which hold their defaults already (km_options_default). What is no
 * option goes to pos, in order; "--" ends the options. With --help or -h among the options, *help is set and nothing is
 * parsed. */
int km_args_parse(const struct km_option_group *groups, int n, int argc, char **argv, struct km_strs *pos, bool *help,
                  struct km_err *err);

/* The options as text, `width` columns wide, under the titles of their groups if there is more than one. The default of
 * each row is stated after its help. */
void km_args_help(const struct km_option_group *groups, int n, int width, struct km_buf *out);
/* The options as the body of a man page's OPTIONS section. */
void km_args_man(const struct km_option_group *groups, int n, struct km_buf *out);

/* Running text broken into lines of at most `width` columns, each after the first indented. A newline in the text
 * begins a line, so a blank line separates paragraphs. */
void km_args_wrap(struct km_buf *out, const char *text, int indent, int width);
/* Running text for a man page: roff's own characters escaped, and a paragraph at each blank line. */
void km_args_roff(struct km_buf *out, const char *text);

#endif
