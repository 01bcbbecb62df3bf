/* Reads a result folder and calls the writers. A folder with one run is read as a suite of one table with one
 * row. */
#include "harness/report/report_data.h"

#include "base/file.h"
#include "base/mem.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

const struct hz_run *report_run_at(const struct report *r, const struct report_table *t, int row, int arm, int rep)
{
    int i = rep < t->reps ? t->slot[(row * t->t->n_arms + arm) * t->reps + rep] : -1;
    return i >= 0 && r->runs[i].there ? &r->runs[i].run : NULL;
}

double report_value(const struct report *r, const struct hz_run *run, const struct hz_metric *m)
{
    return run ? hz_metric_value(m, r->suite->profile == HZ_SEED ? &run->seed : &run->strict) : NAN;
}

const char *report_run_text(const struct hz_run *run, const char *section, const char *key)
{
    const cJSON *v = cJSON_GetObjectItemCaseSensitive(cJSON_GetObjectItemCaseSensitive(run->json, section),
                                                      key);
    return cJSON_IsString(v) ? v->valuestring : "";
}

bool report_run_flag(const struct hz_run *run, const char *section, const char *key)
{
    return cJSON_IsTrue(
        cJSON_GetObjectItemCaseSensitive(cJSON_GetObjectItemCaseSensitive(run->json, section), key));
}

void report_put_label(struct km_buf *out, const struct suite_table *t, int row, int arm)
{
    km_buf_puts(out, t->rows[row].label);
    if (t->arms[arm].label)
        km_buf_printf(out, ", %s", t->arms[arm].label);
}

static int no_memory(struct km_err *err)
{
    return km_fail(err, KM_ENOMEM, "out of memory making a report");
}

/* The suite that a single run is: no baseline, nothing to compare. */
static int suite_of_run(struct report *r, const char *path, struct km_err *err)
{
    cJSON *run = NULL, *s;
    int rc = km_json_file(path, 64 << 20, &run, err);
    if (rc)
        return rc;
    const char *name = NULL, *model = NULL, *kv = NULL;
    (void)km_json_str(cJSON_GetObjectItemCaseSensitive(run, "workload"), "name", false, &name, NULL);
    (void)km_json_str(cJSON_GetObjectItemCaseSensitive(run, "target"), "model", false, &model, NULL);
    (void)km_json_str(cJSON_GetObjectItemCaseSensitive(run, "target"), "kv", false, &kv, NULL);
    struct km_buf label = {0};
    km_buf_printf(&label, "%s%s%s", model && *model ? model : "run", kv && *kv ? ", KV cache layer: " : "",
                  kv ? kv : "");
    s = cJSON_CreateObject();
    cJSON_AddStringToObject(s, "schema", "kvmark.suite.1");
    cJSON_AddStringToObject(s, "title", name && *name ? name : "One run");
    cJSON *t = cJSON_CreateObject(), *row = cJSON_CreateObject(), *cell = cJSON_CreateObject();
    cJSON_AddItemToArray(cJSON_AddArrayToObject(s, "tables"), t);
    cJSON_AddStringToObject(t, "id", "run");
    cJSON_AddStringToObject(t, "title", name && *name ? name : "One run");
    cJSON_AddStringToObject(t, "workload", "-");
    cJSON_AddNullToObject(t, "baseline");
    cJSON_AddItemToArray(cJSON_AddArrayToObject(t, "rows"), row);
    cJSON_AddStringToObject(row, "id", "run");
    cJSON_AddStringToObject(row, "label", km_buf_str(&label));
    cJSON_AddItemToArray(cJSON_AddArrayToObject(s, "cells"), cell);
    cJSON_AddStringToObject(cell, "table", "run");
    cJSON_AddStringToObject(cell, "row", "run");
    cJSON_AddStringToObject(cell, "arm", "");
    cJSON_AddNumberToObject(cell, "repeat", 1);
    cJSON_AddStringToObject(cell, "dir", ".");
    km_buf_free(&label);
    cJSON_Delete(run);
    return suite_from_json(&r->suite, s, r->dir, err);
}

/* One entry of "cells". */
struct place {
    int table, row, arm, rep;
    const char *dir;
};

static int find_id(const struct suite_row *rows, int n, const char *id)
{
    for (int i = 0; i < n; i++)
        if (!strcmp(rows[i].id ? rows[i].id : "", id))
            return i;
    return -1;
}

