/* The figures by name: what a suite's column, a comparison and a limit may ask for.
 *
 * A metric's key is its path in run.json's summary ("input_tps", "ttft_ms.mean"). Some are statistics over
 * requests, so that a comparison can resample requests; the others are one figure a run. */
#ifndef HZ_METRIC_H
#define HZ_METRIC_H

#include "harness/run/runfolder.h"
#include "harness/run/summary.h"

enum hz_sample { HZ_PER_RUN, HZ_TTFT, HZ_TPOT, HZ_E2E }; /* what the figure is a statistic of */

struct hz_metric {
    const char *key;
    const char *title; /* a column's default title: "Mean TTFT (ms)" */
    const char *name;  /* inside a sentence: "mean TTFT" */
    bool lower_better;
    int decimals;
    enum hz_sample sample;
    double q;  /* percentile in [0, 1]; <0: the mean */
    int min_n; /* requests from which a 95% interval of it exists; 0: explains, is not judged */
};

/* NULL, and KM_EINVAL with the nearest key in err, when there is none. */
const struct hz_metric *hz_metric_find(const char *key, struct km_err *err);
const struct hz_metric *hz_metric_at(int i); /* NULL past the end; run figures first */
double hz_metric_value(const struct hz_metric *m, const struct hz_summary *s); /* NAN: not there */

/* One answered request's TTFT, TPOT or E2E in milliseconds, by the definitions of summary.h; NAN: it has none. */
double hz_metric_sample(enum hz_sample what, const struct hz_rec *r, const struct run_folder *run,
                        enum hz_profile profile);

#endif
