/* report.html: one file, everything inside. Pictures come first, then the request table takes what is left of
 * 1 MB. Its style and its script are report.css and report.js, compiled in. */
#include "harness/report/report_data.h"

#include "base/clock.h"
#include "base/file.h"
#include "base/mem.h"
#include "harness/report/asset.h"

#include <math.h>
#include <stdio.h>
#include <string.h>

enum { MAX_REQUESTS = 5000, BUDGET = 980000, PICTURES = 750000 };

static void text(struct km_buf *b, const char *s)
{
    km_buf_put_html(b, s, strlen(s));
}

static void put_notes(struct km_buf *b, const char *notes)
{
    if (!*notes)
        return;
    km_buf_puts(b, "<ul class=\"notes\">\n");
    while (*notes) {
        size_t n = strcspn(notes, "\n");
        bool loud = memmem(notes, n, "FAILED", 6) || memmem(notes, n, "did NOT", 7) ||
                    memmem(notes, n, "missing", 7) || memmem(notes, n, "DOUBTFUL", 8);
        km_buf_puts(b, loud ? "<li class=\"warn\">" : "<li>");
        km_buf_put_html(b, notes, n);
        km_buf_puts(b, "</li>\n");
        notes += n + (notes[n] == '\n');
    }
    km_buf_puts(b, "</ul>\n");
}

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
        if (!plot_inline(dir, p->name, p->caption, &svg, NULL) && km_buf_ok(&svg) &&
            *spent + svg.len < PICTURES) {
            *spent += svg.len;
            km_buf_put(b, svg.data, svg.len);
        } else {
            km_buf_printf(b, "<p>In plots/%s.svg: this page is full.</p>", p->name);
        }
        km_buf_puts(b, "<figcaption>");
        text(b, p->caption);
        km_buf_puts(b, "</figcaption></figure>\n");
        km_buf_free(&svg);
    }
    km_buf_puts(b, any ? "</div>\n" : "");
    km_free(dir);
}

static void put_table(const struct report *r, const struct report_table *t, const char *lead, size_t *spent,
                      struct km_buf *b)
{
    km_buf_printf(b, "<section id=\"%s\"><h2>", t->t->id);
    text(b, t->t->title);
    km_buf_puts(b, "</h2>\n");
    table_grid_html(&t->grid, b);
    if (t->headline.len && t->headline.data != lead) {
        km_buf_puts(b, "<p>");
        text(b, t->headline.data);
        km_buf_puts(b, "</p>\n");
    }
    put_plots(r, t, spent, b);
    put_notes(b, km_buf_str(&t->notes));
    if (t->evidence.n_rows > 1) {
        km_buf_puts(b, "<details open class=\"small evidence\"><summary>Evidence: ratios with their 95% "
                       "intervals</summary>\n");
        table_grid_html(&t->evidence, b);
        km_buf_puts(b, "</details>\n");
    }
    km_buf_puts(b,
                "<details open class=\"small\"><summary>Tokens per run: what had to be computed</summary>\n");
    table_grid_html(&t->tokens, b);
    km_buf_puts(b, "</details></section>\n");
}

/* A JSON value as one line. */
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

/* Objects opened up, a line "a.b \t value" each. */
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

