/* The notes under a table, which say what a reader must know about its runs, and the headline, which says in one
 * sentence what the table shows. */
#include "harness/report/report_steps.h"

#include <math.h>
#include <string.h>

/* A fact is a property of a run that a note states, as one or more sentences without the last period. A fact that does
 * not apply to the run writes nothing. */
typedef void (*fact_fn)(const struct run_folder *run, struct km_buf *out);

static void fact_setup(const struct run_folder *run, struct km_buf *out)
{
    const char *device = report_run_text(run, "target", "device"), *dtype = report_run_text(run, "target", "dtype");
    const char *url = report_run_text(run, "target", "url");
    double requests = report_run_number(run, "workload", "requests");
    if (!strcmp(report_run_text(run, "target", "kind"), "external"))
        km_buf_printf(out, "Server: external%s%s", *url ? ", " : "", url);
    else
        km_buf_printf(out, "Server: kvmark's engine on device %s", *device ? device : "unknown");
    km_buf_printf(out, ". Model: %s%s%s", report_run_text(run, "target", "model"), *dtype ? ", dtype " : "", dtype);
    km_buf_printf(out, ". Workload: %s", report_run_text(run, "workload", "name"));
    if (requests > 0)
        km_buf_printf(out, ", %.0f requests planned", requests);
}

static void fact_simulated(const struct run_folder *run, struct km_buf *out)
{
    const char *device = report_run_text(run, "target", "device");
    if (report_run_flag(run, "target", "simulated") || !strncmp(device, "sim:", 4))
        km_buf_printf(out,
                      "Simulated device %s: a roofline model says how long each step takes, on a virtual clock. "
                      "Nothing was measured on that hardware",
                      device);
}

static void fact_dummy(const struct run_folder *run, struct km_buf *out)
{
    if (report_run_flag(run, "target", "dummy_weights"))
        km_buf_puts(out, "Dummy weights: random numbers from a seed. The shapes, and therefore the work, are those of "
                         "the model; the answers are not language");
}

static void fact_text(const struct run_folder *run, struct km_buf *out)
{
    if (!strcmp(report_run_text(run, "workload", "text"), "built-in text"))
        km_buf_puts(out, "The prompts are made of the built-in text, not of the text files that the workload names");
}

static void fact_memory(const struct run_folder *run, struct km_buf *out)
{
    double limit = report_run_number(run, "options", "gpu-memory-limit");
    double blocks = report_run_number(run, "options", "num-gpu-blocks-override");
    double size = report_run_number(run, "options", "block-size");
    if (limit > 0)
        km_buf_printf(out, "Device memory limited to %.4g GiB", limit / 1073741824);
    if (blocks > 0)
        km_buf_printf(out, "%sKV pool set to %.0f blocks of %.0f tokens (%.0f tokens of KV)", out->len ? ". " : "",
                      blocks, size, blocks * size);
}

static void fact_token_count(const struct run_folder *run, struct km_buf *out)
{
    if (run->seed.by_usage)
        km_buf_puts(out, "Token counts are the server's and include the chat template, because the client had no "
                         "tokenizer");
}

/* Writes the fact of the first run of a row and arm. False if there is no run. */
static bool fact_of_place(const struct report *r, const struct report_table *t, int row, int arm, fact_fn fact,
                          struct km_buf *out)
{
    km_buf_clear(out);
    for (int k = 0; k < t->reps; k++) {
        const struct run_folder *run = report_run_at(r, t, row, arm, k);
        if (run) {
            fact(run, out);
            return true;
        }
    }
    return false;
}

