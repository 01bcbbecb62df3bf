/* Writes report.html: one file that needs no other file; report.css and report.js are compiled into the program. The
 * page is kept below 1 MB: the pictures are added first, and the table of requests is cut at the limit. */
#include "harness/report/report_steps.h"

#include "base/clock.h"
#include "base/file.h"
#include "base/mem.h"
#include "harness/report/asset.h"
#include "harness/report/plot.h"

#include <math.h>
#include <stdio.h>
#include <string.h>

/* MAX_PAGE: bytes of the page at which the table of requests ends; MAX_PICTURES: bytes of all pictures together. */
enum { MAX_REQUESTS = 5000, MAX_PAGE = 976000, MAX_PICTURES = 750000 };

static void put_text(struct km_buf *b, const char *s)
{
    km_buf_put_html(b, s, strlen(s));
}

/* The start of the next line of the text at p, or the end of the text. */
static const char *next_line(const char *p)
{
    p += strcspn(p, "\n");
    return p + (*p == '\n');
}

static void put_items(struct km_buf *b, const char *lines, const char *tag)
{
    for (const char *p = lines; *p; p = next_line(p)) {
        km_buf_puts(b, tag);
        km_buf_put_html(b, p, strcspn(p, "\n"));
        km_buf_puts(b, "</li>\n");
    }
}

static void put_notes(struct km_buf *b, const struct report_table *t)
{
    if (!t->notes.len && !t->warnings.len)
        return;
    km_buf_puts(b, "<ul class=\"notes\">\n");
    put_items(b, km_buf_str(&t->notes), "<li>");
    put_items(b, km_buf_str(&t->warnings), "<li class=\"warn\">");
    km_buf_puts(b, "</ul>\n");
}

/* *spent: bytes of all pictures on the page so far. */
static void put_plots(const struct report *r, const struct report_table *t, size_t *spent, struct km_buf *b)
{
    char *dir = km_path(r->dir, "plots");
    bool any = false;
    for (int i = 0; i < t->n_plots && dir; i++) {
        const struct report_plot *p = &t->plots[i];
        struct km_buf svg = {0};
        if (!p->drawn)
            continue;
        km_buf_puts(b, any ? "" : "<div class=\"plots\">\n");
        any = true;
        km_buf_puts(b, "<figure>");
        if (!plot_inline(dir, p->name, p->caption, &svg, NULL) && km_buf_ok(&svg) && *spent + svg.len < MAX_PICTURES) {
            *spent += svg.len;
            km_buf_put(b, svg.data, svg.len);
        } else {
            km_buf_printf(b, "<p>The picture would make this page too large; it is in plots/%s.svg.</p>", p->name);
        }
        km_buf_puts(b, "<figcaption>");
        put_text(b, p->caption);
        km_buf_puts(b, "</figcaption></figure>\n");
        km_buf_free(&svg);
    }
    km_buf_puts(b, any ? "</div>\n" : "");
    km_free(dir);
}

static bool has_dim_cells(const struct table_grid *g)
{
    for (int i = 0; i < g->n_rows * g->n_cols; i++)
        if (g->dim[i])
            return true;
    return false;
}

/* lead: the headline at the top of the page, which is not repeated below its table. */
static void put_table(const struct report *r, const struct report_table *t, const char *lead, size_t *spent,
                      struct km_buf *b)
{
    km_buf_printf(b, "<section id=\"%s\"><h2>", t->spec->id);
    put_text(b, t->spec->title);
    km_buf_puts(b, "</h2>\n");
    table_grid_html(&t->grid, b);
    if (has_dim_cells(&t->grid))
        km_buf_puts(b, "<p class=\"when\">A change in grey could not be told apart from noise.</p>\n");
    if (t->headline.len && t->headline.data != lead) {
        km_buf_puts(b, "<p>");
        put_text(b, t->headline.data);
        km_buf_puts(b, "</p>\n");
    }
    put_plots(r, t, spent, b);
    put_notes(b, t);
    if (t->evidence.n_rows > 1) {
        km_buf_puts(b, "<details open class=\"small evidence\"><summary>Evidence</summary>\n<p>");
        put_text(b, km_buf_str(&t->evidence_caption));
        km_buf_puts(b, "</p>\n");
        table_grid_html(&t->evidence, b);
        km_buf_puts(b, "</details>\n");
    }
    km_buf_puts(b, "<details open class=\"small\"><summary>Tokens</summary>\n<p>" REPORT_TOKENS_CAPTION "</p>\n");
    table_grid_html(&t->tokens, b);
    km_buf_puts(b, "</details></section>\n");
}

