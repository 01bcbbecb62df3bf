/* The suite file, checked key by key: what is read here can be planned and shown without further doubts. */
#include "harness/suite/suite.h"

#include "base/file.h"
#include "base/mem.h"

#include <ctype.h>
#include <string.h>

enum { MAX_PAIRS = 1000, MAX_FILE = 64 << 20 };

static const char *const shapes[] = {"configurations", "metrics", "chunks", "backends"};
enum { N_SHAPES = sizeof shapes / sizeof *shapes };

/* Keeps a string as long as the suite lives. */
static const char *own(struct suite *s, char *take)
{
    const char **v = take ? km_reallocarray(s->owned.v, (size_t)s->owned.n + 1, sizeof *v) : NULL;
    if (!v) {
        km_free(take);
        return NULL;
    }
    s->owned.v = v;
    return s->owned.v[s->owned.n++] = take;
}

static int no_memory(struct km_err *err)
{
    return km_fail(err, KM_ENOMEM, "out of memory reading a suite");
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
#define CHECK_KEYS(obj, err, ...)                                                                              \
    check_keys(obj, (const char *const[]){__VA_ARGS__},                                                        \
               sizeof((const char *const[]){__VA_ARGS__}) / sizeof(char *), err)

/* Folder names come from ids: nothing in them may leave the result folder. */
static bool good_id(const char *s)
{
    return *s && *s != '.' && strlen(s) <= 64 &&
           strspn(s, "abcdefghijklmnopqrstuvwxyz0123456789._-") == strlen(s);
}

static const char *slug(struct suite *s, const char *label)
{
    struct km_buf b = {0};
    for (; *label && b.len < 64; label++) {
        if (isalnum((unsigned char)*label) || (*label == '.' && b.len))
            km_buf_putc(&b, (char)tolower((unsigned char)*label));
        else if (b.len && b.data[b.len - 1] != '-')
            km_buf_putc(&b, '-');
    }
    while (b.len && b.data[b.len - 1] == '-')
        b.data[--b.len] = 0;
    if (!b.len)
        km_buf_puts(&b, "x");
    return own(s, km_buf_take(&b));
}

static int read_flags(const cJSON *obj, const char *key, const cJSON **out, struct km_err *err)
{
    int rc = km_json_item(obj, key, false, cJSON_Object, out, err);
    for (const cJSON *f = !rc && *out ? (*out)->child : NULL; f; f = f->next) {
        const char *k = f->string;
        bool scalar = cJSON_IsBool(f) || cJSON_IsNumber(f) || cJSON_IsString(f) || cJSON_IsNull(f);
        if (!*k || strspn(k, "abcdefghijklmnopqrstuvwxyz0123456789-") != strlen(k) || *k == '-')
            return km_fail(
                err, KM_EINVAL,
                "\"%s\" is not a flag; write its name without dashes in front, for example chunk-size", k);
        for (const cJSON *e = cJSON_IsArray(f) ? f->child : NULL; e; e = e->next)
            if (!cJSON_IsString(e))
                return km_fail(err, KM_EINVAL, "flag \"%s\" lists something that is not a string", k);
        if (!scalar && !cJSON_IsArray(f))
            return km_fail(err, KM_EINVAL,
                           "flag \"%s\" must be a string, a number, true, false, null or a list of strings", k);
        if (!strcmp(k, "output"))
            return km_fail(err, KM_EINVAL, "flag \"output\" is the suite's own: each cell gets its folder");
    }
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

/* "rows" or "arms": label, flags and an id each. */
static int read_rows(struct suite *s, const cJSON *obj, const char *key, struct suite_row **out, int *n,
                     struct km_err *err)
{
    const cJSON *list;
    int rc = km_json_item(obj, key, true, cJSON_Array, &list, err), count = rc ? 0 : cJSON_GetArraySize(list);
    if (rc)
        return rc;
    if (!count || count > 256)
        return km_fail(err, KM_EINVAL, "\"%s\" has %d entries; it must have 1 to 256", key, count);
    if (!(*out = km_calloc((size_t)count, sizeof **out)))
        return no_memory(err);
    for (const cJSON *e = list->child; e; e = e->next) {
        struct suite_row *r = &(*out)[*n];
        if (!cJSON_IsObject(e))
            return km_fail(err, KM_EINVAL, "entry %d of \"%s\" must be an object", *n + 1, key);
        rc = CHECK_KEYS(e, err, "id", "label", "flags");
        if (!rc)
            rc = km_json_str(e, "label", true, &r->label, err);
        if (!rc)
            rc = km_json_str(e, "id", false, &r->id, err);
        if (!rc)
            rc = read_flags(e, "flags", &r->flags, err);
        if (rc)
            return km_context(err, "entry %d of \"%s\"", *n + 1, key);
        if (!r->id && !(r->id = slug(s, r->label)))
            return no_memory(err);
        if (!good_id(r->id))
            return km_fail(err, KM_EINVAL,
                           "id \"%s\" cannot name a folder; use a-z, 0-9, dot, dash, underscore", r->id);
        for (int i = 0; i < *n; i++)
            if (!strcmp((*out)[i].id, r->id))
                return km_fail(err, KM_EINVAL,
                               "two entries of \"%s\" have the id \"%s\"; give one another \"id\"", key, r->id);
        ++*n;
    }
    return 0;
}

static int read_col(const cJSON *e, struct suite_column *c, struct km_err *err)
{
    const char *metric = NULL;
    int64_t decimals = -1;
    c->scale = 1;
    if (!cJSON_IsObject(e))
        return km_fail(err, KM_EINVAL, "a column must be an object");
    int rc = CHECK_KEYS(e, err, "title", "metric", "decimals", "scale", "delta", "gain");
    if (!rc)
        rc = km_json_str(e, "metric", true, &metric, err);
    if (!rc && !(c->metric = hz_metric_find(metric, err)))
        rc = KM_EINVAL;
    if (!rc)
        rc = km_json_str(e, "title", false, &c->col.title, err);
    if (!rc)
        rc = km_json_int(e, "decimals", false, 0, 9, &decimals, err);
    if (!rc)
        rc = km_json_num(e, "scale", false, 1e-9, 1e9, &c->scale, err);
    if (!rc)
        rc = km_json_bool(e, "delta", false, &c->col.delta, err);
    if (!rc)
        rc = km_json_bool(e, "gain", false, &c->col.gain, err);
    if (rc)
        return rc;
    c->col.decimals = decimals < 0 ? c->metric->decimals : (int)decimals;
    if (!c->col.title)
        c->col.title = c->col.gain ? "Performance Gain" : c->metric->title;
    return 0;
}

/* The write-up's columns, for tables that name none. */
static const struct {
    enum suite_shape shape;
    const char *metric, *title;
    int decimals;
    double scale;
    bool delta, gain;
} usual[] = {
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
enum { N_USUAL = sizeof usual / sizeof *usual };

static int read_cols(const cJSON *obj, struct suite_table *t, struct km_err *err)
{
    const cJSON *list;
    int rc = km_json_item(obj, "columns", false, cJSON_Array, &list, err), count = N_USUAL;
    if (rc)
        return rc;
    if (list && ((count = cJSON_GetArraySize(list)) < 1 || count > 32))
        return km_fail(err, KM_EINVAL, "\"columns\" has %d entries; it must have 1 to 32", count);
    if (!(t->cols = km_calloc((size_t)count, sizeof *t->cols)))
        return no_memory(err);
    for (const cJSON *e = list ? list->child : NULL; e; e = e->next, t->n_cols++)
        if ((rc = read_col(e, &t->cols[t->n_cols], err)))
            return km_context(err, "column %d", t->n_cols + 1);
    for (int i = 0; !list && i < N_USUAL; i++)
        if (usual[i].shape == t->shape)
            t->cols[t->n_cols++] = (struct suite_column){
                .col = {usual[i].title, usual[i].decimals, usual[i].delta, usual[i].gain},
                .metric = hz_metric_find(usual[i].metric, NULL),
                .scale = usual[i].scale};
    if (t->shape == SUITE_BACKENDS && t->n_cols != 1)
        return km_fail(err, KM_EINVAL,
                       "a table of backends has one column, which its two arms fill; \"columns\" has %d",
                       t->n_cols);
    return 0;
}

/* The row that "baseline" names: by label, id or number from 0; the first unless said, null for none. */
static int read_base(const cJSON *obj, struct suite_table *t, struct km_err *err)
{
    const cJSON *v = cJSON_GetObjectItemCaseSensitive(obj, "baseline");
    t->base = t->shape == SUITE_BACKENDS || cJSON_IsNull(v) ? -1 : 0;
    if (!v || cJSON_IsNull(v) || t->shape == SUITE_BACKENDS)
        return 0;
    for (int i = 0; i < t->n_rows; i++)
        if (cJSON_IsString(v)
                ? !strcmp(v->valuestring, t->rows[i].label) || !strcmp(v->valuestring, t->rows[i].id)
                : cJSON_IsNumber(v) && v->valuedouble == i) {
            t->base = i;
            return 0;
        }
    return km_fail(err, KM_EINVAL,
                   "\"baseline\" names no row of the table; give a row's label, or null for no baseline");
}

static int read_table(struct suite *s, const cJSON *obj, int64_t pairs, struct suite_table *t,
                      struct km_err *err)
{
    static const char *const heads[] = {"Configuration", "Metric", "Chunk Size", "Backend"};
    const char *shape = "configurations", *workload = NULL;
    if (!cJSON_IsObject(obj))
        return km_fail(err, KM_EINVAL, "a table must be an object");
    int rc = CHECK_KEYS(obj, err, "id", "title", "shape", "head", "workload", "flags", "rows", "arms",
                        "baseline", "columns", "pairs", "notes");
    if (!rc)
        rc = km_json_str(obj, "id", true, &t->id, err);
    if (!rc && !good_id(t->id))
        rc = km_fail(err, KM_EINVAL, "id \"%s\" cannot name a folder; use a-z, 0-9, dot, dash, underscore",
                     t->id);
    if (!rc)
        rc = km_json_str(obj, "shape", false, &shape, err);
    int k = 0;
    while (!rc && k < N_SHAPES && strcmp(shape, shapes[k]))
        k++;
    if (!rc && k == N_SHAPES)
        rc = km_fail(err, KM_EINVAL,
                     "\"shape\" is \"%s\"; it must be configurations, metrics, chunks or backends", shape);
    if (rc)
        return rc;
    t->shape = (enum suite_shape)k;
    t->title = t->id;
    t->head = heads[k];
    rc = km_json_str(obj, "title", false, &t->title, err);
    if (!rc)
        rc = km_json_str(obj, "head", false, &t->head, err);
    if (!rc)
        rc = km_json_str(obj, "workload", true, &workload, err);
    if (!rc && !(t->workload = *workload == '/' ? km_strdup(workload) : km_path(s->here, workload)))
        rc = no_memory(err);
    if (!rc)
        rc = read_flags(obj, "flags", &t->flags, err);
    if (!rc)
        rc = read_rows(s, obj, "rows", &t->rows, &t->n_rows, err);
    if (!rc && t->shape == SUITE_BACKENDS)
        rc = read_rows(s, obj, "arms", &t->arms, &t->n_arms, err);
    if (!rc && t->shape == SUITE_BACKENDS && t->n_arms != 2)
        rc = km_fail(err, KM_EINVAL,
                     "\"arms\" has %d entries; it must have 2, such as cache miss and cache hit", t->n_arms);
    if (!rc && t->shape != SUITE_BACKENDS && cJSON_HasObjectItem(obj, "arms"))
        rc = km_fail(err, KM_EINVAL, "\"arms\" belongs to tables of shape backends, not %s", shape);
    if (!rc && !t->arms) {
        t->n_arms = 1;
        if (!(t->arms = km_calloc(1, sizeof *t->arms)))
            rc = no_memory(err);
    }
    if (!rc)
        rc = read_base(obj, t, err);
    if (!rc)
        rc = read_cols(obj, t, err);
    if (!rc)
        rc = km_json_int(obj, "pairs", false, 1, MAX_PAIRS, &pairs, err);
    t->pairs = (int)pairs;
    return rc ? rc : read_notes(obj, &t->notes, &t->n_notes, err);
}

static int read_suite(struct suite *s, struct km_err *err)
{
    const char *schema = NULL, *average = "mean", *profile = "seed";
    const cJSON *list;
    int64_t pairs = 1;
    if (!cJSON_IsObject(s->json))
        return km_fail(err, KM_EFORMAT, "a suite must be a JSON object");
    int rc = km_json_str(s->json, "schema", true, &schema, err);
    if (!rc && strcmp(schema, "kvmark.suite.1"))
        rc = km_fail(err, KM_EFORMAT, "\"schema\" is \"%s\"; this program reads kvmark.suite.1", schema);
    if (!rc) /* the second line: what a result folder's copy adds */
        rc = CHECK_KEYS(s->json, err, "schema", "title", "pairs", "average", "profile", "defaults", "tables",
                        "notes", "provenance", "cells", "failed", "set");
    s->title = "kvmark";
    if (!rc)
        rc = km_json_str(s->json, "title", false, &s->title, err);
    if (!rc)
        rc = km_json_int(s->json, "pairs", false, 1, MAX_PAIRS, &pairs, err);
    if (!rc)
        rc = km_json_str(s->json, "average", false, &average, err);
    if (!rc && strcmp(average, "mean") && strcmp(average, "median"))
        rc = km_fail(err, KM_EINVAL, "\"average\" is \"%s\"; it must be mean or median", average);
    if (!rc)
        rc = km_json_str(s->json, "profile", false, &profile, err);
    if (!rc && strcmp(profile, "seed") && strcmp(profile, "strict"))
        rc = km_fail(err, KM_EINVAL, "\"profile\" is \"%s\"; it must be seed or strict", profile);
    if (!rc)
        rc = read_flags(s->json, "defaults", &s->defaults, err);
    if (!rc)
        rc = read_notes(s->json, &s->notes, &s->n_notes, err);
    if (!rc)
        rc = km_json_item(s->json, "tables", true, cJSON_Array, &list, err);
    int n = rc ? 0 : cJSON_GetArraySize(list);
    if (!rc && (n < 1 || n > 256))
        rc = km_fail(err, KM_EINVAL, "\"tables\" has %d entries; it must have 1 to 256", n);
    if (rc)
        return rc;
    s->median = !strcmp(average, "median");
    s->profile = strcmp(profile, "seed") ? HZ_STRICT : HZ_SEED;
    if (!(s->tables = km_calloc((size_t)n, sizeof *s->tables)))
        return no_memory(err);
    for (const cJSON *e = list->child; e; e = e->next) {
        struct suite_table *t = &s->tables[s->n_tables++];
        if ((rc = read_table(s, e, pairs, t, err)))
            return km_context(err, "table %d (%s)", s->n_tables, t->id ? t->id : "no id");
        for (int i = 0; i < s->n_tables - 1; i++)
            if (!strcmp(s->tables[i].id, t->id))
                return km_fail(err, KM_EINVAL, "two tables have the id \"%s\"", t->id);
    }
    return 0;
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
