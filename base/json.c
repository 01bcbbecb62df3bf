/* cJSON builds the values. prescan checks the text first, so that cJSON gets only what JSON allows. */
#include "base/json.h"

#include "base/buf.h"
#include "base/file.h"
#include "base/mem.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

/* Length of the JSON number at s[n]; 0 if there is none, or if JSON does not allow its form (01, 1., .5, +1). */
static size_t number_len(const char *s, size_t n)
{
    size_t i = n && *s == '-', digits = i;
    while (i < n && s[i] >= '0' && s[i] <= '9')
        i++;
    if (i == digits || (s[digits] == '0' && i > digits + 1))
        return 0;
    if (i < n && s[i] == '.') {
        for (digits = ++i; i < n && s[i] >= '0' && s[i] <= '9';)
            i++;
        if (i == digits)
            return 0;
    }
    if (i < n && (s[i] == 'e' || s[i] == 'E')) {
        i++;
        i += i < n && (s[i] == '+' || s[i] == '-');
        for (digits = i; i < n && s[i] >= '0' && s[i] <= '9';)
            i++;
        if (i == digits)
            return 0;
    }
    return i < n && !strchr(" \t\r\n,]}", s[i]) ? 0 : i;
}

static bool hex4(const char *s)
{
    for (int i = 0; i < 4; i++)
        if (!(s[i] >= '0' && s[i] <= '9') && !((s[i] | 32) >= 'a' && (s[i] | 32) <= 'f'))
            return false;
    return true;
}

/* Checks the text before cJSON parses it: nesting, UTF-8, and what cJSON accepts although JSON does not (other forms of
 * numbers, other white space, a byte order mark). *nuls counts the \u0000 escapes. */
static int prescan(const char *s, size_t n, size_t *nuls, struct km_err *err)
{
    int depth = 0;
    bool in_str = false;
    for (size_t i = 0; i < n;) {
        int len = km_utf8_len(s + i, n - i, NULL);
        if (!len)
            return km_fail(err, KM_EFORMAT, "JSON is not valid UTF-8 at byte %zu", i);
        char c = s[i];
        if (c == 0)
            return km_fail(err, KM_EFORMAT, "JSON holds a NUL byte at byte %zu", i);
        if (in_str) {
            bool coded = c == '\\' && i + 1 < n && s[i + 1] == 'u';
            if (coded && (n - i < 6 || !hex4(s + i + 2)))
                return km_fail(err, KM_EFORMAT, "JSON holds a broken \\u escape at byte %zu", i);
            *nuls += coded && !memcmp(s + i + 2, "0000", 4);
            if (c == '\\' && i + 1 < n)
                i++;
            else if (c == '"')
                in_str = false;
            else if ((unsigned char)c < 0x20)
                return km_fail(err, KM_EFORMAT, "JSON holds a raw control character at byte %zu", i);
        } else if (c == '"') {
            in_str = true;
        } else if (c == '[' || c == '{') {
            if (++depth > KM_JSON_DEPTH)
                return km_fail(err, KM_EFORMAT, "JSON is nested deeper than %d at byte %zu", KM_JSON_DEPTH, i);
        } else if (c == ']' || c == '}') {
            depth--;
        } else if (c == '-' || (c >= '0' && c <= '9')) {
            size_t digits = number_len(s + i, n - i);
            if (!digits)
                return km_fail(err, KM_EFORMAT, "JSON has a number in a form that it does not allow at byte %zu", i);
            i += digits;
            continue;
        } else if (!strchr(" \t\r\n,:", c) && !(c >= 'a' && c <= 'z')) {
            return km_fail(err, KM_EFORMAT, "JSON is broken near byte %zu", i);
        }
        i += c == '\\' || len == 1 ? 1 : (size_t)len;
    }
    return 0;
}

/* A copy of text[len] with each \u0000 as the bytes C0 80 (km_free). NULL if there is no memory. */
static char *code_nuls(const char *text, size_t len, size_t *out_len)
{
    char *out = km_malloc(len + 1), *to = out;
    for (size_t i = 0; out && i < len;) {
        if (text[i] == '\\' && len - i >= 6 && !memcmp(text + i, "\\u0000", 6)) {
            memcpy(to, "\xC0\x80", 2);
            to += 2;
            i += 6;
        } else {
            size_t n = text[i] == '\\' && i + 1 < len
                           ? 2
                           : 1; /* an escape has two characters, so the second of \\ does not begin another */
            memcpy(to, text + i, n);
            to += n;
            i += n;
        }
    }
    *out_len = out ? (size_t)(to - out) : 0;
    return out;
}

const char *km_json_nuls(const char *s, size_t *len, struct km_buf *tmp)
{
    const char *at = memmem(s, *len, "\xC0\x80", 2), *end = s + *len;
    if (!at)
        return s;
    km_buf_clear(tmp);
    for (; at; s = at + 2, at = memmem(s, (size_t)(end - s), "\xC0\x80", 2)) {
        km_buf_put(tmp, s, (size_t)(at - s));
        km_buf_putc(tmp, 0);
    }
    km_buf_put(tmp, s, (size_t)(end - s));
    *len = tmp->len;
    return km_buf_ok(tmp) ? tmp->data : NULL;
}

