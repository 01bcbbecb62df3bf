/* Option rows: parsing a string into a field, checking a field against its row, and writing it as JSON. */
#include "base/option.h"

#include "base/mem.h"

#include <assert.h>
#include <ctype.h>
#include <errno.h>
#include <limits.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <strings.h>

int km_strs_push(struct km_strs *l, const char *text, struct km_err *err)
{
    const char **v = km_reallocarray(l->v, (size_t)l->n + 1, sizeof *v);
    if (!v)
        return km_fail(err, KM_ENOMEM, "out of memory");
    l->v = v;
    l->v[l->n++] = text;
    return 0;
}

/* The value of a field, in the widest C type of its kind. */
union value {
    int64_t whole; /* KM_BOOL, KM_INT, KM_SIZE, KM_CHOICE */
    double real;
    const char *text;
};

static union value load(const struct km_option *o, const void *object)
{
    const void *at = (const char *)object + o->offset;
    union value v = {0};
    if (o->type == KM_NUM)
        v.real = *(const double *)at;
    else if (o->type == KM_STR)
        v.text = *(const char *const *)at;
    else if (o->type != KM_LIST)
        v.whole = o->size == sizeof(bool)  ? *(const bool *)at
                  : o->size == sizeof(int) ? *(const int *)at
                                           : *(const int64_t *)at;
    return v;
}

static void store(const struct km_option *o, void *object, union value v)
{
    void *at = (char *)object + o->offset;
    if (o->type == KM_NUM)
        *(double *)at = v.real;
    else if (o->type == KM_STR)
        *(const char **)at = v.text;
    else if (o->size == sizeof(bool))
        *(bool *)at = v.whole != 0;
    else if (o->size == sizeof(int))
        *(int *)at = (int)v.whole;
    else
        *(int64_t *)at = v.whole;
}

/* What messages put before the name of the option. */
static const char *dashes(const struct km_option *o)
{
    return o->internal ? "" : "--";
}

/* The index of a word in "a|b|c", or -1. */
static int find_word(const char *words, const char *word)
{
    size_t n = strlen(word);
    for (int i = 0;; i++) {
        size_t len = strcspn(words, "|");
        if (len == n && !strncmp(words, word, n))
            return i;
        if (!words[len])
            return -1;
        words += len + 1;
    }
}

static int count_words(const char *words)
{
    int n = 1;
    for (; *words; words++)
        n += *words == '|';
    return n;
}

static bool in_range(const struct km_option *o, double v)
{
    if (o->lo < o->hi)
        return v >= o->lo && v <= o->hi;
    return o->type != KM_INT || o->size != sizeof(int) || (v >= INT_MIN && v <= INT_MAX);
}

static int fail_range(const struct km_option *o, const char *value, struct km_err *err)
{
    bool stated = o->lo < o->hi;
    return km_fail(err, KM_EINVAL, "%s%s is %s; it must be between %.15g and %.15g", dashes(o), o->name, value,
                   stated ? o->lo : INT_MIN, stated ? o->hi : INT_MAX);
}

static int parse_number(const struct km_option *o, const char *text, union value *out, struct km_err *err)
{
    char *end;
    errno = 0;
    double v = strtod(text, &end);
    bool whole = o->type == KM_INT;
    if (end == text || *end || errno || isnan(v) || (whole && (v != floor(v) || fabs(v) > 9e15)))
        return km_fail(err, KM_EINVAL, "%s%s is \"%s\"; it must be a %snumber", dashes(o), o->name, text,
                       whole ? "whole " : "");
    if (!in_range(o, v))
        return fail_range(o, text, err);
    if (whole)
        out->whole = (int64_t)v;
    else
        out->real = v;
    return 0;
}

static int parse_bool(const struct km_option *o, const char *text, union value *out, struct km_err *err)
{
    static const char *const words[][2] = {{"false", "true"}, {"off", "on"}, {"no", "yes"}, {"0", "1"}};
    for (size_t i = 0; i < sizeof words / sizeof *words; i++)
        for (int yes = 0; yes < 2; yes++)
            if (!strcasecmp(text, words[i][yes])) {
                out->whole = yes;
                return 0;
            }
    return km_fail(err, KM_EINVAL, "%s%s is \"%s\"; it must be true or false", dashes(o), o->name, text);
}