/* Appends a JSON value as one line. */
static void put_value(struct km_buf *b, const cJSON *v)
{
    if (cJSON_IsString(v)) {
        km_buf_puts(b, v->valuestring);
    } else if (cJSON_IsNumber(v)) {
        km_buf_printf(b, "%.6g", v->valuedouble);
    } else if (v && !cJSON_IsNull(v)) {
        char *s = cJSON_PrintUnformatted(v);
        km_buf_puts(b, s ? s : "");
        cJSON_free(s);
    }
}

/* Appends the values of v and of the objects in it, one line "a.b \t value" per value, without the key "reasons". */
static void flatten(const cJSON *v, const char *path, int depth, struct km_buf *out)
{
    for (const cJSON *e = v ? v->child : NULL; e; e = e->next) {
        struct km_buf name = {0};
        if (e->string && !strcmp(e->string, "reasons"))
            continue;
        km_buf_printf(&name, "%s%s%s", path, *path ? "." : "", e->string ? e->string : "");
        if (cJSON_IsObject(e) && depth < 4) {
            flatten(e, km_buf_str(&name), depth + 1, out);
        } else {
            struct km_buf value = {0};
            put_value(&value, e);
            for (char *p = value.data; p && *p; p++)
                *p = *p == '\n' || *p == '\t' ? ' ' : *p;
            km_buf_printf(out, "%s\t%s\n", km_buf_str(&name), km_buf_str(&value));
            km_buf_free(&value);
        }
        km_buf_free(&name);
    }
}

/* Finds the value of a key in the text that `flatten` made. *n: its length. NULL if the text does not have the key. */
static const char *lookup(const char *flat, const char *key, size_t klen, size_t *n)
{
    for (const char *p = flat; *p; p = next_line(p))
        if (!strncmp(p, key, klen) && p[klen] == '\t') {
            *n = strcspn(p + klen + 1, "\n");
            return p + klen + 1;
        }
    return NULL;
}

static void read_env(const struct report *r, const struct report_run *run, struct km_buf *flat)
{
    struct km_buf path = {0};
    cJSON *v = NULL;
    km_buf_printf(&path, "%s/%s/env.json", r->dir, run->dir);
    if (km_buf_ok(&path) && !km_json_file(path.data, 4 << 20, &v, NULL))
        flatten(v, "", 0, flat);
    cJSON_Delete(v);
    km_buf_free(&path);
}

/* Chooses the runs whose environments are shown: the first pair of the first contrast, or one run (side[1] is NULL). */
static void choose_runs(const struct report *r, const struct report_run *side[2])
{
    const struct report_table *t = &r->tables[0];
    side[0] = side[1] = NULL;
    for (int k = 0; k < t->reps && t->n_contrasts && !side[1]; k++) {
        const struct report_contrast *c = &t->contrasts[0];
        int a = t->slot[(c->base_row * t->spec->n_arms + c->base_arm) * t->reps + k];
        int b = t->slot[(c->row * t->spec->n_arms + c->arm) * t->reps + k];
        if (a >= 0 && b >= 0 && r->runs[a].loaded && r->runs[b].loaded) {
            side[0] = &r->runs[a];
            side[1] = &r->runs[b];
        }
    }
    for (int i = 0; i < r->n_runs && !side[0]; i++)
        side[0] = r->runs[i].loaded ? &r->runs[i] : NULL;
}

