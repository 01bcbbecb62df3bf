/* The body of /metrics, in Prometheus' text format.
 *
 * A `met` is the set of histograms of whole requests, which the server fills. A `met_facts` is a snapshot of the
 * counters of the engine and the connections. A metric has vLLM's name if vLLM has a metric of the same meaning, else a
 * name that begins with kvmark_. To add a metric, add a row to a table of metrics.c. */
#ifndef SRV_METRICS_H
#define SRV_METRICS_H

#include "base/buf.h"
#include "engine/engine.h"
#include "engine/server/http.h"

/* The histograms, in seconds or tokens. The help texts in metrics.c define them. */
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
    int live; /* completions and chats in progress */
};
/* Appends the body of /metrics. */
void met_write(const struct met *m, const struct met_facts *f, struct km_buf *out);

#endif
