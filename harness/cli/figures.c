/* Formats the figures that kvmark run prints. */
#include "harness/cli/figures.h"

#include "base/buf.h"

#include <math.h>
#include <stdio.h>

static void print_stat(struct km_buf *out, const char *name, const struct hz_stat *s)
{
    const double v[] = {s->mean, s->std, s->min, s->p50, s->p90, s->p95, s->p99, s->max};
    km_buf_printf(out, "%-12s %8d", name, s->n);
    for (size_t i = 0; i < sizeof v / sizeof *v; i++) {
        if (isnan(v[i]))
            km_buf_printf(out, " %11s", "-");
        else
            km_buf_printf(out, " %11.2f", v[i]);
    }
    km_buf_putc(out, '\n');
}

/* True if the server stated the number of prompt tokens with every good answer. */
static bool has_server_counts(const struct hz_trace *t)
{
    for (int i = 0; i < t->n; i++)
        if (t->recs[i].ok && t->recs[i].prompt_tokens < 0)
            return false;
    return true;
}

void figures_print(const struct hz_summary *s, const struct hz_trace *t, const cJSON *metrics, const char *dir)
{
    struct km_buf out = {0};
    km_buf_printf(&out, "requests     %d ok, %d failed, %d not sent because of early stop, in %.2f s (profile: %s)\n",
                  s->requests_ok, s->requests_failed, t->abandoned, s->duration_s,
                  s->profile == HZ_SEED ? "seed" : "strict");
    km_buf_printf(&out, "throughput   input %.2f tok/s, output %.2f tok/s, total %.2f tok/s, %.3f requests/s\n",
                  s->input_tps, s->output_tps, s->total_tps, s->request_rate);
    km_buf_printf(&out, "prompts      %.0f tokens by %s", s->prompt_tokens,
                  has_server_counts(t) ? "the server's count" : "the client's count; the server gives none");
    if (!isnan(s->cached_tokens))
        km_buf_printf(&out, ", %.0f of them cached (%.1f%%)", s->cached_tokens, 100 * s->hit_rate);
    const cJSON *computed = cJSON_GetObjectItemCaseSensitive(metrics, "kvmark_computed_tokens_total");
    if (computed)
        km_buf_printf(&out, "; the engine computed %.0f tokens, answers included", computed->valuedouble);
    km_buf_printf(&out, "\n\n%-12s %8s %11s %11s %11s %11s %11s %11s %11s %11s\n", "", "count", "mean", "std", "min",
                  "50%", "90%", "95%", "99%", "max");
    print_stat(&out, "ttft_ms", &s->ttft_ms);
    print_stat(&out, "tpot_ms", &s->tpot_ms);
    print_stat(&out, "itl_ms", &s->itl_ms);
    print_stat(&out, "e2e_ms", &s->e2e_ms);
    km_buf_printf(&out, "\n%s\n", dir);
    fputs(km_buf_str(&out), stdout);
    km_buf_free(&out);
}