static void put_environment(const struct report *r, struct km_buf *b)
{
    const struct report_run *side[2];
    choose_runs(r, side);
    struct km_buf a = {0}, other = {0};
    read_env(r, side[0], &a);
    if (side[1])
        read_env(r, side[1], &other);
    km_buf_puts(b, "<section id=\"environment\"><h2>Environment</h2>\n<p class=\"when\">The machine and the software");
    km_buf_puts(b, side[1] ? " of one run on each side. Lines in which the two differ are shaded.</p>\n" : ".</p>\n");
    km_buf_puts(b, "<div class=\"scroll\"><table class=\"small\"><thead><tr><th></th><th class=\"t\">A: ");
    put_text(b, side[0]->dir);
    if (side[1]) {
        km_buf_puts(b, "</th><th class=\"t\">B: ");
        put_text(b, side[1]->dir);
    }
    km_buf_puts(b, "</th></tr></thead><tbody>\n");
    for (const char *p = km_buf_str(&a); *p; p = next_line(p)) {
        size_t k = strcspn(p, "\t"), n = strcspn(p + k + 1, "\n"), m = 0;
        const char *v = side[1] ? lookup(km_buf_str(&other), p, k, &m) : NULL;
        bool differs = side[1] && (!v || m != n || strncmp(v, p + k + 1, n));
        km_buf_puts(b, differs ? "<tr class=\"diff\"><th>" : "<tr><th>");
        km_buf_put_html(b, p, k);
        km_buf_puts(b, "</th><td class=\"t\">");
        km_buf_put_html(b, p + k + 1, n);
        if (side[1])
            km_buf_puts(b, "</td><td class=\"t\">");
        if (differs && v)
            km_buf_put_html(b, v, m);
        else if (side[1])
            km_buf_puts(b, differs ? "missing" : "same");
        km_buf_puts(b, "</td></tr>\n");
    }
    km_buf_puts(b, "</tbody></table></div></section>\n");
    km_buf_free(&a);
    km_buf_free(&other);
}

/* Appends the health of the load client in each run. The columns are the keys of "health" in the first run. */
static void put_health(const struct report *r, struct km_buf *b)
{
    struct km_buf head = {0}, flat = {0};
    int loaded = 0, doubtful = 0;
    for (int i = 0; i < r->n_runs; i++) {
        const struct run_folder *run = r->runs[i].loaded ? &r->runs[i].run : NULL;
        if (run && !head.len)
            flatten(cJSON_GetObjectItemCaseSensitive(run->json, "health"), "", 0, &head);
        loaded += run != NULL;
        doubtful += run && strcmp(report_run_text(run, "health", "verdict"), "good");
    }
    km_buf_printf(
        b,
        "<section id=\"health\"><h2>Health of the load client</h2>\n<p class=\"when\">A client that is short of "
        "CPU time sees tokens later than they arrived. Columns are named as in run.json under "
        "\"health\".</p>\n<details%s><summary>The client was in good health in %d of %d runs</summary>\n"
        "<div class=\"scroll\"><table class=\"small\"><thead><tr><th>Run</th>",
        doubtful ? " open" : "", loaded - doubtful, loaded);
    for (const char *p = km_buf_str(&head); *p; p = next_line(p)) {
        km_buf_puts(b, "<th>");
        km_buf_put_html(b, p, strcspn(p, "\t"));
        km_buf_puts(b, "</th>");
    }
    km_buf_puts(b, "</tr></thead><tbody>\n");
    for (int i = 0; i < r->n_runs; i++) {
        km_buf_puts(b, "<tr><th>");
        put_text(b, r->runs[i].dir);
        km_buf_puts(b, "</th>");
        km_buf_clear(&flat);
        if (r->runs[i].loaded) {
            flatten(cJSON_GetObjectItemCaseSensitive(r->runs[i].run.json, "health"), "", 0, &flat);
        } else {
            km_buf_puts(b, "<td class=\"warn\">");
            put_text(b, r->runs[i].why);
            km_buf_puts(b, "</td>");
        }
        for (const char *p = km_buf_str(&head); *p && r->runs[i].loaded; p = next_line(p)) {
            size_t n = 0;
            const char *v = lookup(km_buf_str(&flat), p, strcspn(p, "\t"), &n);
            km_buf_puts(b, "<td>");
            km_buf_put_html(b, v ? v : "", n);
            km_buf_puts(b, "</td>");
        }
        km_buf_puts(b, "</tr>\n");
    }
    km_buf_puts(b, "</tbody></table></div></details></section>\n");
    km_buf_free(&head);
    km_buf_free(&flat);
}

