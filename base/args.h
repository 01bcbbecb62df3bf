/* Command-line flags as a table: one row a flag, parsed, checked and documented from the same place.
 *
 * `--name value`, `--name=value`, `-x value`; a bool takes no value and `--no-name` switches it off.
 * Unknown flags and bad values are errors with the nearest known name as a hint. */
#ifndef KM_ARGS_H
#define KM_ARGS_H

#include "base/buf.h"
#include "base/err.h"

#include <stdbool.h>
#include <stdint.h>

enum km_flag_type {
    KM_BOOL,   /* bool *    */
    KM_INT,    /* int64_t * , within [lo, hi] when lo < hi */
    KM_NUM,    /* double *  , likewise; accepts "inf"      */
    KM_STR,    /* const char ** (borrowed from argv)       */
    KM_SIZE,   /* int64_t * bytes: 24GiB, 512MiB, 4G (GiB), 1000 */
    KM_LIST    /* struct km_strs *: may be given again     */
};

struct km_strs {
    const char **v; /* [n], borrowed strings; free v with km_free */
    int n;
};

struct km_flag {
    const char *name; /* without the dashes */
    char letter;      /* 0: no short form */
    enum km_flag_type type;
    void *dst;
    const char *arg;  /* what the help calls the value: DIR, N, URL; for KM_STR "a|b|c" is also the set allowed */
    const char *help; /* one line; the default is part of it */
    double lo, hi;
};

/* Parses argv[0..argc). What is not a flag goes to pos, in order; "--" ends the flags. *help is set when
 * --help or -h was met (parsing stops there). */
int km_args_parse(const struct km_flag *flags, int n_flags, int argc, char **argv, struct km_strs *pos, bool *help,
                  struct km_err *err);

/* The flags as aligned help text, and as the OPTIONS of a man page. */
void km_args_help(const struct km_flag *flags, int n_flags, struct km_buf *out);
void km_args_man(const struct km_flag *flags, int n_flags, struct km_buf *out);

/* "24GiB" -> bytes. Units B, K/KB/KiB, M.., G.., T.. are powers of 1024, as LMCache reads them. */
int km_parse_size(const char *text, int64_t *out, struct km_err *err);

/* The candidate nearest to `word` (edit distance), or NULL when none is near. */
const char *km_nearest(const char *word, const char *const *names, int n);

#endif