/* Places whose table or row the suite no longer has are left out (*known says); a folder outside is refused. */
static int read_place(const struct report *r, const cJSON *cell, struct place *p, bool *known, struct km_err *err)
{
    const char *table = NULL, *row = NULL, *arm = "", *dir = NULL;
    int64_t repeat = 0;
    int rc = km_json_str(cell, "table", true, &table, err);
    if (!rc)
        rc = km_json_str(cell, "row", true, &row, err);
    if (!rc)
        rc = km_json_str(cell, "arm", false, &arm, err);
    if (!rc)
        rc = km_json_str(cell, "dir", true, &dir, err);
    if (!rc)
        rc = km_json_int(cell, "repeat", true, 1, 1000, &repeat, err);
    if (!rc && (dir[0] == '/' || strstr(dir, "..")))
        rc = km_fail(err, KM_EFORMAT, "a cell's \"dir\" is \"%s\"; it must lie inside the result folder", dir);
    *known = false;
    if (rc)
        return km_context(err, "%s/suite.json", r->dir);
    *p = (struct place){.table = -1, .rep = (int)repeat - 1, .dir = dir};
    for (int i = 0; i < r->suite->n_tables; i++)
        if (!strcmp(r->suite->tables[i].id, table))
            p->table = i;
    if (p->table < 0)
        return 0;
    const struct suite_table *t = &r->suite->tables[p->table];
    p->row = find_id(t->rows, t->n_rows, row);
    p->arm = find_id(t->arms, t->n_arms, arm);
    *known = p->row >= 0 && p->arm >= 0;
    return 0;
}

static int run_index(struct report *r, const char *dir)
{
    int i = 0;
    while (i < r->n_runs && strcmp(r->runs[i].dir, dir))
        i++;
    if (i == r->n_runs)
        r->runs[r->n_runs++] = (struct report_run){.dir = dir};
    return i;
}

/* Why a cell has no run: what the suite noted when it failed. */
static const char *why_missing(const struct report *r, const char *dir)
{
    const cJSON *failed = cJSON_GetObjectItemCaseSensitive(r->suite->json, "failed");
    const char *cell = strncmp(dir, "cells/", 6) ? dir : dir + 6, *name, *message;
    for (const cJSON *f = cJSON_IsArray(failed) ? failed->child : NULL; f; f = f->next) {
        name = message = "";
        if (!km_json_str(f, "cell", true, &name, NULL) && !strcmp(name, cell) &&
            !km_json_str(f, "message", true, &message, NULL))
            return message;
    }
    return "not run";
}

static void read_run(const struct report *r, struct report_run *run)
{
    char *path = !strcmp(run->dir, ".") ? km_strdup(r->dir) : km_path(r->dir, run->dir);
    char *file = path ? km_path(path, "run.json") : NULL;
    struct km_err why = {0};
    if (file && !km_file_exists(file))
        snprintf(run->why, sizeof run->why, "%.199s", why_missing(r, run->dir));
    else if (!file || hz_run_read(&run->run, path, &why))
        snprintf(run->why, sizeof run->why, "%.199s", file ? why.msg : "out of memory");
    else
        run->there = true;
    km_free(file);
    km_free(path);
}

static int sort_runs(struct report *r, struct km_err *err)
{
    const cJSON *cells = cJSON_GetObjectItemCaseSensitive(r->suite->json, "cells");
    int n = cJSON_IsArray(cells) ? cJSON_GetArraySize(cells) : 0, m = 0, rc = 0;
    struct place *places = km_calloc((size_t)n + 1, sizeof *places);
    r->runs = km_calloc((size_t)n + 1, sizeof *r->runs);
    r->tables = km_calloc((size_t)r->suite->n_tables, sizeof *r->tables);
    if (!places || !r->runs || !r->tables)
        rc = no_memory(err);
    for (const cJSON *c = n ? cells->child : NULL; c && !rc; c = c->next) {
        bool known;
        rc = read_place(r, c, &places[m], &known, err);
        m += !rc && known;
    }
    for (int i = 0; i < m && !rc; i++) {
        struct report_table *t = &r->tables[places[i].table];
        t->reps = places[i].rep + 1 > t->reps ? places[i].rep + 1 : t->reps;
    }
    for (int i = 0; i < r->suite->n_tables && !rc; i++) {
        struct report_table *t = &r->tables[i];
        t->t = &r->suite->tables[i];
        size_t slots = (size_t)t->t->n_rows * (size_t)t->t->n_arms * (size_t)t->reps;
        if (!(t->slot = km_calloc(slots + 1, sizeof *t->slot)))
            rc = no_memory(err);
        for (size_t k = 0; k < slots && !rc; k++)
            t->slot[k] = -1;
    }
    for (int i = 0; i < m && !rc; i++) {
        const struct place *p = &places[i];
        struct report_table *t = &r->tables[p->table];
        t->slot[(p->row * t->t->n_arms + p->arm) * t->reps + p->rep] = run_index(r, p->dir);
    }
    km_free(places);
    for (int i = 0; i < r->n_runs && !rc; i++)
        read_run(r, &r->runs[i]);
    return rc;
}

