/* Strict JSON on top of cJSON. Parsing checks UTF-8, number syntax and nesting, which cJSON does not. The errors of the
 * accessors name the key, the value it has and what it must be. A parsed value belongs to the caller (cJSON_Delete). */
#ifndef KM_JSON_H
#define KM_JSON_H

#include "base/buf.h"
#include "base/err.h"

#include <cjson/cJSON.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#define KM_JSON_DEPTH 64 /* deepest nesting that is accepted, also in values that the program ignores */

/* Parses text[len], which must be one JSON value. The error states the byte offset. cJSON would end a string at
 * the escape \u0000, so the escape becomes the two bytes C0 80, which valid UTF-8 never contains (km_json_nuls). */
int km_json_parse(const char *text, size_t len, cJSON **out, struct km_err *err);
/* Replaces C0 80 in a parsed string s[*len] by NUL bytes. Returns s itself if it has none, else a copy in *tmp, and
 * sets *len to the length of the result. NULL if there is no memory. */
const char *km_json_nuls(const char *s, size_t *len, struct km_buf *tmp);
/* Parses a file of at most max bytes (0: no limit). */
int km_json_file(const char *path, size_t max, cJSON **out, struct km_err *err);

/* These read obj[key] into *out. KM_EINVAL, with a message that names the key, if the value has another type or is
 * outside of [lo, hi]. If the key is missing or null: KM_EINVAL when `need` is set; otherwise 0, and *out stays as it
 * is. */
int km_json_str(const cJSON *obj, const char *key, bool need, const char **out, struct km_err *err);
int km_json_int(const cJSON *obj, const char *key, bool need, int64_t lo, int64_t hi, int64_t *out, struct km_err *err);
int km_json_num(const cJSON *obj, const char *key, bool need, double lo, double hi, double *out, struct km_err *err);
int km_json_bool(const cJSON *obj, const char *key, bool need, bool *out, struct km_err *err);
/* Sets *out to the value itself, which must be of this kind (cJSON_Array or cJSON_Object); NULL if it is missing. */
int km_json_item(const cJSON *obj, const char *key, bool need, int kind, const cJSON **out, struct km_err *err);

/* The type of v for messages: "a string", "an array", "true or false", "null" ... */
const char *km_json_kind(const cJSON *v);

/* Writes v to a file with km_file_write: indented, keys in the order in which they were added, a newline at the end.
 * NaN and infinity are written as null. */
int km_json_write(const char *path, const cJSON *v, struct km_err *err);

#endif