static int parse(const struct km_option *o, const char *text, union value *out, struct km_err *err)
{
    int word = o->values ? find_word(o->values, text) : 0;
    if (word < 0)
        return km_fail(err, KM_EINVAL, "%s%s is \"%s\"; it must be one of %s", dashes(o), o->name, text, o->values);
    switch (o->type) {
    case KM_BOOL:
        return parse_bool(o, text, out, err);
    case KM_INT:
    case KM_NUM:
        return parse_number(o, text, out, err);
    case KM_SIZE: {
        int rc = km_parse_size(text, &out->whole, err);
        if (rc)
            return km_context(err, "%s%s", dashes(o), o->name);
        return in_range(o, (double)out->whole) ? 0 : fail_range(o, text, err);
    }
    case KM_CHOICE:
        out->whole = (int64_t)o->lo + word;
        return 0;
    default:
        out->text = text;
        return 0;
    }
}

int km_option_set(const struct km_option *o, void *object, const char *text, struct km_err *err)
{
    union value v = {0};
    int rc = parse(o, text, &v, err);
    if (rc)
        return rc;
    if (o->type == KM_LIST)
        return km_strs_push((struct km_strs *)((char *)object + o->offset), text, err);
    store(o, object, v);
    return 0;
}

/* The default of a row. One that cannot be parsed is a bug in the table, not an error of the user. */
static union value default_of(const struct km_option *o)
{
    union value v = {0};
    int rc = o->fallback ? parse(o, o->fallback, &v, NULL) : 0;
    assert(!rc);
    (void)rc;
    return v;
}

void km_options_default(const struct km_option_group *groups, int n)
{
    for (int g = 0; g < n; g++)
        for (int i = 0; i < groups[g].n; i++) {
            const struct km_option *o = &groups[g].rows[i];
            assert(o->internal == !o->help);
            if (o->type == KM_LIST)
                *(struct km_strs *)((char *)groups[g].object + o->offset) = (struct km_strs){0};
            else
                store(o, groups[g].object, default_of(o));
        }
}

static int check_row(const struct km_option *o, const void *object, struct km_err *err)
{
    union value v = load(o, object), standard = default_of(o);
    char text[32];
    switch (o->type) {
    case KM_INT:
    case KM_SIZE:
        if (v.whole == standard.whole || (in_range(o, (double)v.whole) && (o->type == KM_INT || v.whole >= 0)))
            return 0;
        snprintf(text, sizeof text, "%lld", (long long)v.whole);
        if (o->lo < o->hi)
            return fail_range(o, text, err);
        return km_fail(err, KM_EINVAL, "%s%s is %s bytes; it cannot be negative", dashes(o), o->name, text);
    case KM_NUM:
        if (v.real == standard.real || in_range(o, v.real) || (o->lo >= o->hi && !isnan(v.real)))
            return 0;
        snprintf(text, sizeof text, "%g", v.real);
        return fail_range(o, text, err);
    case KM_STR:
        if (!v.text || !o->values || find_word(o->values, v.text) >= 0)
            return 0;
        return km_fail(err, KM_EINVAL, "%s%s is \"%s\"; it must be one of %s", dashes(o), o->name, v.text, o->values);
    case KM_CHOICE:
        if (v.whole >= (int64_t)o->lo && v.whole < (int64_t)o->lo + count_words(o->values))
            return 0;
        return km_fail(err, KM_EINVAL, "%s%s is %lld, which stands for none of %s", dashes(o), o->name,
                       (long long)v.whole, o->values);
    default:
        return 0;
    }
}

int km_options_check(const struct km_option_group *groups, int n, struct km_err *err)
{
    int rc = 0;
    for (int g = 0; g < n && !rc; g++)
        for (int i = 0; i < groups[g].n && !rc; i++)
            rc = check_row(&groups[g].rows[i], groups[g].object, err);
    return rc;
}

/* Adds the word that stands for the value of a KM_CHOICE. */
static void add_word(cJSON *to, const struct km_option *o, int64_t value)
{
    const char *at = o->values;
    for (int64_t i = (int64_t)o->lo; i < value && strchr(at, '|'); i++)
        at = strchr(at, '|') + 1;
    char *word = km_strndup(at, strcspn(at, "|"));
    if (word)
        cJSON_AddStringToObject(to, o->name, word);
    km_free(word);
}

static void add_list(cJSON *to, const struct km_option *o, const struct km_strs *l)
{
    if (o->secret) {
        cJSON_AddNumberToObject(to, o->name, l->n);
        return;
    }
    cJSON *list = cJSON_AddArrayToObject(to, o->name);
    for (int i = 0; i < l->n; i++)
        cJSON_AddItemToArray(list, cJSON_CreateString(l->v[i]));
}

