/* Makes the plan of a suite: merges the options of each cell, fills in the placeholders, lets equal runs share a cell
 * and puts the cells into the order in which they run. */
#include "harness/suite/suite.h"

#include "base/file.h"
#include "base/hash.h"
#include "base/mem.h"

#include <string.h>

enum { MAX_CELLS = 20000, MAX_OPTIONS = 256 }; /* MAX_OPTIONS: of a cell */

static int no_memory(struct km_err *err)
{
    return km_fail(err, KM_ENOMEM, "out of memory planning a suite");
}

/* The options of a cell while its layers are merged, in the order of their first mention. Keys and values are borrowed
 * from the JSON of the suite. */
struct merged {
    const char *key[MAX_OPTIONS];
    const cJSON *value[MAX_OPTIONS]; /* NULL: the option was removed */
    int n;
};

/* Merges a layer into m. keep_removed: an option that an earlier layer removed stays removed. */
static int merge_layer(struct merged *m, const cJSON *options, bool keep_removed, struct km_err *err)
{
    for (const cJSON *o = options ? options->child : NULL; o; o = o->next) {
        int i = 0;
        while (i < m->n && strcmp(m->key[i], o->string))
            i++;
        if (i == MAX_OPTIONS)
            return km_fail(err, KM_EINVAL, "a cell has more than %d options", MAX_OPTIONS);
        if (keep_removed && i < m->n && !m->value[i])
            continue;
        m->key[i] = o->string;
        m->value[i] = cJSON_IsNull(o) ? NULL : o;
        m->n += i == m->n;
    }
    return 0;
}

/* The values of the placeholders in one cell. */
struct placeholders {
    const char *here, *dir, *table, *row, *nonce;
    int repeat; /* from 0 */
};

/* Appends s with its placeholders filled in. Other braces stay as they are, because an option may hold JSON. */
static void expand(struct km_buf *out, const char *s, const struct placeholders *p)
{
    const char *const keys[] = {"{here}", "{dir}", "{table}", "{row}", "{nonce}"};
    const char *const values[] = {p->here, p->dir, p->table, p->row, p->nonce};
    while (*s) {
        size_t used = 0;
        for (int i = 0; i < 5 && !used; i++)
            if (!strncmp(s, keys[i], strlen(keys[i]))) {
                km_buf_puts(out, values[i]);
                used = strlen(keys[i]);
            }
        if (!used && !strncmp(s, "{repeat}", strlen("{repeat}"))) {
            km_buf_printf(out, "%d", p->repeat + 1);
            used = strlen("{repeat}");
        }
        if (!used)
            km_buf_putc(out, s[used++]);
        s += used;
    }
}

/* Moves the text of the buffer to the end of the cell's arguments. */
static int push_arg(struct suite_cell *c, struct km_buf *arg, struct km_err *err)
{
    char **v = km_reallocarray(c->argv, (size_t)c->argc + 2, sizeof *v), *s = km_buf_take(arg);
    if (v)
        c->argv = v;
    if (!v || !s) {
        km_free(s);
        return no_memory(err);
    }
    v[c->argc++] = s;
    v[c->argc] = NULL;
    return 0;
}

static int push_text(struct suite_cell *c, const char *text, struct km_err *err)
{
    struct km_buf b = {0};
    km_buf_puts(&b, text);
    return push_arg(c, &b, err);
}

/* Appends an option as --key=value, as --key for true, as --no-key for false, or once per element of a list. */
static int push_option(struct suite_cell *c, const char *key, const cJSON *v, const struct placeholders *p,
                       struct km_err *err)
{
    struct km_buf b = {0};
    int rc = 0;
    if (cJSON_IsArray(v)) {
        for (const cJSON *e = v->child; e && !rc; e = e->next)
            rc = push_option(c, key, e, p, err);
        return rc;
    }
    km_buf_printf(&b, cJSON_IsFalse(v) ? "--no-%s" : "--%s", key);
    if (cJSON_IsNumber(v)) {
        km_buf_printf(&b, "=%.15g", v->valuedouble);
    } else if (cJSON_IsString(v)) {
        km_buf_putc(&b, '=');
        expand(&b, v->valuestring, p);
    }
    return push_arg(c, &b, err);
}

static void cell_deinit(struct suite_cell *c)
{
    for (int i = 0; i < c->argc; i++)
        km_free(c->argv[i]);
    km_free(c->argv);
    km_free(c->name);
}

