#include "harness/run/profile.h"

#include "base/mem.h"

#include <math.h>

static double ms(int64_t ns)
{
    return (double)ns / 1e6;
}

double hz_count_or(int count, int other)
{
    return count >= 0 ? count : other >= 0 ? other : NAN;
}

/* benchmark_serving_multi_turn.py. Latency ends at [DONE]. The first event may hold several tokens; the TTFT is then
 * reduced by the TPOT of all but one of them. A request without a TPOT counts as a TPOT of 0. */
static struct hz_request seed_turn(const struct hz_trace *t, const struct hz_rec *r)
{
    double raw = ms(r->first_ns - r->start_ns), latency = ms(r->done_ns - r->start_ns);
    /* An answer that is all reasoning has no content to count, so the server's count replaces it. */
    double out = hz_count_or(r->local_output_tokens > 0 ? r->local_output_tokens : -1, r->output_tokens);
    double first = r->local_first_tokens;
    for (int i = 0; first < 0 && i < r->n_ticks; i++)
        if (t->ticks[r->tick0 + (size_t)i].tokens > 0)
            first = t->ticks[r->tick0 + (size_t)i].tokens;
    double tpot = out > 1 && out > first ? (latency - raw) / (out - first) : 0;
    return (struct hz_request){.ttft_ms = first <= 1 ? raw : fmax(0.1, raw - (first - 1) * tpot),
                               .tpot_ms = tpot,
                               .e2e_ms = latency,
                               .input = hz_count_or(r->local_prompt_tokens, r->prompt_tokens),
                               .output = out};
}

/* `vllm bench serve`. The first event with choices ends the TTFT, even if it has only a role. Output tokens are the
 * server's count, input tokens the data set's. An answer that was not streamed has no TPOT. */
static struct hz_request seed_prompt(const struct hz_rec *r)
{
    double ttft = ms(r->first_any_ns - r->start_ns), latency = ms(r->last_any_ns - r->start_ns);
    double out = hz_count_or(r->output_tokens, r->local_output_tokens);
    return (struct hz_request){.ttft_ms = ttft,
                               .tpot_ms = out > 1 && latency > ttft ? (latency - ttft) / (out - 1) : NAN,
                               .e2e_ms = latency,
                               .input = hz_count_or(r->local_prompt_tokens, r->prompt_tokens),
                               .output = out};
}

/* strict: from the first event with a token to the last one. The tokens of the first event are not in the TPOT. */
static struct hz_request strict_request(const struct hz_trace *t, const struct hz_rec *r)
{
    double out = hz_count_or(r->output_tokens, r->local_output_tokens), first = 0;
    for (int i = 0; first == 0 && i < r->n_ticks; i++)
        first = t->ticks[r->tick0 + (size_t)i].tokens;
    if (first == 1 && r->local_first_tokens > 1)
        first = r->local_first_tokens;
    return (struct hz_request){.ttft_ms = ms(r->first_ns - r->start_ns),
                               .tpot_ms = out > first ? ms(r->last_ns - r->first_ns) / (out - first) : NAN,
                               .e2e_ms = ms(r->last_ns - r->start_ns),
                               .input = hz_count_or(r->prompt_tokens, r->local_prompt_tokens),
                               .output = out};
}

static bool has_bench_serve_rules(enum wl_kind kind)
{
    return wl_kind_ops(kind)->seed_rules == WL_RULES_BENCH_SERVE;
}

struct hz_request hz_request_of(const struct hz_trace *t, const struct hz_rec *r, enum wl_kind kind,
                                enum hz_profile profile)
{
    if (!r->ok)
        return (struct hz_request){NAN, NAN, NAN, NAN, NAN, NAN, NAN, NAN};
    struct hz_request q = profile == HZ_STRICT          ? strict_request(t, r)
                          : has_bench_serve_rules(kind) ? seed_prompt(r)
                                                        : seed_turn(t, r);
    q.response_ttft_ms = q.ttft_ms + ms(r->start_ns - r->sched_ns);
    q.start_s = (double)(r->start_ns - t->begin_ns) / 1e9;
    q.end_s = q.start_s + q.e2e_ms / 1e3;
    return q;
}

double hz_profile_duration(const struct hz_trace *t, enum wl_kind kind, enum hz_profile profile,
                           const struct hz_request *requests, int n)
{
    double first = INFINITY, latest = -INFINITY, end = 0, last = -INFINITY;
    if (profile == HZ_SEED && has_bench_serve_rules(kind))
        return (double)(t->end_ns - t->begin_ns) / 1e9;
    for (int i = 0; i < n; i++) {
        first = fmin(first, requests[i].start_s);
        last = fmax(last, requests[i].end_s);
        if (requests[i].start_s > latest) {
            latest = requests[i].start_s;
            end = requests[i].end_s;
        }
    }
    return n ? (profile == HZ_SEED ? end : last) - first : NAN;
}

int hz_profile_itl(const struct hz_trace *t, enum hz_profile profile, double **out)
{
    bool by_token = profile == HZ_STRICT; /* an event of k tokens is k intervals of a k-th; seed: one interval */
    size_t n = 0, cap = 0;
    for (int i = 0; i < t->n; i++)
        for (int k = 0; t->recs[i].ok && k < t->recs[i].n_ticks; k++) {
            int32_t tokens = t->ticks[t->recs[i].tick0 + (size_t)k].tokens;
            cap += by_token ? (size_t)(tokens > 0 ? tokens : 0) : 1;
        }
    if (cap > INT32_MAX || !(*out = km_calloc(cap, sizeof **out)))
        return -1;
    for (int i = 0; i < t->n; i++) {
        const struct hz_rec *r = &t->recs[i];
        const struct hz_tick *last = NULL;
        for (int k = 0; r->ok && k < r->n_ticks; k++) {
            const struct hz_tick *now = &t->ticks[r->tick0 + (size_t)k];
            if (by_token && now->tokens <= 0)
                continue;
            int times = by_token ? now->tokens : 1;
            for (int j = 0; last && j < times; j++)
                (*out)[n++] = ms(now->ns - last->ns) / times;
            last = now;
        }
    }
    return (int)n;
}
