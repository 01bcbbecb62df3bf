/* A server's Prometheus counters before and after a run.
 *
 * Metrics are a JSON object {"name": value}, in the order of the server's text; the values of one name are summed over
 * its labels. Lines that are no sample, samples that are not finite, and histogram buckets are left out. Both functions
 * take time proportional to the number of names. The caller owns the results (cJSON_Delete). */
#ifndef SCRAPE_H
#define SCRAPE_H

#include "base/json.h"
#include "harness/client/target.h"

enum { SCRAPE_MAX_LINE = 65536 }; /* longer lines are left out */

/* GET /metrics. NULL when the server has no metrics, or without memory. */
cJSON *scrape_metrics(const struct target *target);
/* The metrics in a text of Prometheus' format, whatever its bytes are. NULL without memory. */
cJSON *scrape_parse(const char *text, size_t len);
/* after - before for counters (names that end in _total, _sum or _count); gauges as they are in `after`. NULL when
 * `after` is NULL, or without memory. */
cJSON *scrape_difference(const cJSON *before, const cJSON *after);

#endif
