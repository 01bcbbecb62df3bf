/* A server's Prometheus metrics, and their change over a run.
 *
 * Metrics are a JSON object {"name": value} in the order of the server's text. The values of a name are summed over its
 * labels. Lines that are not samples, values that are not finite, and histogram buckets are left out. Parsing and
 * subtracting take time proportional to the number of names. The caller owns the results (cJSON_Delete). */
#ifndef SCRAPE_H
#define SCRAPE_H

#include "base/json.h"
#include "harness/client/target.h"

enum { SCRAPE_MAX_LINE = 65536 }; /* longer lines are left out */

/* Reads GET /metrics. *tiers (tiers may be NULL) becomes what scrape_tiers returns. NULL: the server has no metrics, or
 * there is no memory. */
cJSON *scrape_metrics(const struct target *target, cJSON **tiers);
/* Parses Prometheus' text format; any bytes are accepted. NULL: no memory. */
cJSON *scrape_parse(const char *text, size_t len);
/* The metrics kvmark_cache_tier_NAME of kvmark's own server by their label tier: {"dram": {"hit_tokens_total": 3}}. An
 * empty object if there are none. */
cJSON *scrape_tiers(const char *text, size_t len);
/* Returns after - before for counters (names that end in _total, _sum or _count), and the value in `after` for gauges.
 * Objects among the members are subtracted member by member. before may be NULL. NULL: `after` is NULL, or there is no
 * memory. */
cJSON *scrape_difference(const cJSON *before, const cJSON *after);

#endif
