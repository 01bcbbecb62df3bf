/* Reads a suite file and checks it key by key. A suite that was read can be planned without further checks of its
 * form. The suite owns everything that is allocated here, so a failed reader simply returns. */
#include "harness/suite/suite.h"

#include "base/file.h"
#include "base/mem.h"

#include <ctype.h>
#include <string.h>

enum { MAX_PAIRS = 1000, MAX_ENTRIES = 256, MAX_COLUMNS = 32, MAX_ID = 64, MAX_FILE = 64 << 20 };

static const struct {
    const char *name, *head;
} shapes[] = {
    [SUITE_CONFIGURATIONS] = {"configurations", "Configuration"},
    [SUITE_METRICS] = {"metrics", "Metric"},
    [SUITE_CHUNKS] = {"chunks", "Chunk Size"},
    [SUITE_BACKENDS] = {"backends", "Backend"},
};
enum { N_SHAPES = sizeof shapes / sizeof *shapes };

static int no_memory(struct km_err *err)
{
    return km_fail(err, KM_ENOMEM, "out of memory reading a suite");
}

/* Adds s, which is from km_malloc, to the strings that the suite owns, and returns it. Frees s and returns NULL if
 * there is no memory. */
static const char *own_string(struct suite *suite, char *s)
{
    const char **v = s ? km_reallocarray(suite->owned.v, (size_t)suite->owned.n + 1, sizeof *v) : NULL;
    if (!v) {
        km_free(s);
        return NULL;
    }
    suite->owned.v = v;
    return suite->owned.v[suite->owned.n++] = s;
}

static int check_keys(const cJSON *obj, const char *const *known, int n, struct km_err *err)
{
    for (const cJSON *k = obj->child; k; k = k->next) {
        bool found = false;
        for (int i = 0; i < n && !found; i++)
            found = !strcmp(known[i], k->string);
        if (found)
            continue;
        const char *near = km_nearest(k->string, known, n);
        return near ? km_fail(err, KM_EINVAL, "unknown key \"%s\"; did you mean \"%s\"?", k->string, near)
                    : km_fail(err, KM_EINVAL, "unknown key \"%s\"", k->string);
    }
    return 0;
}
#define CHECK_KEYS(obj, err, ...)                                                                                      \
    check_keys(obj, (const char *const[]){__VA_ARGS__}, sizeof((const char *const[]){__VA_ARGS__}) / sizeof(char *),   \
               err)

/* Ids become names of folders, so an id must not lead out of the result folder. */
static int check_id(const char *id, struct km_err *err)
{
    size_t n = strlen(id);
    if (n && n <= MAX_ID && *id != '.' && strspn(id, "abcdefghijklmnopqrstuvwxyz0123456789._-") == n)
        return 0;
    return km_fail(err, KM_EINVAL, "id \"%s\" cannot name a folder; use a-z, 0-9, dot, dash and underscore", id);
}

/* Makes the id of a row that has only a label: "With cache (DRAM)" becomes with-cache-dram. */
static const char *make_id(struct suite *s, const char *label)
{
    struct km_buf b = {0};
    for (; *label && b.len < MAX_ID; label++) {
        if (isalnum((unsigned char)*label) || (*label == '.' && b.len))
            km_buf_putc(&b, (char)tolower((unsigned char)*label));
        else if (b.len && b.data[b.len - 1] != '-')
            km_buf_putc(&b, '-');
    }
    while (b.len && b.data[b.len - 1] == '-')
        b.data[--b.len] = 0;
    if (!b.len)
        km_buf_puts(&b, "x");
    return own_string(s, km_buf_take(&b));
}

static int check_option(const cJSON *option, struct km_err *err)
{
    const char *name = option->string;
    bool scalar = cJSON_IsBool(option) || cJSON_IsNumber(option) || cJSON_IsString(option) || cJSON_IsNull(option);
    if (!*name || *name == '-' || strspn(name, "abcdefghijklmnopqrstuvwxyz0123456789-") != strlen(name))
        return km_fail(err, KM_EINVAL,
                       "\"%s\" is not an option; write its name without leading dashes, for example chunk-size", name);
    for (const cJSON *e = cJSON_IsArray(option) ? option->child : NULL; e; e = e->next)
        if (!cJSON_IsString(e))
            return km_fail(err, KM_EINVAL, "option \"%s\" lists %s; a list may hold only strings", name,
                           km_json_kind(e));
    if (!scalar && !cJSON_IsArray(option))
        return km_fail(err, KM_EINVAL,
                       "option \"%s\" is %s; it must be a string, a number, true, false, null or a list of strings",
                       name, km_json_kind(option));
    if (!strcmp(name, "output"))
        return km_fail(err, KM_EINVAL, "option \"output\" is set by the suite: each cell has a run folder of its own");
    return 0;
}