int report_data_load(struct report *r, const char *dir, struct km_err *err)
{
    *r = (struct report){.dir = dir};
    char *suite = km_path(dir, "suite.json"), *run = km_path(dir, "run.json");
    int rc = !suite || !run          ? no_memory(err)
             : km_file_exists(suite) ? suite_read(&r->suite, suite, err)
             : km_file_exists(run)   ? suite_of_run(r, run, err)
                                     : km_fail(err, KM_ENOENT,
                                               "%s holds neither suite.json nor run.json; give the folder of a "
                                                 "bench or of a run",
                                               dir);
    km_free(suite);
    km_free(run);
    return rc ? rc : sort_runs(r, err);
}

void report_data_free(struct report *r)
{
    for (int i = 0; i < r->n_runs; i++)
        if (r->runs[i].there)
            hz_run_free(&r->runs[i].run);
    for (int i = 0; r->tables && i < r->suite->n_tables; i++) {
        struct report_table *t = &r->tables[i];
        for (int k = 0; k < t->n_contrasts; k++)
            compare_result_free(&t->contrasts[k].cmp);
        for (int k = 0; k < t->n_plots; k++) {
            km_free(t->plots[k].name);
            km_free(t->plots[k].caption);
        }
        table_grid_free(&t->grid);
        table_grid_free(&t->evidence);
        table_grid_free(&t->tokens);
        km_buf_free(&t->notes);
        km_buf_free(&t->headline);
        km_free(t->contrasts);
        km_free(t->plots);
        km_free(t->slot);
    }
    km_free(r->runs);
    km_free(r->tables);
    suite_free(r->suite);
    *r = (struct report){0};
}

/* "text" as list items. */
static void put_lines(struct km_buf *out, const char *text)
{
    while (*text) {
        size_t n = strcspn(text, "\n");
        km_buf_puts(out, "- ");
        km_buf_put(out, text, n);
        km_buf_puts(out, "\n");
        text += n + (text[n] == '\n');
    }
}

static int write_md(const struct report *r, struct km_err *err)
{
    struct km_buf b = {0};
    km_buf_printf(&b, "# %s\n", r->suite->title);
    for (int i = 0; i < r->suite->n_notes; i++)
        km_buf_printf(&b, "\n%s\n", r->suite->notes[i]);
    for (int i = 0; i < r->suite->n_tables; i++) {
        const struct report_table *t = &r->tables[i];
        if (!t->reps)
            continue;
        km_buf_printf(&b, "\n## %s\n\n", t->t->title);
        table_grid_md(&t->grid, &b);
        if (t->headline.len)
            km_buf_printf(&b, "\n%s\n", t->headline.data);
        km_buf_puts(&b, "\n");
        put_lines(&b, km_buf_str(&t->notes));
        if (t->evidence.n_rows > 1) {
            km_buf_puts(&b, "\nEvidence\n\n");
            table_grid_md(&t->evidence, &b);
        }
        km_buf_puts(&b, "\nTokens, per run\n\n");
        table_grid_md(&t->tokens, &b);
    }
    char *path = km_path(r->dir, "tables.md");
    int rc = km_buf_ok(&b) && path ? km_file_write(path, b.data, b.len, err) : no_memory(err);
    km_free(path);
    km_buf_free(&b);
    return rc;
}

int report_write(const char *dir, struct report_result *res, struct km_err *err)
{
    struct report r;
    *res = (struct report_result){0};
    int rc = report_data_load(&r, dir, err);
    for (int i = 0; !rc && i < r.n_runs; i++) {
        res->runs += r.runs[i].there;
        res->missing += !r.runs[i].there;
    }
    if (!rc && !res->runs)
        rc = km_fail(err, KM_ENOENT, "%s holds no finished run yet%s%s", dir,
                     r.n_runs ? "; the first one: " : "", r.n_runs ? r.runs[0].why : "");
    if (!rc)
        rc = report_make_tables(&r, err);
    if (!rc)
        rc = write_md(&r, err);
    if (!rc)
        rc = report_make_plots(&r, err);
    if (!rc)
        rc = report_write_html(&r, err);
    for (int i = 0; !rc && i < r.suite->n_tables && !*res->headline; i++)
        snprintf(res->headline, sizeof res->headline, "%s", km_buf_str(&r.tables[i].headline));
    res->no_gnuplot = r.no_gnuplot;
    report_data_free(&r);
    return rc;
}
