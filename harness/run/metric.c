/* The table of figures. Thresholds: a two-sided 95% order-statistic interval of a percentile exists from
 * 6 (p50), 36 (p90), 72 (p95) and 368 (p99) samples. */
#include "harness/run/metric.h"

#include <stddef.h>
#include <string.h>

struct entry {
    struct hz_metric m;
    size_t off; /* of a double in struct hz_summary, or in the struct hz_stat there */
};

#define RUN(key, title, name, lower, dec, field)                                                               \
    {                                                                                                          \
        {key, title, name, lower, dec, HZ_PER_RUN, -1, 1}, offsetof(struct hz_summary, field)                  \
    }
/* Explains, but is not better or worse by itself. */
#define INFO(key, title, name, dec, field)                                                                     \
    {                                                                                                          \
        {key, title, name, false, dec, HZ_PER_RUN, -1, 0}, offsetof(struct hz_summary, field)                  \
    }
#define STAT(field, tag, what, sample, stat, word, q, min)                                                     \
    {                                                                                                          \
        {field "." #stat, word " " tag " (ms)", what " " tag, true, 2, sample, q, min},                        \
            offsetof(struct hz_summary, HZ_FIELD.stat)                                                         \
    }
#define STATS(field, tag, sample)                                                                              \
    STAT(field, tag, "mean", sample, mean, "Mean", -1, 2),                                                     \
        STAT(field, tag, "median", sample, p50, "P50", 0.50, 6),                                               \
        STAT(field, tag, "p90", sample, p90, "P90", 0.90, 36),                                                 \
        STAT(field, tag, "p95", sample, p95, "P95", 0.95, 72),                                                 \
        STAT(field, tag, "p99", sample, p99, "P99", 0.99, 368)

static const struct entry table[] = {
    RUN("input_tps", "Input TPS", "input tokens per second", false, 2, input_tps),
    RUN("output_tps", "Output TPS", "output tokens per second", false, 2, output_tps),
    RUN("total_tps", "Total TPS", "total tokens per second", false, 2, total_tps),
    RUN("request_rate", "Requests/s", "requests per second", false, 3, request_rate),
    RUN("duration_s", "Duration (s)", "duration", true, 2, duration_s),
#define HZ_FIELD ttft_ms
    STATS("ttft_ms", "TTFT", HZ_TTFT),
#undef HZ_FIELD
#define HZ_FIELD tpot_ms
    STATS("tpot_ms", "TPOT", HZ_TPOT),
#undef HZ_FIELD
#define HZ_FIELD itl_ms
    STATS("itl_ms", "ITL", HZ_PER_RUN),
#undef HZ_FIELD
#define HZ_FIELD e2e_ms
    STATS("e2e_ms", "E2E", HZ_E2E),
#undef HZ_FIELD
#define HZ_FIELD response_ttft_ms
    STATS("response_ttft_ms", "response TTFT", HZ_PER_RUN),
#undef HZ_FIELD
    INFO("hit_rate", "Hit rate", "hit rate", 4, hit_rate),
    INFO("prompt_tokens", "Prompt tokens", "prompt tokens", 0, prompt_tokens),
    INFO("cached_tokens", "Cached tokens", "cached tokens", 0, cached_tokens),
    INFO("mean_input", "Mean input", "mean input", 1, mean_input),
    INFO("mean_output", "Mean output", "mean output", 1, mean_output),
};
enum { N = sizeof table / sizeof *table };

const struct hz_metric *hz_metric_at(int i)
{
    return i >= 0 && i < N ? &table[i].m : NULL;
}

const struct hz_metric *hz_metric_find(const char *key, struct km_err *err)
{
    const char *names[N];
    for (int i = 0; i < N; i++) {
        if (!strcmp(table[i].m.key, key))
            return &table[i].m;
        names[i] = table[i].m.key;
    }
    const char *near = km_nearest(key, names, N);
    km_fail(err, KM_EINVAL, "there is no figure \"%s\"; %s%s%s", key,
            near ? "did you mean " : "figures are named as in run.json's summary, for example ",
            near ? near : "ttft_ms.mean", near ? "?" : "");
    return NULL;
}

double hz_metric_value(const struct hz_metric *m, const struct hz_summary *s)
{
    const struct entry *e = (const struct entry *)((const char *)m - offsetof(struct entry, m));
    double v;
    memcpy(&v, (const char *)s + e->off, sizeof v);
    return v;
}

double hz_metric_sample(enum hz_sample what, const struct hz_rec *r, const struct hz_run *run,
                        enum hz_profile profile)
{
    const char *kind = NULL;
    (void)km_json_str(cJSON_GetObjectItemCaseSensitive(run->json, "workload"), "kind", false, &kind, NULL);
    struct hz_row row = hz_row_of(&run->trace, r, wl_kind_named(kind), profile);
    return what == HZ_TTFT ? row.ttft_ms : what == HZ_TPOT ? row.tpot_ms : row.e2e_ms;
}