/* Reads the object `key` of obj, which holds options of `kvmark run`. */
static int read_options(const cJSON *obj, const char *key, const cJSON **out, struct km_err *err)
{
    int rc = km_json_item(obj, key, false, cJSON_Object, out, err);
    for (const cJSON *e = !rc && *out ? (*out)->child : NULL; e && !rc; e = e->next)
        rc = check_option(e, err);
    return rc;
}

static int read_notes(const cJSON *obj, const char ***out, int *n, struct km_err *err)
{
    const cJSON *v = cJSON_GetObjectItemCaseSensitive(obj, "notes");
    if (!v || cJSON_IsNull(v))
        return 0;
    int count = cJSON_IsArray(v) ? cJSON_GetArraySize(v) : 1;
    *out = km_calloc((size_t)count + 1, sizeof **out);
    if (!*out)
        return no_memory(err);
    for (const cJSON *e = cJSON_IsArray(v) ? v->child : v; e && *n < count; e = e->next) {
        if (!cJSON_IsString(e))
            return km_fail(err, KM_EINVAL, "\"notes\" must be a string or a list of strings");
        (*out)[(*n)++] = e->valuestring;
    }
    return 0;
}

static int read_row(struct suite *s, const cJSON *obj, struct suite_row *row, struct km_err *err)
{
    int rc;
    if (!cJSON_IsObject(obj))
        return km_fail(err, KM_EINVAL, "it is %s; it must be an object", km_json_kind(obj));
    if ((rc = CHECK_KEYS(obj, err, "id", "label", "flags")) ||
        (rc = km_json_str(obj, "label", true, &row->label, err)) ||
        (rc = km_json_str(obj, "id", false, &row->id, err)) || (rc = read_options(obj, "flags", &row->options, err)))
        return rc;
    if (!row->id && !(row->id = make_id(s, row->label)))
        return no_memory(err);
    return check_id(row->id, err);
}

/* Reads the list `key` ("rows" or "arms") of a table. */
static int read_rows(struct suite *s, const cJSON *obj, const char *key, struct suite_row **out, int *n,
                     struct km_err *err)
{
    const cJSON *list;
    int rc = km_json_item(obj, key, true, cJSON_Array, &list, err), count = rc ? 0 : cJSON_GetArraySize(list);
    if (rc)
        return rc;
    if (!count || count > MAX_ENTRIES)
        return km_fail(err, KM_EINVAL, "\"%s\" has %d entries; it must have 1 to %d", key, count, MAX_ENTRIES);
    if (!(*out = km_calloc((size_t)count, sizeof **out)))
        return no_memory(err);
    for (const cJSON *e = list->child; e; e = e->next, ++*n) {
        struct suite_row *row = &(*out)[*n];
        if ((rc = read_row(s, e, row, err))) {
            km_context(err, "entry %d of \"%s\"", *n + 1, key);
            return rc;
        }
        for (int i = 0; i < *n; i++)
            if (!strcmp((*out)[i].id, row->id))
                return km_fail(err, KM_EINVAL, "two entries of \"%s\" have the id \"%s\"; give one another \"id\"", key,
                               row->id);
    }
    return 0;
}

static int read_column(const cJSON *obj, struct suite_column *c, struct km_err *err)
{
    const char *metric = NULL;
    int64_t decimals = -1;
    int rc;
    c->scale = 1;
    if (!cJSON_IsObject(obj))
        return km_fail(err, KM_EINVAL, "it is %s; it must be an object", km_json_kind(obj));
    if ((rc = CHECK_KEYS(obj, err, "title", "metric", "decimals", "scale", "delta", "gain")) ||
        (rc = km_json_str(obj, "metric", true, &metric, err)))
        return rc;
    if (!(c->metric = hz_metric_find(metric, err)))
        return KM_EINVAL;
    if ((rc = km_json_str(obj, "title", false, &c->title, err)) ||
        (rc = km_json_int(obj, "decimals", false, 0, 9, &decimals, err)) ||
        (rc = km_json_num(obj, "scale", false, 1e-9, 1e9, &c->scale, err)) ||
        (rc = km_json_bool(obj, "delta", false, &c->delta, err)) ||
        (rc = km_json_bool(obj, "gain", false, &c->gain, err)))
        return rc;
    c->decimals = decimals < 0 ? c->metric->decimals : (int)decimals;
    if (!c->title)
        c->title = c->gain ? "Performance Gain" : c->metric->title;
    return 0;
}

