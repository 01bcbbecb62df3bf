/* Reads a result folder: its suite, its runs, and which run belongs to which place of which table. */
#include "harness/report/report_data.h"

#include "base/file.h"
#include "base/mem.h"

#include <math.h>
#include <stdio.h>
#include <string.h>

enum { MAX_REPEATS = 1000, MAX_FILE = 64 << 20 };

const struct run_folder *report_run_at(const struct report *r, const struct report_table *t, int row, int arm, int rep)
{
    int i = rep < t->reps ? t->slot[(row * t->spec->n_arms + arm) * t->reps + rep] : -1;
    return i >= 0 && r->runs[i].loaded ? &r->runs[i].run : NULL;
}

double report_value(const struct report *r, const struct run_folder *run, const struct hz_metric *m)
{
    return run ? hz_metric_value(m, r->suite->profile == HZ_SEED ? &run->seed : &run->strict) : NAN;
}

static const cJSON *item_of(const struct run_folder *run, const char *section, const char *key)
{
    return cJSON_GetObjectItemCaseSensitive(cJSON_GetObjectItemCaseSensitive(run->json, section), key);
}

const char *report_run_text(const struct run_folder *run, const char *section, const char *key)
{
    const cJSON *v = item_of(run, section, key);
    return cJSON_IsString(v) ? v->valuestring : "";
}

double report_run_number(const struct run_folder *run, const char *section, const char *key)
{
    const cJSON *v = item_of(run, section, key);
    return cJSON_IsNumber(v) ? v->valuedouble : 0;
}

bool report_run_flag(const struct run_folder *run, const char *section, const char *key)
{
    return cJSON_IsTrue(item_of(run, section, key));
}

void report_put_label(struct km_buf *out, const struct suite_table *t, int row, int arm)
{
    km_buf_puts(out, t->rows[row].label);
    if (t->arms[arm].label)
        km_buf_printf(out, ", %s", t->arms[arm].label);
}

int report_no_memory(struct km_err *err)
{
    return km_fail(err, KM_ENOMEM, "out of memory making a report");
}

