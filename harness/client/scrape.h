/* A server's Prometheus counters before and after a run. */
#ifndef SCRAPE_H
#define SCRAPE_H

#include "base/json.h"
#include "harness/client/target.h"

/* GET /metrics as {"name": sum over labels}; NULL when the server has none. Histogram buckets are left out. */
cJSON *scrape_metrics(const struct target *target);
/* after - before for counters (names ending in _total, _sum or _count); gauges as they are after. */
cJSON *scrape_difference(const cJSON *before, const cJSON *after);

#endif
