/* Option tables: everything about an option is said in one row.
 *
 * A `km_option` is one row: the option's name, type, default, range or allowed values, help text, and the field that it
 * fills. The field is an offset into the struct that the consumer of the option reads, so no code copies options from
 * one struct to another. A `km_option_group` is a table of rows with the struct that the rows fill. Programs pass a
 * list of groups to the functions here and in base/args.h: defaults, range checks, command lines, `--help`, man pages
 * and the options recorded in result files all come from the rows.
 *
 * To add an option: add the field to the struct, the row to the table beside it, and the code that uses the field.
 *
 * Any library may bring a group. A tier of the KV-cache layer, for example, has a struct of settings, a table whose
 * names are the tier's keys in LMCache's YAML file, and a function that returns both as a group:
 *
 *     struct km_option_group disk_option_group(struct disk_opts *o);
 *
 * The command line appends that group to its own list. The YAML reader takes each key to km_option_find and each value,
 * as text, to km_option_set. In a name '-' and '_' are the same, so `--max-local-disk-size 50` and
 * `max_local_disk_size: 50` reach the same row.
 *
 * Ownership: a text field borrows its text (from argv, or from the table if it is the default), and whoever passes a
 * text to km_option_set keeps it alive. The array of a list belongs to the struct; km_options_free releases it. */
#ifndef KM_OPTION_H
#define KM_OPTION_H

#include "base/err.h"

#include <cjson/cJSON.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

enum km_option_type {
    KM_BOOL,  /* --name, --no-name */
    KM_INT,   /* int, int64_t or uint64_t */
    KM_NUM,   /* double; accepts "inf" */
    KM_STR,   /* const char *, borrowed */
    KM_LIST,  /* struct km_strs: each use of the option appends a text */
    KM_SIZE,  /* int64_t or uint64_t, in bytes: 24GiB, 512MiB, 4G (4 GiB), 1000 */
    KM_CHOICE /* an enum, an int or a bool: lo plus the place of the word in `values` */
};

struct km_strs {
    const char **v; /* [n], borrowed texts; km_free(v) */
    int n;
};

/* Appends a borrowed text. */
int km_strs_push(struct km_strs *l, const char *text, struct km_err *err);

struct km_option {
    const char *name;         /* without the dashes */
    char letter;              /* short form, -p; 0: none */
    enum km_option_type type; /* type, offset and size: see KM_FIELD */
    size_t offset, size;
    const char *arg;      /* what the help calls the value: DIR, N, URL; NULL: `values` */
    const char *values;   /* KM_STR, KM_CHOICE: the allowed words, "auto|float32|bfloat16"; NULL: any text */
    const char *fallback; /* the default as text, read as if the user had typed it; NULL: 0, false or NULL */
    double lo, hi;    /* range of a number, if lo < hi. A field may also hold its default outside of it: 0, not set */
    bool secret;      /* recorded results have no text of it, and of a list only the length */
    const char *help; /* NULL: not on the command line, only default and range; messages say `name` without dashes */
};

/* The initialisers of a row's type, offset and size, for field f of struct s. A field of any other type than those
 * listed above does not compile. Sizes in bytes and choices have macros of their own. */
#define KM_FIELD(s, f)                                                                                                 \
    KM_FIELD_AT(s, f), .type = _Generic(((s *)0)->f, bool: KM_BOOL, int: KM_INT, int64_t: KM_INT, uint64_t: KM_INT,    \
                                        double: KM_NUM, const char *: KM_STR, struct km_strs: KM_LIST)
#define KM_FIELD_SIZE(s, f) KM_FIELD_AT(s, f), .type = _Generic(((s *)0)->f, int64_t : KM_SIZE, uint64_t : KM_SIZE)
#define KM_FIELD_CHOICE(s, f)                                                                                          \
    KM_FIELD_AT(s, f), .type = _Generic(((s *)0)->f, int : KM_CHOICE, unsigned : KM_CHOICE, bool : KM_CHOICE)
#define KM_FIELD_AT(s, f) .offset = offsetof(s, f), .size = sizeof(((s *)0)->f)

struct km_option_group {
    const char *title;            /* heading in help and man pages */
    const struct km_option *rows; /* [n] */
    int n;
    void *object; /* the struct that the rows fill */
};
/* A group of the rows of an array, for a struct. */
#define KM_OPTION_GROUP(title, rows, object)                                                                           \
    ((struct km_option_group){title, rows, (int)(sizeof(rows) / sizeof *(rows)), object})

/* Sets every field that has a row to its default. */
void km_options_default(const struct km_option_group *groups, int n);
/* Checks every field against its row, for structs that were filled by hand: KM_EINVAL names the option, its value and
 * its range. */
int km_options_check(const struct km_option_group *groups, int n, struct km_err *err);
/* Adds every option to an object: {"num-clients": 8, "request-rate": "inf", ...}. A text that is NULL is left out. */
void km_options_json(const struct km_option_group *groups, int n, cJSON *to);
/* Frees the arrays of all lists. */
void km_options_free(const struct km_option_group *groups, int n);

/* The row of a name (len characters, without dashes) and its group's object; NULL if no row has that name. Rows without
 * help are not found. */
const struct km_option *km_option_find(const struct km_option_group *groups, int n, const char *name, size_t len,
                                       void **object);
/* Reads a text into the row's field: KM_EINVAL says what the text is and what it must be. A bool reads true or false,
 * on or off, yes or no, 1 or 0. */
int km_option_set(const struct km_option *o, void *object, const char *text, struct km_err *err);
/* The name nearest to a misspelt one; NULL when none is near. */
const char *km_option_nearest(const struct km_option_group *groups, int n, const char *name);

/* "24GiB" -> bytes. The units K, KB, KiB, M ... T are powers of 1024, as LMCache reads them. */
int km_parse_size(const char *text, int64_t *out, struct km_err *err);

/* The candidate nearest to `word` by edit distance, or NULL when none is near. */
const char *km_nearest(const char *word, const char *const *names, int n);

#endif