int km_json_parse(const char *text, size_t len, cJSON **out, struct km_err *err)
{
    size_t nuls = 0;
    int rc = prescan(text, len, &nuls, err);
    if (rc)
        return rc;
    size_t coded_len = 0;
    char *coded = nuls ? code_nuls(text, len, &coded_len) : NULL;
    if (nuls && !coded)
        return km_fail(err, KM_ENOMEM, "out of memory while parsing JSON of %zu bytes", len);
    if (coded) {
        text = coded;
        len = coded_len;
    }
    const char *end = NULL;
    cJSON *v = cJSON_ParseWithLengthOpts(text, len, &end, 0);
    if (!v)
        rc = km_fail(err, KM_EFORMAT, "JSON is broken near byte %zu", end ? (size_t)(end - text) : 0);
    while (!rc && end < text + len && strchr(" \t\r\n", *end))
        end++;
    if (!rc && end != text + len) {
        cJSON_Delete(v);
        rc = km_fail(err, KM_EFORMAT, "JSON is followed by something else at byte %zu", (size_t)(end - text));
    }
    if (!rc)
        *out = v;
    km_free(coded);
    return rc;
}

int km_json_file(const char *path, size_t max, cJSON **out, struct km_err *err)
{
    struct km_buf b = {0};
    int rc = km_file_read(path, max, &b, err);
    if (!rc && (rc = km_json_parse(b.data, b.len, out, err)))
        km_context(err, "%s", path);
    km_buf_free(&b);
    return rc;
}

const char *km_json_kind(const cJSON *v)
{
    return cJSON_IsString(v)   ? "a string"
           : cJSON_IsNumber(v) ? "a number"
           : cJSON_IsBool(v)   ? "true or false"
           : cJSON_IsArray(v)  ? "an array"
           : cJSON_IsObject(v) ? "an object"
                               : "null";
}

/* The item, or NULL if it is missing or null; then *rc is an error if it is needed, else 0. */
static const cJSON *find(const cJSON *obj, const char *key, bool need, int *rc, struct km_err *err)
{
    const cJSON *v = cJSON_GetObjectItemCaseSensitive(obj, key);
    if (cJSON_IsNull(v))
        v = NULL;
    *rc = !v && need ? km_fail(err, KM_EINVAL, "\"%s\" is missing", key) : 0;
    return v;
}

static int fail_kind(const cJSON *v, const char *key, const char *want, struct km_err *err)
{
    return km_fail(err, KM_EINVAL, "\"%s\" must be %s, not %s", key, want, km_json_kind(v));
}

int km_json_str(const cJSON *obj, const char *key, bool need, const char **out, struct km_err *err)
{
    int rc;
    const cJSON *v = find(obj, key, need, &rc, err);
    if (!v)
        return rc;
    if (!cJSON_IsString(v))
        return fail_kind(v, key, "a string", err);
    *out = v->valuestring;
    return 0;
}

int km_json_num(const cJSON *obj, const char *key, bool need, double lo, double hi, double *out, struct km_err *err)
{
    int rc;
    const cJSON *v = find(obj, key, need, &rc, err);
    if (!v)
        return rc;
    if (!cJSON_IsNumber(v))
        return fail_kind(v, key, "a number", err);
    if (!(v->valuedouble >= lo && v->valuedouble <= hi))
        return km_fail(err, KM_EINVAL, "\"%s\" is %g; it must be between %g and %g", key, v->valuedouble, lo, hi);
    *out = v->valuedouble;
    return 0;
}

int km_json_int(const cJSON *obj, const char *key, bool need, int64_t lo, int64_t hi, int64_t *out, struct km_err *err)
{
    double d = NAN;
    int rc = km_json_num(obj, key, need, -HUGE_VAL, HUGE_VAL, &d, err);
    if (rc || isnan(d))
        return rc;
    if (d != floor(d))
        return km_fail(err, KM_EINVAL, "\"%s\" is %g; it must be a whole number", key, d);
    if (d < (double)lo || d > (double)hi)
        return km_fail(err, KM_EINVAL, "\"%s\" is %.0f; it must be between %lld and %lld", key, d, (long long)lo,
                       (long long)hi);
    *out = (int64_t)d;
    return 0;
}

int km_json_bool(const cJSON *obj, const char *key, bool need, bool *out, struct km_err *err)
{
    int rc;
    const cJSON *v = find(obj, key, need, &rc, err);
    if (!v)
        return rc;
    if (!cJSON_IsBool(v))
        return fail_kind(v, key, "true or false", err);
    *out = cJSON_IsTrue(v);
    return 0;
}

int km_json_item(const cJSON *obj, const char *key, bool need, int kind, const cJSON **out, struct km_err *err)
{
    int rc;
    *out = NULL;
    const cJSON *v = find(obj, key, need, &rc, err);
    if (!v)
        return rc;
    if ((v->type & 0xFF) != kind)
        return fail_kind(v, key, kind == cJSON_Array ? "an array" : "an object", err);
    *out = v;
    return 0;
}

int km_json_write(const char *path, const cJSON *v, struct km_err *err)
{
    char *text = cJSON_Print(v);
    if (!text)
        return km_fail(err, KM_ENOMEM, "out of memory while writing %s", path);
    struct km_buf b = {0};
    km_buf_puts(&b, text);
    km_buf_putc(&b, '\n');
    cJSON_free(text);
    int rc = km_buf_ok(&b) ? km_file_write(path, b.data, b.len, err)
                           : km_fail(err, KM_ENOMEM, "out of memory while writing %s", path);
    km_buf_free(&b);
    return rc;
}