static void put_commands(const struct report *r, struct km_buf *b)
{
    const cJSON *s =
        cJSON_GetObjectItemCaseSensitive(cJSON_GetObjectItemCaseSensitive(r->suite->json, "provenance"), "sessions");
    km_buf_puts(b, "<section id=\"again\"><h2>To run it again</h2>\n");
    if (cJSON_IsArray(s) && s->child)
        km_buf_puts(b, "<p>The whole suite:</p>\n<pre>");
    for (const cJSON *e = cJSON_IsArray(s) ? s->child : NULL; e; e = e->next) {
        const char *started = "", *command = "";
        (void)km_json_str(e, "started", false, &started, NULL);
        (void)km_json_str(e, "command", false, &command, NULL);
        km_buf_puts(b, "# ");
        put_text(b, started);
        km_buf_puts(b, "\n");
        put_text(b, command);
        km_buf_puts(b, e->next ? "\n" : "</pre>\n");
    }
    km_buf_printf(b, "<details><summary>The command of each run (%d)</summary>\n<pre>", r->n_runs);
    for (int i = 0; i < r->n_runs; i++) {
        km_buf_puts(b, i ? "\n# " : "# ");
        put_text(b, r->runs[i].dir);
        if (r->runs[i].loaded) {
            km_buf_puts(b, ", ");
            put_text(b, report_run_text(&r->runs[i].run, "provenance", "started"));
            km_buf_puts(b, ", commit ");
            put_text(b, report_run_text(&r->runs[i].run, "provenance", "commit"));
            km_buf_puts(b, "\n");
            put_text(b, report_run_text(&r->runs[i].run, "provenance", "command"));
        }
    }
    km_buf_puts(b, "</pre></details></section>\n");
}

static void put_ms(struct km_buf *b, double v)
{
    km_buf_puts(b, "<td>");
    if (isfinite(v))
        km_buf_printf(b, "%.2f", v);
}

static void put_count(struct km_buf *b, int n)
{
    km_buf_puts(b, "<td>");
    if (n >= 0)
        km_buf_printf(b, "%d", n);
}

static void put_request(const struct report *r, const struct report_run *run, const struct hz_rec *q, struct km_buf *b)
{
    enum hz_profile p = r->suite->profile;
    km_buf_puts(b, "<tr><td>");
    put_text(b, strncmp(run->dir, "cells/", 6) ? run->dir : run->dir + 6);
    km_buf_printf(b, "<td>%d<td>%d", q->conv, q->turn + 1);
    put_ms(b, (double)(q->start_ns - run->run.trace.begin_ns) / 1e6);
    put_ms(b, q->ok ? run_folder_sample(&run->run, q, HZ_TTFT, p) : NAN);
    put_ms(b, q->ok ? run_folder_sample(&run->run, q, HZ_TPOT, p) : NAN);
    put_ms(b, q->ok ? run_folder_sample(&run->run, q, HZ_E2E, p) : NAN);
    put_count(b, q->prompt_tokens >= 0 ? q->prompt_tokens : q->local_prompt_tokens);
    put_count(b, q->cached_tokens);
    put_count(b, q->output_tokens >= 0 ? q->output_tokens : q->local_output_tokens);
    km_buf_puts(b, "<td class=t>");
    put_text(b, q->ok ? "" : *q->error ? q->error : "failed");
    km_buf_puts(b, "\n");
}

