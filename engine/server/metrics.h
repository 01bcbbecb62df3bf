/* The body of /metrics, in Prometheus' text format.
 *
 * A `met` is the set of histograms that only the server can fill, because it sees whole requests. A `met_facts` is a
 * snapshot of the counters that the engine and the connections keep. Names are vLLM's where vLLM has a metric of the
 * same meaning, and kvmark_* otherwise. To add a metric, add a row to a table of metrics.c. */
#ifndef SRV_METRICS_H
#define SRV_METRICS_H

#include "base/buf.h"
#include "engine/engine.h"
#include "engine/server/http.h"

/* The histograms; times in seconds, sizes in tokens. What each measures is the help text in metrics.c. */
enum met_kind {
    MET_TTFT,
    MET_ITL,
    MET_TPOT,
    MET_E2E,
    MET_QUEUE,
    MET_PREFILL,
    MET_DECODE,
    MET_PROMPT,
    MET_GENERATED,
    MET_CACHED,
    MET_KINDS
};

enum { MET_MAX_EDGES = 22 };

struct met {
    struct {
        int64_t counts[MET_MAX_EDGES + 1]; /* observations in each bucket alone; the last bucket is +Inf */
        int64_t n;
        double sum;
    } hist[MET_KINDS];
};

void met_observe(struct met *m, enum met_kind k, double v);

struct met_facts {
    const char *model, *device, *kv; /* values of labels */
    const struct eng_opts *opts;
    struct eng_stats stats;
    const struct http_stats *http;
    int live; /* completions and chats in work */
};
void met_write(const struct met *m, const struct met_facts *f, struct km_buf *out);

#endif