/* Adds one note if the fact is the same for all rows and arms, else one note for each of them. */
static void note_fact(const struct report *r, struct report_table *t, fact_fn fact)
{
    const struct suite_table *s = t->spec;
    struct km_buf first = {0}, text = {0};
    bool same = true, any = false;
    int places = s->n_rows * s->n_arms;
    for (int i = 0; i < places; i++) {
        if (!fact_of_place(r, t, i / s->n_arms, i % s->n_arms, fact, &text))
            continue;
        if (!any)
            km_buf_puts(&first, km_buf_str(&text));
        same = same && !strcmp(km_buf_str(&first), km_buf_str(&text));
        any = true;
    }
    if (same && first.len)
        km_buf_printf(&t->notes, "%s.\n", first.data);
    for (int i = 0; i < places && !same; i++) {
        if (!fact_of_place(r, t, i / s->n_arms, i % s->n_arms, fact, &text) || !text.len)
            continue;
        report_put_label(&t->notes, s, i / s->n_arms, i % s->n_arms);
        km_buf_printf(&t->notes, ": %s.\n", text.data);
    }
    t->notes.oom |= first.oom || text.oom;
    km_buf_free(&first);
    km_buf_free(&text);
}

/* Adds the note on how the cells, the intervals and the ratios were computed from the runs. */
static void note_method(const struct report *r, struct report_table *t)
{
    int only_a = 0, only_b = 0;
    if (t->reps > 1)
        km_buf_printf(
            &t->notes,
            "Each cell is the %s of %d runs. The rows ran in turn, so that a drift of the machine affects all "
            "rows alike.",
            r->suite->median ? "median" : "mean", t->reps);
    else
        km_buf_printf(&t->notes, "There is one run per row.%s",
                      t->n_contrasts ? " The 95% confidence intervals cover the spread between conversations, not the "
                                       "spread between runs."
                                     : "");
    km_buf_printf(&t->notes, " Figures are computed %s.\n",
                  r->suite->profile == HZ_SEED ? "as vLLM's benchmark scripts compute them (profile seed)"
                                               : "by kvmark's own definitions (profile strict)");
    for (int i = 0; i < t->n_contrasts; i++) {
        only_a += t->contrasts[i].cmp.only_a;
        only_b += t->contrasts[i].cmp.only_b;
    }
    if (only_a || only_b)
        km_buf_printf(&t->notes,
                      "Some requests were answered on one side of a pair only: %d by the baseline, %d by the row "
                      "compared with it. The cells include these requests; the ratios do not.\n",
                      only_a, only_b);
}

/* Warns of missing runs and failed requests of one row and arm. */
static void warn_of_place(const struct report *r, struct report_table *t, int row, int arm)
{
    int missing = 0, failed = 0, sent = 0;
    const char *why = "";
    for (int k = 0; k < t->reps; k++) {
        const struct run_folder *run = report_run_at(r, t, row, arm, k);
        int i = t->slot[(row * t->spec->n_arms + arm) * t->reps + k];
        if (run) {
            failed += run->seed.requests_failed;
            sent += run->seed.requests_failed + run->seed.requests_ok;
        } else if (i >= 0) {
            missing++;
            why = r->runs[i].why;
        }
    }
    if (missing) {
        report_put_label(&t->warnings, t->spec, row, arm);
        km_buf_printf(&t->warnings, ": %d of %d runs missing (%s).\n", missing, t->reps, why);
    }
    if (failed) {
        report_put_label(&t->warnings, t->spec, row, arm);
        km_buf_printf(&t->warnings, ": %d of %d requests FAILED. The latency figures leave them out.\n", failed, sent);
    }
}

/* Warns of runs that sent different requests or were made by different builds, and of runs whose client was too slow.
 */
static void warn_of_runs(const struct report *r, struct report_table *t)
{
    const char *sha = NULL, *binary = NULL, *doubt = "";
    bool unlike = false, binaries = false;
    int doubtful = 0, runs = 0;
    for (int i = 0; i < t->spec->n_rows * t->spec->n_arms * t->reps; i++) {
        int at = t->slot[i];
        if (at < 0 || !r->runs[at].loaded)
            continue;
        const struct run_folder *run = &r->runs[at].run;
        const char *run_sha = report_run_text(run, "workload", "sha256");
        const char *run_binary = report_run_text(run, "provenance", "binary_sha256");
        unlike = unlike || (sha && strcmp(sha, run_sha));
        binaries = binaries || (binary && strcmp(binary, run_binary));
        sha = run_sha;
        binary = run_binary;
        runs++;
        if (strcmp(report_run_text(run, "health", "verdict"), "doubtful"))
            continue;
        const cJSON *health = cJSON_GetObjectItemCaseSensitive(run->json, "health");
        const cJSON *first = cJSON_GetArrayItem(cJSON_GetObjectItemCaseSensitive(health, "doubts"), 0);
        doubtful++;
        doubt = cJSON_IsString(first) ? first->valuestring : doubt;
    }
    if (unlike)
        km_buf_puts(&t->warnings, "The runs did NOT all send the same requests: the checksums of their workloads "
                                  "differ.\n");
    if (binaries)
        km_buf_puts(&t->warnings, "The runs were made by different builds of the program.\n");
    if (doubtful)
        km_buf_printf(&t->warnings,
                      "The health of the load client was DOUBTFUL in %d of %d runs, so that its own delays may be part "
                      "of the figures: %s.\n",
                      doubtful, runs, doubt);
}