/* The columns of a table without "columns": those of the write-up's table of the same shape. */
static const struct {
    enum suite_shape shape;
    const char *metric, *title;
    int decimals;
    double scale;
    bool delta, gain;
} default_columns[] = {
    {SUITE_CONFIGURATIONS, "input_tps", "Input TPS", 2, 1, true, false},
    {SUITE_CONFIGURATIONS, "total_tps", "Total TPS", 2, 1, false, false},
    {SUITE_CONFIGURATIONS, "ttft_ms.mean", "Mean TTFT (ms)", 2, 1, true, false},
    {SUITE_CONFIGURATIONS, "tpot_ms.mean", "Mean TPOT (ms)", 2, 1, true, false},
    {SUITE_METRICS, "output_tps", "Output TPS", 2, 1, true, false},
    {SUITE_METRICS, "total_tps", "Total TPS", 2, 1, true, false},
    {SUITE_METRICS, "ttft_ms.mean", "Mean TTFT (ms)", 2, 1, true, false},
    {SUITE_METRICS, "tpot_ms.mean", "Mean TPOT (ms)", 2, 1, true, false},
    {SUITE_CHUNKS, "input_tps", "Input TPS", 1, 1, false, false},
    {SUITE_CHUNKS, "input_tps", "Performance Gain", 1, 1, false, true},
    {SUITE_CHUNKS, "ttft_ms.mean", "Mean TTFT (ms)", 2, 1, false, false},
    {SUITE_BACKENDS, "ttft_ms.mean", "TTFT (s)", 3, 0.001, false, false},
};
enum { N_DEFAULT_COLUMNS = sizeof default_columns / sizeof *default_columns };

static void use_default_columns(struct suite_table *t)
{
    for (int i = 0; i < N_DEFAULT_COLUMNS; i++)
        if (default_columns[i].shape == t->shape)
            t->cols[t->n_cols++] = (struct suite_column){.title = default_columns[i].title,
                                                         .decimals = default_columns[i].decimals,
                                                         .delta = default_columns[i].delta,
                                                         .gain = default_columns[i].gain,
                                                         .metric = hz_metric_find(default_columns[i].metric, NULL),
                                                         .scale = default_columns[i].scale};
}

static int read_columns(const cJSON *obj, struct suite_table *t, struct km_err *err)
{
    const cJSON *list;
    int rc = km_json_item(obj, "columns", false, cJSON_Array, &list, err), count = N_DEFAULT_COLUMNS;
    if (rc)
        return rc;
    if (list && ((count = cJSON_GetArraySize(list)) < 1 || count > MAX_COLUMNS))
        return km_fail(err, KM_EINVAL, "\"columns\" has %d entries; it must have 1 to %d", count, MAX_COLUMNS);
    if (!(t->cols = km_calloc((size_t)count, sizeof *t->cols)))
        return no_memory(err);
    for (const cJSON *e = list ? list->child : NULL; e; e = e->next, t->n_cols++)
        if ((rc = read_column(e, &t->cols[t->n_cols], err))) {
            km_context(err, "column %d", t->n_cols + 1);
            return rc;
        }
    if (!list)
        use_default_columns(t);
    if (t->shape == SUITE_BACKENDS && t->n_cols != 1)
        return km_fail(err, KM_EINVAL, "\"columns\" has %d entries; a table of shape backends shows one figure per arm",
                       t->n_cols);
    return 0;
}

