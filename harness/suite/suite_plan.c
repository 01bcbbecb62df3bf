/* From a suite to the list of runs: flags merged, placeholders filled in, equal runs shared, rows interleaved. */
#include "harness/suite/suite.h"

#include "base/file.h"
#include "base/hash.h"
#include "base/mem.h"

#include <string.h>

enum { MAX_CELLS = 20000, MAX_FLAGS = 256 };

/* Flags of one cell while they are merged: borrowed keys and values, in order of first mention. */
struct merged {
    const char *key[MAX_FLAGS];
    const cJSON *value[MAX_FLAGS]; /* NULL: removed */
    int n;
};

/* keep: what an earlier layer removed stays removed. */
static int merge(struct merged *m, const cJSON *flags, bool keep, struct km_err *err)
{
    for (const cJSON *f = flags ? flags->child : NULL; f; f = f->next) {
        int i = 0;
        while (i < m->n && strcmp(m->key[i], f->string))
            i++;
        if (i == MAX_FLAGS)
            return km_fail(err, KM_EINVAL, "more than %d flags in one cell", MAX_FLAGS);
        if (keep && i < m->n && !m->value[i])
            continue;
        m->key[i] = f->string;
        m->value[i] = cJSON_IsNull(f) ? NULL : f;
        m->n += i == m->n;
    }
    return 0;
}

struct names {
    const char *here, *dir, *table, *row, *nonce;
    int repeat;
};

/* {here} and the like; a brace that opens none of them stays as it is (flags may hold JSON). */
static void expand(struct km_buf *out, const char *s, const struct names *n)
{
    const char *const keys[] = {"{here}", "{dir}", "{table}", "{row}", "{nonce}"};
    const char *const values[] = {n->here, n->dir, n->table, n->row, n->nonce};
    while (*s) {
        size_t used = 0;
        for (int i = 0; i < 5 && !used; i++)
            if (!strncmp(s, keys[i], strlen(keys[i]))) {
                km_buf_puts(out, values[i]);
                used = strlen(keys[i]);
            }
        if (!used && !strncmp(s, "{repeat}", 8)) {
            km_buf_printf(out, "%d", n->repeat + 1);
            used = 8;
        }
        if (!used)
            km_buf_putc(out, *s);
        s += used ? used : 1;
    }
}

static int push(struct suite_cell *c, struct km_buf *arg, struct km_err *err)
{
    char **v = km_reallocarray(c->argv, (size_t)c->argc + 2, sizeof *v), *s = km_buf_take(arg);
    if (v)
        c->argv = v;
    if (!v || !s) {
        km_free(s);
        return km_fail(err, KM_ENOMEM, "out of memory planning a suite");
    }
    v[c->argc++] = s;
    v[c->argc] = NULL;
    return 0;
}

static int push_flag(struct suite_cell *c, const char *key, const cJSON *v, const struct names *n, struct km_err *err)
{
    struct km_buf b = {0};
    int rc = 0;
    if (cJSON_IsArray(v)) {
        for (const cJSON *e = v->child; e && !rc; e = e->next)
            rc = push_flag(c, key, e, n, err);
        return rc;
    }
    km_buf_printf(&b, cJSON_IsFalse(v) ? "--no-%s" : "--%s", key);
    if (cJSON_IsNumber(v))
        km_buf_printf(&b, "=%.15g", v->valuedouble);
    else if (cJSON_IsString(v))
        km_buf_putc(&b, '='), expand(&b, v->valuestring, n);
    return push(c, &b, err);
}

static void cell_free(struct suite_cell *c)
{
    for (int i = 0; i < c->argc; i++)
        km_free(c->argv[i]);
    km_free(c->argv);
    km_free(c->name);
}

/* The identity of a run: the workload file's bytes, the flags, which repeat it is, and which arm: a miss and
 * the hit after it may well have the same flags. */
static int cell_key(struct suite_cell *c, const char *workload_sha, int arm, int repeat, struct km_err *err)
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

/* "flag=value" of the command line as JSON, so that it merges like the suite's own. */
static int parse_set(const struct km_strs *set, cJSON **out, struct km_err *err)
{
    *out = cJSON_CreateObject();
    for (int i = 0; *out && i < set->n; i++) {
        size_t n = strcspn(set->v[i], "=");
        char *key = km_strndup(set->v[i], n);
        const char *value = set->v[i][n] ? set->v[i] + n + 1 : NULL;
        cJSON *v = !value || !key            ? NULL
                   : !strcmp(value, "true")  ? cJSON_CreateTrue()
                   : !strcmp(value, "false") ? cJSON_CreateFalse()
                   : !strcmp(value, "null")  ? cJSON_CreateNull()
                                             : cJSON_CreateString(value);
        bool good = v && n && strspn(key, "abcdefghijklmnopqrstuvwxyz0123456789-") == n && *key != '-';
        if (good) {
            cJSON_DeleteItemFromObjectCaseSensitive(*out, key);
            cJSON_AddItemToObject(*out, key, v);
        } else {
            cJSON_Delete(v);
        }
        km_free(key);
        if (!good)
            return km_fail(err, KM_EINVAL,
                           "--set %s: write FLAG=VALUE with a flag of kvmark run, for example --set device=cpu",
                           set->v[i]);
    }
    return *out ? 0 : km_fail(err, KM_ENOMEM, "out of memory planning a suite");
}