static void make_notes(const struct report *r, struct report_table *t)
{
    static const fact_fn facts[] = {fact_setup, fact_simulated, fact_dummy, fact_text, fact_memory, fact_token_count};
    for (int i = 0; i < t->spec->n_notes; i++)
        km_buf_printf(&t->notes, "%s\n", t->spec->notes[i]);
    for (size_t i = 0; i < sizeof facts / sizeof *facts; i++)
        note_fact(r, t, facts[i]);
    note_method(r, t);
    for (int row = 0; row < t->spec->n_rows; row++)
        for (int arm = 0; arm < t->spec->n_arms; arm++)
            warn_of_place(r, t, row, arm);
    warn_of_runs(r, t);
}

/* The contrast with the best ratio of the first compared figure. */
static const struct report_contrast *best_contrast(const struct report_table *t)
{
    const struct report_contrast *best = &t->contrasts[0];
    for (int i = 1; i < t->n_contrasts; i++) {
        const struct report_contrast *c = &t->contrasts[i];
        const struct compare_delta *a = &best->cmp.deltas[0], *b = &c->cmp.deltas[0];
        if (c->cmp.n && isfinite(b->ratio) && (!isfinite(a->ratio) || (b->ratio < a->ratio) == b->metric->lower_better))
            best = c;
    }
    return best;
}

/* "With against Without: input tokens per second +61.2% (95% confidence interval ...), better; mean TTFT ..." */
static void make_headline(struct report_table *t)
{
    if (!t->n_contrasts)
        return;
    const struct suite_table *s = t->spec;
    const struct report_contrast *c = best_contrast(t);
    struct km_buf *b = &t->headline;
    int figures = 0;
    report_put_label(b, s, c->row, c->arm);
    km_buf_printf(b, " against %s:", c->base_row == c->row ? s->arms[c->base_arm].label : s->rows[c->base_row].label);
    for (int i = 0; i < c->cmp.n && figures < 2; i++) {
        const struct compare_delta *d = &c->cmp.deltas[i];
        if (!isfinite(d->ratio))
            continue;
        km_buf_printf(b, "%s %s ", figures ? ";" : "", d->metric->name);
        table_put_change(b, 1, d->ratio);
        if (isfinite(d->lo)) {
            km_buf_puts(b, figures ? " (95% interval " : " (95% confidence interval ");
            table_put_change(b, 1, d->lo);
            km_buf_puts(b, " to ");
            table_put_change(b, 1, d->hi);
            km_buf_puts(b, ")");
        }
        if (d->verdict == COMPARE_NOT_JUDGED)
            km_buf_puts(b, " (one run each, no interval)");
        else
            km_buf_printf(b, ", %s%s", compare_verdict_word(d->verdict), d->pairs == 1 ? " (on one pair)" : "");
        figures++;
    }
    km_buf_puts(b, figures ? "." : " nothing to compare yet.");
}

int report_make_notes(struct report *r, struct km_err *err)
{
    for (int i = 0; i < r->suite->n_tables; i++) {
        struct report_table *t = &r->tables[i];
        if (!t->reps)
            continue;
        make_notes(r, t);
        make_headline(t);
        if (!km_buf_ok(&t->notes) || !km_buf_ok(&t->warnings) || !km_buf_ok(&t->headline))
            return report_no_memory(err);
    }
    return 0;
}