/* Sets the key of a cell, which identifies its run. The key covers the content of the workload file, the options, the
 * repeat, and the arm, because a cache miss and the hit that follows it may have the same options. */
static int set_key(struct suite_cell *c, const char *workload_sha, int arm, int repeat, struct km_err *err)
{
    struct km_sha *h;
    int rc = km_sha_new(&h, err);
    if (rc)
        return rc;
    km_sha_begin(h);
    km_sha_add(h, workload_sha, strlen(workload_sha) + 1);
    for (int i = 2; i < c->argc; i++)
        km_sha_add(h, c->argv[i], strlen(c->argv[i]) + 1);
    int32_t which[2] = {arm, repeat};
    km_sha_add(h, which, sizeof which);
    struct km_digest d = km_sha_end(h);
    km_hex(&d, c->key);
    km_sha_free(h);
    return 0;
}

static cJSON *parse_value(const char *value)
{
    return !strcmp(value, "true")    ? cJSON_CreateTrue()
           : !strcmp(value, "false") ? cJSON_CreateFalse()
           : !strcmp(value, "null")  ? cJSON_CreateNull()
                                     : cJSON_CreateString(value);
}

/* Parses the "option=value" strings of --set into a JSON object, which merges like the layers of the suite file. */
static int parse_set(const struct km_strs *set, cJSON **out, struct km_err *err)
{
    *out = cJSON_CreateObject();
    for (int i = 0; *out && i < set->n; i++) {
        const char *text = set->v[i];
        size_t n = strcspn(text, "=");
        if (!n || !text[n] || *text == '-' || strspn(text, "abcdefghijklmnopqrstuvwxyz0123456789-") != n)
            return km_fail(err, KM_EINVAL,
                           "--set %s: write OPTION=VALUE with an option of kvmark run, for example --set device=cpu",
                           text);
        char *key = km_strndup(text, n);
        cJSON *v = key ? parse_value(text + n + 1) : NULL;
        if (v) {
            cJSON_DeleteItemFromObjectCaseSensitive(*out, key);
            cJSON_AddItemToObject(*out, key, v);
        }
        km_free(key);
        if (!v)
            return no_memory(err);
    }
    return *out ? 0 : no_memory(err);
}

struct planner {
    const struct suite *s;
    const struct suite_opts *o;
    struct suite_plan *out;
    const cJSON *set;
    char (*sha)[65]; /* [n_tables] of the workload files, as hex digits; "" for a table that is not made */
};

static int make_cell(const struct planner *p, const struct suite_place *at, struct suite_cell *c, struct km_err *err)
{
    const struct suite_table *table = &p->s->tables[at->table];
    const struct suite_row *row = &table->rows[at->row], *arm = &table->arms[at->arm];
    struct placeholders ph = {p->s->here, p->o->dir, table->id, row->id, p->o->nonce ? p->o->nonce : "", at->repeat};
    const cJSON *const layers[] = {p->s->defaults, table->options, p->set, row->options, arm->options};
    struct merged m = {0};
    struct km_buf name = {0};
    int rc = 0;
    for (int i = 0; i < 5 && !rc; i++)
        rc = merge_layer(&m, layers[i], layers[i] == p->set, err);
    if (!rc)
        rc = push_text(c, "run", err);
    if (!rc)
        rc = push_text(c, table->workload, err);
    for (int i = 0; i < m.n && !rc; i++)
        if (m.value[i])
            rc = push_option(c, m.key[i], m.value[i], &ph, err);
    if (!rc)
        rc = set_key(c, p->sha[at->table], at->arm, at->repeat, err);
    if (rc)
        return rc;
    km_buf_printf(&name, "%s/%s", table->id, row->id);
    if (arm->id)
        km_buf_printf(&name, "-%s", arm->id);
    km_buf_printf(&name, "-%d", at->repeat + 1);
    c->name = km_buf_take(&name);
    return c->name ? 0 : no_memory(err);
}

/* The index of the cell with the key of c. Moves c into the plan if the key is new; frees c otherwise. Negative: error.
 */