struct planner {
    const struct suite *s;
    const struct suite_opts *o;
    struct suite_plan *out;
    const cJSON *set;
    char (*sha)[65]; /* [n_tables], of the workload files */
};

static int make_cell(const struct planner *p, int t, int r, int a, int k, struct suite_cell *c, struct km_err *err)
{
    const struct suite_table *table = &p->s->tables[t];
    struct names n = {p->s->here, p->o->dir, table->id, table->rows[r].id, p->o->nonce ? p->o->nonce : "", k};
    struct merged m = {0};
    struct km_buf b = {0};
    const cJSON *const layers[] = {p->s->defaults, table->options, p->set, table->rows[r].options,
                                   table->arms[a].options};
    int rc = 0;
    for (int i = 0; i < 5 && !rc; i++)
        rc = merge(&m, layers[i], layers[i] == p->set, err);
    km_buf_puts(&b, "run");
    if (!rc)
        rc = push(c, &b, err);
    km_buf_puts(&b, table->workload);
    if (!rc)
        rc = push(c, &b, err);
    for (int i = 0; i < m.n && !rc; i++)
        if (m.value[i])
            rc = push_flag(c, m.key[i], m.value[i], &n, err);
    km_buf_free(&b);
    if (!rc)
        rc = cell_key(c, p->sha[t], a, k, err);
    if (rc)
        return rc;
    km_buf_printf(&b, "%s/%s", table->id, table->rows[r].id);
    if (table->arms[a].id)
        km_buf_printf(&b, "-%s", table->arms[a].id);
    km_buf_printf(&b, "-%d", k + 1);
    c->name = km_buf_take(&b);
    return c->name ? 0 : km_fail(err, KM_ENOMEM, "out of memory planning a suite");
}

/* The cell that does this run already, or a new one. */
static int place(const struct planner *p, int t, int r, int a, int k, struct km_err *err)
{
    struct suite_plan *out = p->out;
    struct suite_cell c = {0};
    int rc = make_cell(p, t, r, a, k, &c, err), at = 0;
    if (rc) {
        cell_free(&c);
        return rc;
    }
    while (at < out->n && strcmp(out->cells[at].key, c.key))
        at++;
    if (at < out->n) {
        cell_free(&c);
    } else {
        struct suite_cell *v = at < MAX_CELLS ? km_reallocarray(out->cells, (size_t)out->n + 1, sizeof *v) : NULL;
        if (!v) {
            cell_free(&c);
            return at < MAX_CELLS ? km_fail(err, KM_ENOMEM, "out of memory planning a suite")
                                  : km_fail(err, KM_ELIMIT, "the suite needs more than %d runs", MAX_CELLS);
        }
        out->cells = v;
        out->cells[out->n++] = c;
    }
    struct suite_place *u = km_reallocarray(out->places, (size_t)out->n_places + 1, sizeof *u);
    if (!u)
        return km_fail(err, KM_ENOMEM, "out of memory planning a suite");
    out->places = u;
    out->places[out->n_places++] = (struct suite_place){t, r, a, k, at};
    return 0;
}

static int plan_repeat(const struct planner *p, int t, int k, struct km_err *err)
{
    const struct suite_table *table = &p->s->tables[t];
    bool backwards = k % 4 == 1 || k % 4 == 2; /* AB BA BA AB: drift hits both rows alike */
    int rc = 0;
    for (int i = 0; i < table->n_rows && !rc; i++)
        for (int a = 0; a < table->n_arms && !rc; a++)
            rc = place(p, t, backwards ? table->n_rows - 1 - i : i, a, k, err);
    return rc ? km_context(err, "table %s", table->id) : 0;
}

int suite_plan_make(const struct suite *s, const struct suite_opts *o, struct suite_plan *out, struct km_err *err)
{
    cJSON *set = NULL;
    *out = (struct suite_plan){0};
    struct planner p = {.s = s, .o = o, .out = out};
    int rc = parse_set(&o->set, &set, err), most = 0, known = -1;
    p.set = set;
    p.sha = km_calloc((size_t)s->n_tables, sizeof *p.sha);
    if (!rc && !p.sha)
        rc = km_fail(err, KM_ENOMEM, "out of memory planning a suite");
    for (int t = 0; t < s->n_tables && !rc; t++) {
        int pairs = o->pairs ? o->pairs : s->tables[t].pairs;
        struct km_digest d;
        most = pairs > most ? pairs : most;
        if (o->only && strcmp(o->only, s->tables[t].id))
            continue;
        known = t;
        if ((rc = km_sha_file(s->tables[t].workload, &d, err)))
            km_context(err, "table %s: its workload", s->tables[t].id);
        else
            km_hex(&d, p.sha[t]);
    }
    if (!rc && known < 0)
        rc = km_fail(err, KM_EINVAL, "the suite has no table \"%s\"", o->only);
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
        cell_free(&p->cells[i]);
    km_free(p->cells);
    km_free(p->places);
    *p = (struct suite_plan){0};
}
