/* The definitions of harness/run/summary.h as code: seed_turn, seed_prompt and strict_request, one per list there. */
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

/* The tokens of the first token event; 0: there is none. */
static int first_event_tokens(const struct hz_trace *t, const struct hz_rec *r)
{
    for (int i = 0; i < r->n_ticks; i++)
        if (t->ticks[r->tick0 + (size_t)i].tokens > 0)
            return t->ticks[r->tick0 + (size_t)i].tokens;
    return 0;
}

/* benchmark_serving_multi_turn.py. The first token event may hold several tokens; the TTFT is then reduced by the TPOT
 * of all but one of them. */
static struct hz_request seed_turn(const struct hz_trace *t, const struct hz_rec *r)
{
    double to_first = ms(r->first_ns - r->start_ns), latency = ms(r->done_ns - r->start_ns);
    /* An answer that is all reasoning has no content to count, so the server's count replaces it. */
    double out = hz_count_or(r->local_output_tokens > 0 ? r->local_output_tokens : -1, r->output_tokens);
    double first = r->local_first_tokens >= 0 ? r->local_first_tokens : first_event_tokens(t, r);
    double tpot = out > 1 && out > first ? (latency - to_first) / (out - first) : 0;
    return (struct hz_request){.ttft_ms = first <= 1 ? to_first : fmax(0.1, to_first - (first - 1) * tpot),
                               .tpot_ms = tpot,
                               .e2e_ms = latency,
                               .input = hz_count_or(r->local_prompt_tokens, r->prompt_tokens),
                               .output = out};
}

/* `vllm bench serve`. local_prompt_tokens is the data set's count here (harness/run/count.c). */
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

static struct hz_request strict_request(const struct hz_trace *t, const struct hz_rec *r)
{
    double out = hz_count_or(r->output_tokens, r->local_output_tokens), first = first_event_tokens(t, r);
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
    double first_start = INFINITY, last_start = -INFINITY, end_of_last_start = 0, last_end = -INFINITY;
    if (profile == HZ_SEED && has_bench_serve_rules(kind))
        return (double)(t->end_ns - t->begin_ns) / 1e9;
    for (int i = 0; i < n; i++) {
        first_start = fmin(first_start, requests[i].start_s);
        last_end = fmax(last_end, requests[i].end_s);
        if (requests[i].start_s > last_start) {
            last_start = requests[i].start_s;
            end_of_last_start = requests[i].end_s;
        }
    }
    return n ? (profile == HZ_SEED ? end_of_last_start : last_end) - first_start : NAN;
}

bool hz_profile_std_by_n(enum wl_kind kind, enum hz_profile profile)
{
    return profile == HZ_SEED && has_bench_serve_rules(kind);
}

int hz_profile_itl(const struct hz_trace *t, enum hz_profile profile, double **out)
{
    bool by_token = profile == HZ_STRICT; /* an event of n tokens is n intervals of a n-th each; seed: one interval */
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
        const struct hz_tick *before = NULL;
        for (int k = 0; r->ok && k < r->n_ticks; k++) {
            const struct hz_tick *now = &t->ticks[r->tick0 + (size_t)k];
            if (by_token && now->tokens <= 0)
                continue;
            int intervals = by_token ? now->tokens : 1;
            for (int j = 0; before && j < intervals; j++)
                (*out)[n++] = ms(now->ns - before->ns) / intervals;
            before = now;
        }
    }
    return (int)n;
}