static int add_cell(struct suite_plan *out, struct suite_cell *c, struct km_err *err)
{
    int at = 0;
    while (at < out->n && strcmp(out->cells[at].key, c->key))
        at++;
    if (at < out->n) {
        cell_deinit(c);
        return at;
    }
    struct suite_cell *v = at < MAX_CELLS ? km_reallocarray(out->cells, (size_t)out->n + 1, sizeof *v) : NULL;
    if (!v) {
        cell_deinit(c);
        return at < MAX_CELLS ? no_memory(err)
                              : km_fail(err, KM_ELIMIT, "the suite needs more than %d runs", MAX_CELLS);
    }
    out->cells = v;
    out->cells[out->n++] = *c;
    return at;
}

/* Makes the cell of a place, and adds the place to the plan. */
static int plan_place(const struct planner *p, struct suite_place place, struct km_err *err)
{
    struct suite_plan *out = p->out;
    struct suite_cell c = {0};
    int rc = make_cell(p, &place, &c, err);
    if (rc) {
        cell_deinit(&c);
        return rc;
    }
    if ((place.cell = add_cell(out, &c, err)) < 0)
        return place.cell;
    struct suite_place *v = km_reallocarray(out->places, (size_t)out->n_places + 1, sizeof *v);
    if (!v)
        return no_memory(err);
    out->places = v;
    out->places[out->n_places++] = place;
    return 0;
}

/* Plans repeat k of a table, from 0. The rows run in the order AB, BA, BA, AB, so that a drift affects them alike. */
static int plan_repeat(const struct planner *p, int table, int k, struct km_err *err)
{
    const struct suite_table *t = &p->s->tables[table];
    bool backwards = k % 4 == 1 || k % 4 == 2;
    int rc = 0;
    for (int i = 0; i < t->n_rows && !rc; i++)
        for (int arm = 0; arm < t->n_arms && !rc; arm++)
            rc = plan_place(p, (struct suite_place){table, backwards ? t->n_rows - 1 - i : i, arm, k, -1}, err);
    if (rc)
        km_context(err, "table %s", t->id);
    return rc;
}

static int refuse_table(const struct suite *s, const char *id, struct km_err *err)
{
    struct km_buf ids = {0};
    for (int i = 0; i < s->n_tables; i++)
        km_buf_printf(&ids, "%s%s", i ? ", " : "", s->tables[i].id);
    int rc = km_fail(err, KM_EINVAL, "the suite has no table \"%s\"; its tables are %s", id, km_buf_str(&ids));
    km_buf_free(&ids);
    return rc;
}

/* Hashes the workload files of the tables that are made. */
static int hash_workloads(struct planner *p, struct km_err *err)
{
    bool found = false;
    if (!(p->sha = km_calloc((size_t)p->s->n_tables, sizeof *p->sha)))
        return no_memory(err);
    for (int t = 0; t < p->s->n_tables; t++) {
        const struct suite_table *table = &p->s->tables[t];
        struct km_digest d;
        if (p->o->only && strcmp(p->o->only, table->id))
            continue;
        found = true;
        int rc = km_sha_file(table->workload, &d, err);
        if (rc) {
            km_context(err, "workload of table %s", table->id);
            return rc;
        }
        km_hex(&d, p->sha[t]);
    }
    return found ? 0 : refuse_table(p->s, p->o->only, err);
}

int suite_plan_make(const struct suite *s, const struct suite_opts *o, struct suite_plan *out, struct km_err *err)
{
    cJSON *set = NULL;
    struct planner p = {.s = s, .o = o, .out = out};
    int most = 0;
    *out = (struct suite_plan){0};
    int rc = parse_set(&o->set, &set, err);
    p.set = set;
    if (!rc)
        rc = hash_workloads(&p, err);
    for (int t = 0; t < s->n_tables; t++)
        most = s->tables[t].pairs > most ? s->tables[t].pairs : most;
    most = o->pairs ? o->pairs : most;
    for (int k = 0; k < most && !rc; k++)
        for (int t = 0; t < s->n_tables && !rc; t++)
            if (p.sha[t][0] && k < (o->pairs ? o->pairs : s->tables[t].pairs))
                rc = plan_repeat(&p, t, k, err);
    cJSON_Delete(set);
    km_free(p.sha);
    if (rc)
        suite_plan_free(out);
    return rc;
}

void suite_plan_free(struct suite_plan *p)
{
    for (int i = 0; i < p->n; i++)
        cell_deinit(&p->cells[i]);
    km_free(p->cells);
    km_free(p->places);
    *p = (struct suite_plan){0};
}
