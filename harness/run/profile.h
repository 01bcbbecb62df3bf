/* The two profiles, sets of definitions of latency, duration and token counts: `seed` and `strict`.
 *
 * `seed` has the definitions of the write-up's tools, so that results can be compared with its tables: those of
 * benchmark_serving_multi_turn.py for conversations and those of `vllm bench serve` for prompts. `strict` has kvmark's
 * own. harness/run/summary.h lists all definitions. The code for everything that differs is in profile.c. */
#ifndef HZ_PROFILE_H
#define HZ_PROFILE_H

#include "harness/run/trace.h"
#include "workloads/workload.h"

enum hz_profile { HZ_SEED, HZ_STRICT };

/* The values of one request under a profile. All are NAN for a request that failed. */
struct hz_request {
    double ttft_ms, tpot_ms, e2e_ms; /* tpot_ms: NAN if it is not defined; then the statistics leave it out */
    double response_ttft_ms;         /* TTFT from the planned send instead of the start */
    double input, output;            /* tokens; NAN: not known */
    double start_s, end_s;           /* start, and start + E2E, from the beginning of the measured phase */
};
struct hz_request hz_request_of(const struct hz_trace *t, const struct hz_rec *r, enum wl_kind kind,
                                enum hz_profile profile);

/* Duration of the measured phase in seconds, from its n requests; NAN: no request. */
double hz_profile_duration(const struct hz_trace *t, enum wl_kind kind, enum hz_profile profile,
                           const struct hz_request *requests, int n);

/* Stores the inter-token latencies of all requests that succeeded, in ms, in a new array *out (km_free). Returns their
 * number; -1: no memory. */
int hz_profile_itl(const struct hz_trace *t, enum hz_profile profile, double **out);

/* True if standard deviations have the divisor n, as numpy.std has, and not n - 1. */
bool hz_profile_std_by_n(enum wl_kind kind, enum hz_profile profile);

/* `count`, or `other` if `count` is not known (-1); NAN: neither is known. */
double hz_count_or(int count, int other);

#endif
