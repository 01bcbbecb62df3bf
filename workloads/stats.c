/* The shape of a set: how many tokens its messages and its requests have. A request carries all messages
 * before it, so its input is counted with the answers that the set holds. */
#include "workloads/workload.h"

#include "base/mem.h"

#include <math.h>
#include <stdlib.h>

static int ascending(const void *a, const void *b)
{
    double x = *(const double *)a, y = *(const double *)b;
    return x < y ? -1 : x > y;
}

static double quantile(const double *v, int n, double q)
{
    double at = q * (n - 1);
    int i = (int)at;
    return i + 1 < n ? v[i] + (v[i + 1] - v[i]) * (at - i) : v[n - 1];
}

/* v is sorted in place. The deviation is that of a sample (n - 1), as vLLM's own table has it. */
static struct wl_column_stats column_stats(double *v, int n)
{
    struct wl_column_stats d = {n, NAN, NAN, NAN, NAN, NAN, NAN, NAN, NAN, NAN};
    if (n == 0)
        return d;
    qsort(v, (size_t)n, sizeof *v, ascending);
    double sum = 0, squares = 0;
    for (int i = 0; i < n; i++)
        sum += v[i];
    d.mean = sum / n;
    for (int i = 0; i < n; i++)
        squares += (v[i] - d.mean) * (v[i] - d.mean);
    if (n > 1)
        d.std = sqrt(squares / (n - 1));
    d.min = v[0];
    d.p25 = quantile(v, n, 0.25);
    d.p50 = quantile(v, n, 0.50);
    d.p75 = quantile(v, n, 0.75);
    d.p90 = quantile(v, n, 0.90);
    d.p99 = quantile(v, n, 0.99);
    d.max = v[n - 1];
    return d;
}

enum column { TURNS, FIRST, USER, ANSWER, REQUEST, COLUMNS };

/* One column's values into v; the number of them. A message of unknown length (-1) spoils its conversation's
 * requests from there on, so those are left out. */
static int gather(const struct wl_set *s, enum column col, double *v)
{
    int n = 0;
    for (int c = 0; c < s->n; c++) {
        const struct wl_conv *conv = &s->convs[c];
        double history = 0;
        bool known = true;
        if (col == TURNS)
            v[n++] = conv->n;
        for (int i = 0; i < conv->n; i++) {
            const struct wl_msg *m = &conv->msgs[i];
            known = known && m->n_tokens >= 0;
            history += m->n_tokens;
            if (!known)
                continue;
            if ((col == FIRST && i == 0) || (col == USER && !m->assistant) || (col == ANSWER && m->assistant))
                v[n++] = m->n_tokens;
            if (col == REQUEST && !m->assistant)
                v[n++] = history;
        }
    }
    return n;
}

void wl_statistics(const struct wl_set *s, struct wl_stats *out)
{
    struct wl_column_stats *cols[COLUMNS] = {&out->turns, &out->first_prompt, &out->user_tokens, &out->answer_tokens,
                                     &out->request_input};
    size_t most = (size_t)(s->n_requests > s->n ? s->n_requests : s->n);
    double *v = km_reallocarray(NULL, most, sizeof *v);
    for (int k = 0; k < COLUMNS; k++)
        *cols[k] = column_stats(v, v ? gather(s, (enum column)k, v) : 0);
    km_free(v);
    out->mean_request_input = out->request_input.mean;
    out->mean_request_output = out->answer_tokens.mean;
}

static void put_cell(struct km_buf *b, double v, int decimals)
{
    if (isnan(v))
        km_buf_printf(b, " %9s", "-");
    else
        km_buf_printf(b, " %9.*f", decimals, v);
}

static void put_row(struct km_buf *b, const char *name, const struct wl_column_stats *d)
{
    km_buf_printf(b, "%-24s %7d", name, d->n);
    const double means[] = {d->mean, d->std},
                 rest[] = {d->min, d->p25, d->p50, d->p75, d->p90, d->p99, d->max};
    for (int i = 0; i < 2; i++)
        put_cell(b, means[i], 2);
    for (int i = 0; i < 7; i++)
        put_cell(b, rest[i], 0);
    km_buf_putc(b, '\n');
}

void wl_statistics_print(const struct wl_set *s, struct km_buf *out)
{
    struct wl_stats st;
    wl_statistics(s, &st);
    bool prompts = wl_kind_ops(s->kind)->single_prompts;
    km_buf_printf(out, "%s: %d %s%s, %d request%s", s->name, s->n, prompts ? "prompt" : "conversation",
                  s->n == 1 ? "" : "s", s->n_requests, s->n_requests == 1 ? "" : "s");
    if (s->text[0])
        km_buf_printf(out, ", text: %s", s->text);
    km_buf_printf(out, "\nsha256 %s\n\n%-24s %7s", s->sha256, "tokens", "n");
    static const char *const heads[] = {"mean", "std", "min", "25%", "50%", "75%", "90%", "99%", "max"};
    for (int i = 0; i < 9; i++)
        km_buf_printf(out, " %9s", heads[i]);
    km_buf_putc(out, '\n');
    if (!prompts) {
        put_row(out, "messages a conversation", &st.turns);
        put_row(out, "first user message", &st.first_prompt);
    }
    put_row(out, prompts ? "prompt" : "user message", &st.user_tokens);
    put_row(out, prompts ? "output asked for" : "answer", &st.answer_tokens);
    if (!prompts)
        put_row(out, "request input", &st.request_input);
    if (!isnan(st.mean_request_input))
        km_buf_printf(
            out, "\na request: %.1f tokens in (%s), %.2f tokens out on average\n", st.mean_request_input,
            prompts ? "without the chat template" : "history and message, without the chat template",
            st.mean_request_output);
}
