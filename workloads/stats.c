/* Statistics of a set: the numbers of tokens of its messages and its requests.
 *
 * A request sends all messages of its conversation so far. The set's answers represent the server's answers, whose
 * lengths may differ. */
#include "workloads/workload.h"

#include "base/mem.h"
#include "base/sort.h"

#include <math.h>

/* Statistics of v[n], which is sorted in place. */
static struct wl_column_stats column_stats(double *v, int n)
{
    struct wl_column_stats d = {n, NAN, NAN, NAN, NAN, NAN, NAN, NAN, NAN, NAN};
    if (n == 0)
        return d;
    km_sort_doubles(v, (size_t)n);
    double sum = 0, squares = 0;
    for (int i = 0; i < n; i++)
        sum += v[i];
    d.mean = sum / n;
    for (int i = 0; i < n; i++)
        squares += (v[i] - d.mean) * (v[i] - d.mean);
    if (n > 1)
        d.std = sqrt(squares / (n - 1));
    d.min = v[0];
    d.p25 = km_percentile(v, n, 0.25);
    d.p50 = km_percentile(v, n, 0.50);
    d.p75 = km_percentile(v, n, 0.75);
    d.p90 = km_percentile(v, n, 0.90);
    d.p99 = km_percentile(v, n, 0.99);
    d.max = v[n - 1];
    return d;
}

/* The columns of wl_stats. */
enum column { MESSAGES, FIRST, USER, ANSWER, REQUEST, N_COLUMNS };

/* Writes the column's values to v and returns their number. From a message without a token count (-1) on, the rest of
 * its conversation is left out, because the lengths of its later requests are not known either. */
static int gather(const struct wl_set *s, enum column col, double *v)
{
    int n = 0;
    for (int c = 0; c < s->n; c++) {
        const struct wl_conv *conv = &s->convs[c];
        double history = 0;
        bool known = true;
        if (col == MESSAGES)
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
    struct wl_column_stats *const columns[N_COLUMNS] = {[MESSAGES] = &out->messages,
                                                        [FIRST] = &out->first_prompt,
                                                        [USER] = &out->user_tokens,
                                                        [ANSWER] = &out->answer_tokens,
                                                        [REQUEST] = &out->request_input};
    size_t most = (size_t)(s->n_requests > s->n ? s->n_requests : s->n);
    double *v = km_reallocarray(NULL, most, sizeof *v);
    for (int k = 0; k < N_COLUMNS; k++)
        *columns[k] = column_stats(v, v ? gather(s, (enum column)k, v) : 0);
    km_free(v);
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
    const double means[] = {d->mean, d->std}, rest[] = {d->min, d->p25, d->p50, d->p75, d->p90, d->p99, d->max};
    km_buf_printf(b, "%-28s %7d", name, d->n);
    for (int i = 0; i < 2; i++)
        put_cell(b, means[i], 2);
    for (int i = 0; i < 7; i++)
        put_cell(b, rest[i], 0);
    km_buf_putc(b, '\n');
}

void wl_statistics_print(const struct wl_set *s, struct km_buf *out)
{
    static const char *const heads[] = {"mean", "std", "min", "25%", "50%", "75%", "90%", "99%", "max"};
    bool prompts = wl_kind_ops(s->kind)->single_prompts;
    struct wl_stats st;
    wl_statistics(s, &st);
    km_buf_printf(out, "%s: %d %s%s, %d request%s\n", s->name, s->n, prompts ? "prompt" : "conversation",
                  s->n == 1 ? "" : "s", s->n_requests, s->n_requests == 1 ? "" : "s");
    if (s->text[0])
        km_buf_printf(out, "source text: %s\n", s->text);
    km_buf_printf(out, "SHA-256: %s\n\n%-28s %7s", s->sha256, "", "count");
    for (int i = 0; i < 9; i++)
        km_buf_printf(out, " %9s", heads[i]);
    km_buf_putc(out, '\n');
    if (!prompts) {
        put_row(out, "messages per conversation", &st.messages);
        put_row(out, "tokens, first user message", &st.first_prompt);
    }
    put_row(out, prompts ? "tokens, prompt" : "tokens, user message", &st.user_tokens);
    put_row(out, prompts ? "tokens, output to request" : "tokens, answer to request", &st.answer_tokens);
    if (!prompts)
        put_row(out, "tokens, request input", &st.request_input);
    km_buf_puts(out, prompts ? "\nPrompt tokens do not include the chat template.\n"
                             : "\nA request's input is its user message and all messages before it. Tokens do not "
                               "include the chat template.\n");
}
