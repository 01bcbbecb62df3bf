/* cJSON with manners: every parse is depth-limited, and every accessor's error names the key, the value
 * and what was wanted. Objects belong to whoever parsed them (cJSON_Delete). */
#ifndef KM_JSON_H
#define KM_JSON_H

#include "base/buf.h"
#include "base/err.h"

#include <cjson/cJSON.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#define KM_JSON_DEPTH 64 /* nesting accepted, also inside ignored keys */

/* Text that must be one JSON value, UTF-8, not deeper than KM_JSON_DEPTH. The error gives the byte offset. A \u0000
 * in a string, which cJSON would end the string at, is kept as the bytes C0 80, which no UTF-8 text can hold. */
int km_json_parse(const char *text, size_t len, cJSON **out, struct km_err *err);
/* The text of a parsed string with its NULs back, for those who can take them: s itself when it holds none, else a
 * copy in tmp. *len is the length before and after. NULL without memory. */
const char *km_json_nuls(const char *s, size_t *len, struct km_buf *tmp);
int km_json_file(const char *path, size_t max, cJSON **out, struct km_err *err);

/* Fetch obj[key]. Missing: *out keeps its value and 0 is returned when `need` is false, else KM_EINVAL.
 * JSON null counts as missing. Wrong type or out of [lo, hi]: KM_EINVAL, naming `key`. */
int km_json_str(const cJSON *obj, const char *key, bool need, const char **out, struct km_err *err);
int km_json_int(const cJSON *obj, const char *key, bool need, int64_t lo, int64_t hi, int64_t *out, struct km_err *err);
int km_json_num(const cJSON *obj, const char *key, bool need, double lo, double hi, double *out, struct km_err *err);
int km_json_bool(const cJSON *obj, const char *key, bool need, bool *out, struct km_err *err);
/* The item itself when it has the wanted kind (cJSON_Array, cJSON_Object), NULL in *out when absent. */
int km_json_item(const cJSON *obj, const char *key, bool need, int kind, const cJSON **out, struct km_err *err);

/* What v is, for messages: "a string", "an array", "true or false", "null" ... */
const char *km_json_kind(const cJSON *v);

/* Indented text with a trailing newline, keys in the order they were added; NaN and Inf are never written
 * (cJSON prints null). Written atomically. */
int km_json_write(const char *path, const cJSON *v, struct km_err *err);

#endif