/* Finds the baseline row by its label, its id or its number from 0. Without "baseline" it is row 0; null means none. */
static int read_baseline(const cJSON *obj, struct suite_table *t, struct km_err *err)
{
    const cJSON *v = cJSON_GetObjectItemCaseSensitive(obj, "baseline");
    t->base = t->shape == SUITE_BACKENDS || cJSON_IsNull(v) ? -1 : 0;
    if (!v || cJSON_IsNull(v) || t->shape == SUITE_BACKENDS)
        return 0;
    for (int i = 0; i < t->n_rows; i++) {
        bool match = cJSON_IsString(v)
                         ? !strcmp(v->valuestring, t->rows[i].label) || !strcmp(v->valuestring, t->rows[i].id)
                         : cJSON_IsNumber(v) && v->valuedouble == i;
        if (match) {
            t->base = i;
            return 0;
        }
    }
    return km_fail(err, KM_EINVAL,
                   "\"baseline\" names no row of the table; give the label of a row, or null for no baseline");
}

static int read_shape(const cJSON *obj, struct suite_table *t, struct km_err *err)
{
    const char *name = shapes[SUITE_CONFIGURATIONS].name;
    int rc = km_json_str(obj, "shape", false, &name, err), k = 0;
    if (rc)
        return rc;
    while (k < N_SHAPES && strcmp(name, shapes[k].name))
        k++;
    if (k == N_SHAPES)
        return km_fail(err, KM_EINVAL, "\"shape\" is \"%s\"; it must be configurations, metrics, chunks or backends",
                       name);
    t->shape = (enum suite_shape)k;
    t->head = shapes[k].head;
    return 0;
}

/* Reads the two arms of a table of backends. Tables of other shapes get one arm without label and options. */
static int read_arms(struct suite *s, const cJSON *obj, struct suite_table *t, struct km_err *err)
{
    if (t->shape != SUITE_BACKENDS) {
        if (cJSON_HasObjectItem(obj, "arms"))
            return km_fail(err, KM_EINVAL, "\"arms\" is only for tables of shape backends; this one has shape %s",
                           shapes[t->shape].name);
        t->n_arms = 1;
        return (t->arms = km_calloc(1, sizeof *t->arms)) ? 0 : no_memory(err);
    }
    int rc = read_rows(s, obj, "arms", &t->arms, &t->n_arms, err);
    if (!rc && t->n_arms != 2)
        rc = km_fail(err, KM_EINVAL, "\"arms\" has %d entries; it must have 2, such as cache miss and cache hit",
                     t->n_arms);
    return rc;
}

static int read_table(struct suite *s, const cJSON *obj, int64_t pairs, struct suite_table *t, struct km_err *err)
{
    const char *workload = NULL;
    int rc;
    if (!cJSON_IsObject(obj))
        return km_fail(err, KM_EINVAL, "it is %s; it must be an object", km_json_kind(obj));
    if ((rc = CHECK_KEYS(obj, err, "id", "title", "shape", "head", "workload", "flags", "rows", "arms", "baseline",
                         "columns", "pairs", "notes")) ||
        (rc = km_json_str(obj, "id", true, &t->id, err)) || (rc = check_id(t->id, err)) ||
        (rc = read_shape(obj, t, err)))
        return rc;
    t->title = t->id;
    if ((rc = km_json_str(obj, "title", false, &t->title, err)) ||
        (rc = km_json_str(obj, "head", false, &t->head, err)) ||
        (rc = km_json_str(obj, "workload", true, &workload, err)))
        return rc;
    if (!(t->workload = *workload == '/' ? km_strdup(workload) : km_path(s->here, workload)))
        return no_memory(err);
    if ((rc = read_options(obj, "flags", &t->options, err)) ||
        (rc = read_rows(s, obj, "rows", &t->rows, &t->n_rows, err)) || (rc = read_arms(s, obj, t, err)) ||
        (rc = read_baseline(obj, t, err)) || (rc = read_columns(obj, t, err)) ||
        (rc = km_json_int(obj, "pairs", false, 1, MAX_PAIRS, &pairs, err)))
        return rc;
    t->pairs = (int)pairs;
    return read_notes(obj, &t->notes, &t->n_notes, err);
}