/* Makes a suite of one table with one row and no baseline, for the folder of a single run. */
static int suite_of_run(struct report *r, const char *path, struct km_err *err)
{
    cJSON *run = NULL;
    int rc = km_json_file(path, MAX_FILE, &run, err);
    if (rc)
        return rc;
    const cJSON *target = cJSON_GetObjectItemCaseSensitive(run, "target");
    const char *title = "", *model = "", *kv = "";
    struct km_buf label = {0};
    (void)km_json_str(cJSON_GetObjectItemCaseSensitive(run, "workload"), "name", false, &title, NULL);
    (void)km_json_str(target, "model", false, &model, NULL);
    (void)km_json_str(target, "kv", false, &kv, NULL);
    title = *title ? title : "One run";
    km_buf_printf(&label, "%s%s%s", *model ? model : "run", *kv ? ", KV cache layer: " : "", kv);

    cJSON *s = cJSON_CreateObject(), *t = cJSON_CreateObject(), *row = cJSON_CreateObject(),
          *cell = cJSON_CreateObject();
    cJSON_AddStringToObject(s, "schema", "kvmark.suite.1");
    cJSON_AddStringToObject(s, "title", title);
    cJSON_AddItemToArray(cJSON_AddArrayToObject(s, "tables"), t);
    cJSON_AddStringToObject(t, "id", "run");
    cJSON_AddStringToObject(t, "title", title);
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

/* One entry of the list "cells" in suite.json: a place, and the run folder that fills it. */
struct cell_entry {
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

/* *known is false for an entry whose table, row or arm the suite does not have. */
static int read_entry(const struct report *r, const cJSON *cell, struct cell_entry *e, bool *known, struct km_err *err)
{
    const char *table = NULL, *row = NULL, *arm = "", *dir = NULL;
    int64_t repeat = 0;
    int rc;
    *known = false;
    if ((rc = km_json_str(cell, "table", true, &table, err)) || (rc = km_json_str(cell, "row", true, &row, err)) ||
        (rc = km_json_str(cell, "arm", false, &arm, err)) || (rc = km_json_str(cell, "dir", true, &dir, err)) ||
        (rc = km_json_int(cell, "repeat", true, 1, MAX_REPEATS, &repeat, err)))
        return rc;
    if (dir[0] == '/' || strstr(dir, ".."))
        return km_fail(err, KM_EFORMAT, "\"dir\" of a cell is \"%s\"; it must be a folder inside the result folder",
                       dir);
    for (int i = 0; i < r->suite->n_tables; i++) {
        const struct suite_table *t = &r->suite->tables[i];
        if (strcmp(t->id, table))
            continue;
        *e = (struct cell_entry){i, find_id(t->rows, t->n_rows, row), find_id(t->arms, t->n_arms, arm), (int)repeat - 1,
                                 dir};
        *known = e->row >= 0 && e->arm >= 0;
    }
    return 0;
}

/* The index of a run folder in r->runs. Adds the folder if it is new. */
static int run_index(struct report *r, const char *dir)
{
    int i = 0;
    while (i < r->n_runs && strcmp(r->runs[i].dir, dir))
        i++;
    if (i == r->n_runs)
        r->runs[r->n_runs++] = (struct report_run){.dir = dir};
    return i;
}

/* The reason in suite.json why a cell has no run. */
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
    struct km_err why = {0};
    if (path && !run_folder_exists(path))
        snprintf(run->why, sizeof run->why, "%.199s", why_missing(r, run->dir));
    else if (!path || run_folder_read(&run->run, path, &why))
        snprintf(run->why, sizeof run->why, "%.199s", path ? why.msg : "out of memory");
    else
        run->loaded = true;
    km_free(path);
}

/* Makes the slots of each table, all empty, for the largest repeat of its entries. */
static int make_slots(struct report *r, const struct cell_entry *entries, int n, struct km_err *err)
{
    for (int i = 0; i < n; i++) {
        struct report_table *t = &r->tables[entries[i].table];
        t->reps = entries[i].rep + 1 > t->reps ? entries[i].rep + 1 : t->reps;
    }
    for (int i = 0; i < r->suite->n_tables; i++) {
        struct report_table *t = &r->tables[i];
        t->spec = &r->suite->tables[i];
        size_t slots = (size_t)t->spec->n_rows * (size_t)t->spec->n_arms * (size_t)t->reps;
        if (!(t->slot = km_calloc(slots + 1, sizeof *t->slot)))
            return report_no_memory(err);
        for (size_t k = 0; k < slots; k++)
            t->slot[k] = -1;
    }
    return 0;
}

/* Reads the list "cells" of suite.json and the run folders that it names. */
static int load_cells(struct report *r, struct km_err *err)
{
    const cJSON *cells = cJSON_GetObjectItemCaseSensitive(r->suite->json, "cells");
    int most = cJSON_IsArray(cells) ? cJSON_GetArraySize(cells) : 0, n = 0, rc = 0;
    struct cell_entry *entries = km_calloc((size_t)most + 1, sizeof *entries);
    r->runs = km_calloc((size_t)most + 1, sizeof *r->runs);
    r->tables = km_calloc((size_t)r->suite->n_tables, sizeof *r->tables);
    if (!entries || !r->runs || !r->tables)
        rc = report_no_memory(err);
    for (const cJSON *c = most ? cells->child : NULL; c && !rc; c = c->next) {
        bool known;
        if ((rc = read_entry(r, c, &entries[n], &known, err)))
            km_context(err, "%s/suite.json", r->dir);
        else
            n += known;
    }
    if (!rc)
        rc = make_slots(r, entries, n, err);
    for (int i = 0; i < n && !rc; i++) {
        const struct cell_entry *e = &entries[i];
        struct report_table *t = &r->tables[e->table];
        t->slot[(e->row * t->spec->n_arms + e->arm) * t->reps + e->rep] = run_index(r, e->dir);
    }
    km_free(entries);
    for (int i = 0; i < r->n_runs && !rc; i++)
        read_run(r, &r->runs[i]);
    return rc;
}

static int load_suite(struct report *r, struct km_err *err)
{
    char *suite = km_path(r->dir, "suite.json"), *run = km_path(r->dir, "run.json");
    int rc;
    if (!suite || !run)
        rc = report_no_memory(err);
    else if (km_file_exists(suite))
        rc = suite_read(&r->suite, suite, err);
    else if (km_file_exists(run))
        rc = suite_of_run(r, run, err);
    else
        rc = km_fail(
            err, KM_ENOENT,
            "%s holds neither suite.json nor run.json; give the result folder of a suite or the folder of a run",
            r->dir);
    km_free(suite);
    km_free(run);
    return rc;
}

int report_data_load(struct report *r, const char *dir, struct km_err *err)
{
    *r = (struct report){.dir = dir};
    int rc = load_suite(r, err);
    return rc ? rc : load_cells(r, err);
}

void report_data_free(struct report *r)
{
    for (int i = 0; i < r->n_runs; i++)
        if (r->runs[i].loaded)
            run_folder_free(&r->runs[i].run);
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
        km_buf_free(&t->evidence_caption);
        km_buf_free(&t->notes);
        km_buf_free(&t->warnings);
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