/* Appends the table of requests. Its rows and cells have no closing tags, which HTML allows, to halve its size. */
static void put_requests(const struct report *r, struct km_buf *b)
{
    int total = 0, shown = 0;
    for (int i = 0; i < r->n_runs; i++)
        total += r->runs[i].loaded ? r->runs[i].run.trace.n : 0;
    struct km_buf rows = {0};
    for (int i = 0; i < r->n_runs; i++)
        for (int k = 0;
             r->runs[i].loaded && k < r->runs[i].run.trace.n && shown < MAX_REQUESTS && b->len + rows.len < MAX_PAGE;
             k++, shown++)
            put_request(r, &r->runs[i], &r->runs[i].run.trace.recs[k], &rows);
    km_buf_puts(b, "<section><h2>Requests</h2>\n<details><summary>");
    if (shown < total)
        km_buf_printf(b, "The first %d of %d requests; requests.csv in each run folder has all requests of the run",
                      shown, total);
    else
        km_buf_printf(b, "All %d requests", total);
    km_buf_puts(b, "</summary>\n<div class=\"scroll\"><table id=\"requests\" class=\"small\"><thead><tr><th>Run"
                   "<th>Conversation<th>Turn<th>Start (ms)<th>TTFT (ms)<th>TPOT (ms)<th>E2E (ms)<th>Prompt tokens"
                   "<th>Cached tokens<th>Output tokens<th>Error</thead><tbody>\n");
    km_buf_put(b, km_buf_str(&rows), rows.len);
    km_buf_puts(b, "</tbody></table></div></details></section>\n");
    b->oom |= rows.oom;
    km_buf_free(&rows);
}

static void put_head(const struct report *r, struct km_buf *b)
{
    km_buf_puts(b, "<!DOCTYPE html>\n<html lang=\"en\"><head><meta charset=\"utf-8\"><meta name=\"viewport\" "
                   "content=\"width=device-width\">\n<title>");
    put_text(b, r->suite->title);
    km_buf_printf(b, "</title>\n<style>\n%s</style></head><body>\n<h1>", asset_text("report.css"));
    put_text(b, r->suite->title);
    km_buf_puts(b, "</h1>\n");
}

/* Appends the part above the tables: date, headline, notes of the suite, links. */
static void put_top(const struct report *r, const char *lead, struct km_buf *b)
{
    char now[32];
    int runs = 0;
    km_wall_iso(now, sizeof now);
    for (int i = 0; i < r->n_runs; i++)
        runs += r->runs[i].loaded;
    km_buf_printf(b, "<p class=\"when\">kvmark report, made %s from %d run%s</p>\n", now, runs, runs == 1 ? "" : "s");
    if (*lead) {
        km_buf_puts(b, "<p class=\"lead\">");
        put_text(b, lead);
        km_buf_puts(b, "</p>\n");
    }
    for (int i = 0; i < r->suite->n_notes; i++) {
        km_buf_puts(b, "<p>");
        put_text(b, r->suite->notes[i]);
        km_buf_puts(b, "</p>\n");
    }
    if (r->no_gnuplot)
        km_buf_puts(
            b, "<p class=\"warn\">This report has no pictures, because gnuplot is not installed here. The data and "
               "the scripts are in plots/. To add the pictures, install gnuplot and run kvmark report on this "
               "folder again.</p>\n");
    km_buf_puts(b, "<nav>");
    for (int i = 0; i < r->suite->n_tables; i++) {
        if (!r->tables[i].reps)
            continue;
        km_buf_printf(b, "<a href=\"#%s\">", r->tables[i].spec->id);
        put_text(b, r->tables[i].spec->title);
        km_buf_puts(b, "</a> ");
    }
    km_buf_puts(b, "<a href=\"#environment\">Environment</a> <a href=\"#health\">Health</a> <a "
                   "href=\"#again\">To run it again</a></nav>\n");
}

int report_write_html(const struct report *r, struct km_err *err)
{
    struct km_buf b = {0};
    size_t spent = 0;
    const char *lead = "";
    for (int i = 0; i < r->suite->n_tables && !*lead; i++)
        lead = km_buf_str(&r->tables[i].headline);
    put_head(r, &b);
    put_top(r, lead, &b);
    for (int i = 0; i < r->suite->n_tables; i++)
        if (r->tables[i].reps)
            put_table(r, &r->tables[i], lead, &spent, &b);
    put_environment(r, &b);
    put_health(r, &b);
    put_commands(r, &b);
    put_requests(r, &b);
    km_buf_printf(&b, "<script>\n%s</script>\n</body></html>\n", asset_text("report.js"));
    char *path = km_path(r->dir, "report.html");
    int rc = km_buf_ok(&b) && path ? km_file_write(path, b.data, b.len, err) : report_no_memory(err);
    km_free(path);
    km_buf_free(&b);
    return rc;
}