/* The value of `key` in flattened text; its length in *n. NULL: not there. */
static const char *lookup(const char *flat, const char *key, size_t klen, size_t *n)
{
    for (const char *p = flat; *p; p += strcspn(p, "\n"), p += *p == '\n')
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

/* The machine, A beside B: the first runs of the first contrast, or the first run alone. */
static void put_environment(const struct report *r, struct km_buf *b)
{
    const struct report_run *side[2] = {NULL, NULL};
    const struct report_table *t = &r->tables[0];
    for (int k = 0; k < t->reps && t->n_contrasts && !side[1]; k++) {
        const struct report_contrast *c = &t->contrasts[0];
        int ia = t->slot[(c->base_row * t->t->n_arms + c->base_arm) * t->reps + k];
        int ib = t->slot[(c->row * t->t->n_arms + c->arm) * t->reps + k];
        if (ia >= 0 && ib >= 0 && r->runs[ia].there && r->runs[ib].there)
            side[0] = &r->runs[ia], side[1] = &r->runs[ib];
    }
    for (int i = 0; i < r->n_runs && !side[0]; i++)
        side[0] = r->runs[i].there ? &r->runs[i] : NULL;
    struct km_buf a = {0}, other = {0};
    read_env(r, side[0], &a);
    if (side[1])
        read_env(r, side[1], &other);
    km_buf_puts(b, "<section id=\"environment\"><h2>Environment</h2>\n<div class=\"scroll\"><table "
                   "class=\"small\"><thead><tr><th>");
    km_buf_puts(b, "</th><th class=\"t\">A: ");
    text(b, side[0]->dir);
    if (side[1]) {
        km_buf_puts(b, "</th><th class=\"t\">B: ");
        text(b, side[1]->dir);
    }
    km_buf_puts(b, "</th></tr></thead><tbody>\n");
    for (const char *p = km_buf_str(&a); *p; p += strcspn(p, "\n"), p += *p == '\n') {
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
            km_buf_puts(b, differs ? "not there" : "same");
        km_buf_puts(b, "</td></tr>\n");
    }
    km_buf_puts(b, "</tbody></table></div></section>\n");
    km_buf_free(&a);
    km_buf_free(&other);
}

/* The client's own state in each run: the columns are whatever the first run's "health" holds. */
static void put_health(const struct report *r, struct km_buf *b)
{
    struct km_buf head = {0}, flat = {0};
    int there = 0, doubtful = 0;
    for (int i = 0; i < r->n_runs; i++) {
        const struct hz_run *run = r->runs[i].there ? &r->runs[i].run : NULL;
        if (run && !head.len)
            flatten(cJSON_GetObjectItemCaseSensitive(run->json, "health"), "", 0, &head);
        there += run != NULL;
        doubtful += run && strcmp(report_run_text(run, "health", "verdict"), "good");
    }
    km_buf_printf(b,
                  "<section id=\"health\"><h2>The client's own health</h2>\n<details%s><summary>%d of %d runs "
                  "good</summary>\n"
                  "<div class=\"scroll\"><table class=\"small\"><thead><tr><th>Run</th>",
                  doubtful ? " open" : "", there - doubtful, there);
    for (const char *p = km_buf_str(&head); *p; p += strcspn(p, "\n"), p += *p == '\n') {
        km_buf_puts(b, "<th>");
        km_buf_put_html(b, p, strcspn(p, "\t"));
        km_buf_puts(b, "</th>");
    }
    km_buf_puts(b, "</tr></thead><tbody>\n");
    for (int i = 0; i < r->n_runs; i++) {
        km_buf_puts(b, "<tr><th>");
        text(b, r->runs[i].dir);
        km_buf_puts(b, "</th>");
        km_buf_clear(&flat);
        if (r->runs[i].there)
            flatten(cJSON_GetObjectItemCaseSensitive(r->runs[i].run.json, "health"), "", 0, &flat);
        else
            km_buf_puts(b, "<td class=\"warn\">"), text(b, r->runs[i].why), km_buf_puts(b, "</td>");
        for (const char *p = km_buf_str(&head); *p && r->runs[i].there;
             p += strcspn(p, "\n"), p += *p == '\n') {
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
    const cJSON *s = cJSON_GetObjectItemCaseSensitive(
        cJSON_GetObjectItemCaseSensitive(r->suite->json, "provenance"), "sessions");
    km_buf_puts(b, "<section id=\"again\"><h2>To run it again</h2>\n");
    if (cJSON_IsArray(s) && s->child)
        km_buf_puts(b, "<p>The whole suite:</p>\n<pre>");
    for (const cJSON *e = cJSON_IsArray(s) ? s->child : NULL; e; e = e->next) {
        const char *started = "", *command = "";
        (void)km_json_str(e, "started", false, &started, NULL);
        (void)km_json_str(e, "command", false, &command, NULL);
        km_buf_puts(b, "# ");
        text(b, started);
        km_buf_puts(b, "\n");
        text(b, command);
        km_buf_puts(b, e->next ? "\n" : "</pre>\n");
    }
    km_buf_printf(b, "<details><summary>Each run's command (%d)</summary>\n<pre>", r->n_runs);
    for (int i = 0; i < r->n_runs; i++) {
        km_buf_puts(b, i ? "\n# " : "# ");
        text(b, r->runs[i].dir);
        if (r->runs[i].there) {
            km_buf_puts(b, ", ");
            text(b, report_run_text(&r->runs[i].run, "provenance", "started"));
            km_buf_puts(b, ", commit ");
            text(b, report_run_text(&r->runs[i].run, "provenance", "commit"));
            km_buf_puts(b, "\n");
            text(b, report_run_text(&r->runs[i].run, "provenance", "command"));
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
    text(b, strncmp(run->dir, "cells/", 6) ? run->dir : run->dir + 6);
    km_buf_printf(b, "<td>%d<td>%d", q->conv, q->turn + 1);
    put_ms(b, (double)(q->start_ns - run->run.trace.begin_ns) / 1e6);
    put_ms(b, q->ok ? hz_metric_sample(HZ_TTFT, q, &run->run, p) : NAN);
    put_ms(b, q->ok ? hz_metric_sample(HZ_TPOT, q, &run->run, p) : NAN);
    put_ms(b, q->ok ? hz_metric_sample(HZ_E2E, q, &run->run, p) : NAN);
    put_count(b, q->prompt_tokens >= 0 ? q->prompt_tokens : q->local_prompt_tokens);
    put_count(b, q->cached_tokens);
    put_count(b, q->output_tokens >= 0 ? q->output_tokens : q->local_output_tokens);
    km_buf_puts(b, "<td class=t>");
    text(b, q->ok ? "" : *q->error ? q->error : "failed");
    km_buf_puts(b, "\n");
}

/* Closing tags of rows and cells are left out: HTML lets them, and it is half the bytes. */
static void put_requests(const struct report *r, struct km_buf *b)
{
    int total = 0, shown = 0;
    for (int i = 0; i < r->n_runs; i++)
        total += r->runs[i].there ? r->runs[i].run.trace.n : 0;
    struct km_buf rows = {0};
    for (int i = 0; i < r->n_runs; i++)
        for (int k = 0; r->runs[i].there && k < r->runs[i].run.trace.n && shown < MAX_REQUESTS &&
                        b->len + rows.len < BUDGET - 4000;
             k++, shown++)
            put_request(r, &r->runs[i], &r->runs[i].run.trace.recs[k], &rows);
    km_buf_printf(
        b,
        "<section><h2>Requests</h2>\n<details><summary>%s%d of %d; every one is in its run's "
        "requests.csv</summary>\n"
        "<div class=\"scroll\"><table id=\"requests\" "
        "class=\"small\"><thead><tr><th>Run<th>Conversation<th>Turn<th>Start (ms)"
        "<th>TTFT (ms)<th>TPOT (ms)<th>E2E (ms)<th>Prompt<th>Cached<th>Output<th>Error</thead><tbody>\n",
        shown < total ? "The first " : "All ", shown, total);
    km_buf_put(b, km_buf_str(&rows), rows.len);
    km_buf_puts(b, "</tbody></table></div></details></section>\n");
    b->oom |= rows.oom;
    km_buf_free(&rows);
}

int report_write_html(const struct report *r, struct km_err *err)
{
    struct km_buf b = {0};
    char now[32];
    int runs = 0;
    size_t spent = 0;
    const char *lead = "";
    km_wall_iso(now, sizeof now);
    for (int i = 0; i < r->n_runs; i++)
        runs += r->runs[i].there;
    for (int i = 0; i < r->suite->n_tables && !*lead; i++)
        lead = km_buf_str(&r->tables[i].headline);
    km_buf_puts(&b, "<!DOCTYPE html>\n<html lang=\"en\"><head><meta charset=\"utf-8\"><meta name=\"viewport\" "
                    "content=\"width=device-width\">\n<title>");
    text(&b, r->suite->title);
    km_buf_printf(&b, "</title>\n<style>\n%s</style></head><body>\n<h1>", asset_text("report.css"));
    text(&b, r->suite->title);
    km_buf_printf(&b, "</h1>\n<p class=\"when\">kvmark report, made %s from %d run%s</p>\n", now, runs,
                  runs == 1 ? "" : "s");
    if (*lead) {
        km_buf_puts(&b, "<p class=\"lead\">");
        text(&b, lead);
        km_buf_puts(&b, "</p>\n");
    }
    for (int i = 0; i < r->suite->n_notes; i++) {
        km_buf_puts(&b, "<p>");
        text(&b, r->suite->notes[i]);
        km_buf_puts(&b, "</p>\n");
    }
    if (r->no_gnuplot)
        km_buf_puts(&b, "<p class=\"warn\">gnuplot is not installed here, so there are no pictures. Their data "
                        "and scripts are in plots/; after "
                        "installing gnuplot, kvmark report on this folder adds them.</p>\n");
    km_buf_puts(&b, "<nav>");
    for (int i = 0; i < r->suite->n_tables; i++) {
        if (!r->tables[i].reps)
            continue;
        km_buf_printf(&b, "<a href=\"#%s\">", r->tables[i].t->id);
        text(&b, r->tables[i].t->title);
        km_buf_puts(&b, "</a> ");
    }
    km_buf_puts(&b, "<a href=\"#environment\">Environment</a> <a href=\"#health\">Health</a> <a "
                    "href=\"#again\">To run it again</a></nav>\n");
    for (int i = 0; i < r->suite->n_tables; i++)
        if (r->tables[i].reps)
            put_table(r, &r->tables[i], lead, &spent, &b);
    put_environment(r, &b);
    put_health(r, &b);
    put_commands(r, &b);
    put_requests(r, &b);
    km_buf_printf(&b, "<script>\n%s</script>\n</body></html>\n", asset_text("report.js"));
    char *path = km_path(r->dir, "report.html");
    int rc = km_buf_ok(&b) && path ? km_file_write(path, b.data, b.len, err)
                                   : km_fail(err, KM_ENOMEM, "out of memory making a report");
    km_free(path);
    km_buf_free(&b);
    return rc;
}
