/* The two sets of definitions of latency, duration and token counts: `seed` and `strict`.
 *
 * `seed` has the definitions of the write-up's own tools, so that its tables can be compared with ours:
 * benchmark_serving_multi_turn.py for conversations, `vllm bench serve` for prompts. `strict` has ours. Everything that
 * differs between them is in profile.c; harness/run/summary.h lists the definitions. */
#ifndef HZ_PROFILE_H
#define HZ_PROFILE_H

#include "harness/run/trace.h"
#include "workloads/workload.h"

enum hz_profile { HZ_SEED, HZ_STRICT };

/* One request that succeeded, under a profile. */
struct hz_request {
    double ttft_ms, tpot_ms, e2e_ms; /* tpot_ms: NAN when the request has none; it is left out of the statistics */
    double response_ttft_ms;         /* TTFT from the planned send instead of the actual one */
    double input, output;            /* tokens; NAN: not known */
    double start_s, end_s;           /* from the beginning of the measured phase */
};

/* All NAN for a request that failed. */
struct hz_request hz_request_of(const struct hz_trace *t, const struct hz_rec *r, enum wl_kind kind,
                                enum hz_profile profile);

/* Duration of the measured phase in seconds, from its n requests; NAN: no request. */
double hz_profile_duration(const struct hz_trace *t, enum wl_kind kind, enum hz_profile profile,
                           const struct hz_request *requests, int n);

/* The inter-token latencies of all requests in ms, as a new array *out (km_free). Returns their number, or -1 without
 * memory. */
int hz_profile_itl(const struct hz_trace *t, enum hz_profile profile, double **out);

/* The first of the two counts that is known (>= 0); NAN: neither is. */
double hz_count_or(int count, int other);

#endif