static void add_json(cJSON *to, const struct km_option *o, const void *object)
{
    union value v = load(o, object);
    switch (o->type) {
    case KM_BOOL:
        cJSON_AddBoolToObject(to, o->name, v.whole != 0);
        break;
    case KM_INT:
    case KM_SIZE:
        cJSON_AddNumberToObject(to, o->name, (double)v.whole);
        break;
    case KM_NUM:
        if (isinf(v.real)) /* JSON has no infinity */
            cJSON_AddStringToObject(to, o->name, "inf");
        else
            cJSON_AddNumberToObject(to, o->name, v.real);
        break;
    case KM_STR:
        if (v.text && !o->secret)
            cJSON_AddStringToObject(to, o->name, v.text);
        break;
    case KM_CHOICE:
        add_word(to, o, v.whole);
        break;
    case KM_LIST:
        add_list(to, o, (const struct km_strs *)((const char *)object + o->offset));
        break;
    }
}

void km_options_json(const struct km_option_group *groups, int n, cJSON *to)
{
    for (int g = 0; g < n; g++)
        for (int i = 0; i < groups[g].n; i++)
            if (!groups[g].rows[i].internal)
                add_json(to, &groups[g].rows[i], groups[g].object);
}

void km_options_free(const struct km_option_group *groups, int n)
{
    for (int g = 0; g < n; g++)
        for (int i = 0; i < groups[g].n; i++)
            if (groups[g].rows[i].type == KM_LIST) {
                struct km_strs *l = (struct km_strs *)((char *)groups[g].object + groups[g].rows[i].offset);
                km_free(l->v);
                *l = (struct km_strs){0};
            }
}

static bool same_name(const char *row, const char *name, size_t len)
{
    size_t i = 0;
    for (; i < len && row[i]; i++)
        if ((row[i] == '_' ? '-' : row[i]) != (name[i] == '_' ? '-' : name[i]))
            return false;
    return i == len && !row[i];
}

const struct km_option *km_option_find(const struct km_option_group *groups, int n, const char *name, size_t len,
                                       void **object)
{
    for (int g = 0; g < n; g++)
        for (int i = 0; i < groups[g].n; i++)
            if (!groups[g].rows[i].internal && same_name(groups[g].rows[i].name, name, len)) {
                *object = groups[g].object;
                return &groups[g].rows[i];
            }
    return NULL;
}

const char *km_option_nearest(const struct km_option_group *groups, int n, const char *name)
{
    int all = 0, count = 0;
    for (int g = 0; g < n; g++)
        all += groups[g].n;
    const char **names = km_calloc((size_t)all + 1, sizeof *names), *near = NULL;
    for (int g = 0; names && g < n; g++)
        for (int i = 0; i < groups[g].n; i++)
            if (!groups[g].rows[i].internal)
                names[count++] = groups[g].rows[i].name;
    if (names)
        near = km_nearest(name, names, count);
    km_free(names);
    return near;
}

/* Levenshtein distance; MAX if a string is longer than MAX. */
static int distance(const char *a, const char *b)
{
    enum { MAX = 48 };
    int la = (int)strlen(a), lb = (int)strlen(b), row[MAX + 1];
    if (la > MAX || lb > MAX)
        return MAX;
    for (int j = 0; j <= lb; j++)
        row[j] = j;
    for (int i = 1; i <= la; i++) {
        int diag = row[0];
        row[0] = i;
        for (int j = 1; j <= lb; j++) {
            int sub = diag + (a[i - 1] != b[j - 1]);
            diag = row[j];
            int best = row[j] + 1 < row[j - 1] + 1 ? row[j] + 1 : row[j - 1] + 1;
            row[j] = sub < best ? sub : best;
        }
    }
    return row[lb];
}

const char *km_nearest(const char *word, const char *const *names, int n)
{
    const char *best = NULL;
    int limit = (int)strlen(word) / 3 + 1, d;
    for (int i = 0; i < n; i++)
        if ((d = distance(word, names[i])) <= limit)
            limit = d - 1, best = names[i];
    return best;
}

int km_parse_size(const char *text, int64_t *out, struct km_err *err)
{
    char *end;
    errno = 0;
    double v = strtod(text, &end);
    while (isspace((unsigned char)*end))
        end++;
    static const char units[] = "BKMGT";
    int power = 0;
    bool good = end != text && !errno && isfinite(v) && v >= 0;
    if (good && *end) {
        const char *u = strchr(units, toupper((unsigned char)*end));
        power = u ? (int)(u - units) : 0;
        good = u && (!end[1] || (power && (!strcasecmp(end + 1, "iB") || !strcasecmp(end + 1, "B"))));
    }
    v = ldexp(v, 10 * power);
    if (!good || v > 9e18)
        return km_fail(err, KM_EINVAL, "\"%s\" is not a size; write for example 24GiB or 512MiB", text);
    *out = (int64_t)v;
    return 0;
}
