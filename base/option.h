/* Option tables: everything about an option is stated in one row.
 *
 * A `km_option` is one row: an option's name, type, default, range or allowed words, help text, and the struct field
 * that it sets. A `km_option_group` is a table of rows with the struct object that the rows set. Defaults, range
 * checks, command lines, `--help`, man pages and the options in result files are all derived from the rows. The code
 * that uses an option reads the struct field, so no code copies options from one struct to another.
 *
 * To add an option, add a field to the struct and a row to the table beside it, and read the field:
 *
 *     struct pool_opts {
 *         int block_size;
 *     };
 *     static const struct km_option rows[] = {
 *         {.name = "block-size", KM_FIELD(struct pool_opts, block_size), .arg = "N", .fallback = "16", .lo = 1,
 *          .hi = 1024, .help = "tokens of a KV block"},
 *     };
 *
 * Any library can have a group. It exports the struct, and a function that returns the table for an object:
 *
 *     struct km_option_group pool_option_group(struct pool_opts *o)
 *     {
 *         return KM_OPTION_GROUP("KV pool", rows, o);
 *     }
 *
 * A program collects the groups in an array and passes the array to the functions here and in base/args.h. Readers of
 * other formats use the same rows: a reader of YAML, for example, passes each key to km_option_find and each value to
 * km_option_set. In names '-' and '_' are equal, so `--block-size 16` and `block_size: 16` set the same field.
 *
 * Ownership: a string field borrows its string, from argv, from the table's default or from the caller of
 * km_option_set, who must keep it alive. The array of a list belongs to the struct, and km_options_free frees it. */
#ifndef KM_OPTION_H
#define KM_OPTION_H

#include "base/err.h"

#include <cjson/cJSON.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

enum km_option_type {
    KM_BOOL,  /* bool; --name switches it on, --no-name off */
    KM_INT,   /* int, int64_t or uint64_t */
    KM_NUM,   /* double; "inf" is a number, too */
    KM_STR,   /* const char *, borrowed */
    KM_LIST,  /* struct km_strs; each use of the option appends a string */
    KM_SIZE,  /* int64_t or uint64_t, in bytes: 24GiB, 512MiB, 4G (4 GiB), 1000 */
    KM_CHOICE /* an enum, an int or a bool: lo + the index of the word in `values` */
};

/* A list of borrowed strings. Start with zeros; free with km_free(v). */
struct km_strs {
    const char **v; /* [n] */
    int n;
};

/* Appends a string. The only error is KM_ENOMEM. */
int km_strs_push(struct km_strs *l, const char *text, struct km_err *err);

struct km_option {
    const char *name;         /* without the dashes */
    char letter;              /* short form: 'p' for -p; 0: none */
    enum km_option_type type; /* type, offset and size are set by KM_FIELD, KM_FIELD_SIZE or KM_FIELD_CHOICE */
    size_t offset, size;      /* of the field in its struct, bytes */
    const char *arg;          /* placeholder of the value in help texts: DIR, N, URL; NULL: `values` */
    const char *values;       /* KM_STR, KM_CHOICE: the allowed words, "auto|float32|bfloat16"; NULL: any string */
    const char *fallback;     /* the default, as a user would type it; NULL: 0, false or no string */
    double lo, hi;            /* smallest and largest number allowed, if lo < hi. The default is allowed even outside
                               * this range, so that 0 can mean "not set". */
    bool secret;              /* result files have no string of this option, and of a list only the length */
    bool internal;            /* set by code only: not an option of command lines, help, man pages and result files.
                               * Messages name it without dashes. */
    const char *help;         /* one phrase without a full stop; the default is appended to it. NULL if internal */
};

/* Initializers of a row's type, offset and size, for field f of struct s. KM_FIELD derives the type from the field's C
 * type; KM_SIZE and KM_CHOICE have macros of their own. A C type that is not listed above does not compile. */
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
    void *object; /* borrowed: the struct whose fields the rows set */
};
/* A group with all rows of the array `rows`. */
#define KM_OPTION_GROUP(title, rows, object)                                                                           \
    ((struct km_option_group){title, rows, (int)(sizeof(rows) / sizeof *(rows)), object})

/* Sets every field that has a row to its default. Call it first: the fields may hold anything before. */
void km_options_default(const struct km_option_group *groups, int n);
/* Checks every field against its row, for structs that code has filled. KM_EINVAL names the option, its value and its
 * range. */
int km_options_check(const struct km_option_group *groups, int n, struct km_err *err);
/* Adds every option to a JSON object: {"num-clients": 8, "request-rate": "inf", ...}. Strings that are NULL are left
 * out, and so are internal rows. */
void km_options_json(const struct km_option_group *groups, int n, cJSON *to);
/* Frees the arrays of all lists. */
void km_options_free(const struct km_option_group *groups, int n);

/* Finds the row of a name of len characters, without dashes. Sets *object to its group's object. Returns NULL if there
 * is none, or if the row is internal. */
const struct km_option *km_option_find(const struct km_option_group *groups, int n, const char *name, size_t len,
                                       void **object);
/* Parses a string into the row's field of the object. KM_EINVAL names the option, the string and what it must be. A
 * bool accepts true and false, on and off, yes and no, 1 and 0. */
int km_option_set(const struct km_option *o, void *object, const char *text, struct km_err *err);
/* The option name most similar to a misspelt one; NULL if none is similar. */
const char *km_option_nearest(const struct km_option_group *groups, int n, const char *name);

/* Parses a size such as "24GiB" into bytes. The units K, KB, KiB, M ... T are powers of 1024, as in LMCache. */
int km_parse_size(const char *text, int64_t *out, struct km_err *err);

/* The name most similar to `word` by edit distance; NULL if none is within a third of the word's length + 1. */
const char *km_nearest(const char *word, const char *const *names, int n);

#endif