/* Reads the tables. pairs: the suite's number of repeats, which a table may replace. */
static int read_tables(struct suite *s, int64_t pairs, struct km_err *err)
{
    const cJSON *list;
    int rc = km_json_item(s->json, "tables", true, cJSON_Array, &list, err), n = rc ? 0 : cJSON_GetArraySize(list);
    if (rc)
        return rc;
    if (n < 1 || n > MAX_ENTRIES)
        return km_fail(err, KM_EINVAL, "\"tables\" has %d entries; it must have 1 to %d", n, MAX_ENTRIES);
    if (!(s->tables = km_calloc((size_t)n, sizeof *s->tables)))
        return no_memory(err);
    for (const cJSON *e = list->child; e; e = e->next) {
        struct suite_table *t = &s->tables[s->n_tables++];
        if ((rc = read_table(s, e, pairs, t, err))) {
            km_context(err, "table %d (%s)", s->n_tables, t->id ? t->id : "no id");
            return rc;
        }
        for (int i = 0; i < s->n_tables - 1; i++)
            if (!strcmp(s->tables[i].id, t->id))
                return km_fail(err, KM_EINVAL, "two tables have the id \"%s\"", t->id);
    }
    return 0;
}

static int read_suite(struct suite *s, struct km_err *err)
{
    const char *schema = NULL, *average = "mean", *profile = "seed";
    int64_t pairs = 1;
    int rc;
    s->title = "kvmark";
    if (!cJSON_IsObject(s->json))
        return km_fail(err, KM_EFORMAT, "a suite must be a JSON object, not %s", km_json_kind(s->json));
    if ((rc = km_json_str(s->json, "schema", true, &schema, err)))
        return rc;
    if (strcmp(schema, "kvmark.suite.1"))
        return km_fail(err, KM_EFORMAT, "\"schema\" is \"%s\"; this program reads kvmark.suite.1", schema);
    /* Only the copy in a result folder has the last four keys. */
    if ((rc = CHECK_KEYS(s->json, err, "schema", "title", "pairs", "average", "profile", "defaults", "tables", "notes",
                         "provenance", "cells", "failed", "set")) ||
        (rc = km_json_str(s->json, "title", false, &s->title, err)) ||
        (rc = km_json_int(s->json, "pairs", false, 1, MAX_PAIRS, &pairs, err)) ||
        (rc = km_json_str(s->json, "average", false, &average, err)) ||
        (rc = km_json_str(s->json, "profile", false, &profile, err)))
        return rc;
    if (strcmp(average, "mean") && strcmp(average, "median"))
        return km_fail(err, KM_EINVAL, "\"average\" is \"%s\"; it must be mean or median", average);
    if (strcmp(profile, "seed") && strcmp(profile, "strict"))
        return km_fail(err, KM_EINVAL, "\"profile\" is \"%s\"; it must be seed or strict", profile);
    s->median = !strcmp(average, "median");
    s->profile = strcmp(profile, "seed") ? HZ_STRICT : HZ_SEED;
    if ((rc = read_options(s->json, "defaults", &s->defaults, err)) ||
        (rc = read_notes(s->json, &s->notes, &s->n_notes, err)))
        return rc;
    return read_tables(s, pairs, err);
}

int suite_from_json(struct suite **out, cJSON *json, const char *here, struct km_err *err)
{
    struct suite *s = km_calloc(1, sizeof *s);
    if (!s) {
        cJSON_Delete(json);
        return no_memory(err);
    }
    s->json = json;
    s->here = km_strdup(here);
    int rc = s->here ? read_suite(s, err) : no_memory(err);
    if (rc)
        suite_free(s);
    else
        *out = s;
    return rc;
}

int suite_read(struct suite **out, const char *path, struct km_err *err)
{
    cJSON *json = NULL;
    int rc = km_json_file(path, MAX_FILE, &json, err);
    if (rc)
        return rc;
    const char *slash = strrchr(path, '/');
    char *here = slash ? km_strndup(path, slash == path ? 1 : (size_t)(slash - path)) : km_strdup(".");
    if (!here) {
        cJSON_Delete(json);
        return no_memory(err);
    }
    if ((rc = suite_from_json(out, json, here, err)))
        km_context(err, "%s", path);
    km_free(here);
    return rc;
}

void suite_free(struct suite *s)
{
    if (!s)
        return;
    for (int i = 0; s->tables && i < s->n_tables; i++) {
        struct suite_table *t = &s->tables[i];
        km_free(t->workload);
        km_free(t->rows);
        km_free(t->arms);
        km_free(t->cols);
        km_free(t->notes);
    }
    for (int i = 0; i < s->owned.n; i++)
        km_free((void *)(uintptr_t)s->owned.v[i]);
    km_free(s->owned.v);
    km_free(s->tables);
    km_free(s->notes);
    km_free(s->here);
    cJSON_Delete(s->json);
    km_free(s);
}
