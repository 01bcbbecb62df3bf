/* Two configurations against each other: what changed, how sure that is, and the word for it.
 *
 * A side is one run or the repeats of it; run k of A and run k of B are a pair, measured next to each other.
 * Ratios are B over A. For figures over requests, requests are matched by (conversation, turn) within a pair
 * and the 95% interval comes from a hierarchical bootstrap: pairs are drawn, then conversations (whole ones:
 * their turns depend on each other; the same ones in every pair, because every pair ran the same
 * conversations); where there are few of either, its part of the interval is widened by Student's t. One figure
 * a run (tokens per second) rests on pairs alone and has no interval with one pair. Percentiles are compared
 * only where the number of requests gives them an interval at all. */
#ifndef HZ_COMPARE_H
#define HZ_COMPARE_H

#include "base/option.h"
#include "harness/run/metric.h"
#include "harness/run/runfolder.h"
#include "harness/report/tables.h"

enum hz_verdict { HZ_NOT_JUDGED, HZ_BETTER, HZ_WORSE, HZ_NO_DIFFERENCE, HZ_TOO_NOISY };
const char *hz_verdict_word(enum hz_verdict v); /* "better", "no detectable difference" ... */

struct hz_delta {
    const struct hz_metric *metric;
    double a, b;                        /* mean or median over the runs of a side; NAN: not there */
    double a_min, a_max, b_min, b_max;  /* over the runs */
    double ratio, lo, hi;               /* on matched requests, with its 95% interval; NAN: none, see why */
    double p;                           /* of "no difference", two-sided, by the same draws */
    int pairs, requests, conversations; /* that the ratio rests on; requests are those of all pairs */
    enum hz_verdict verdict;
    char why[160]; /* when there is no ratio, no interval or no difference: the reason; else "" */
};

struct hz_comparison {
    int pairs;
    struct hz_delta *deltas; /* [n], in the order asked for */
    int n;
    int only_a, only_b; /* requests that only one side answered; left out of the ratios */
    bool unlike;        /* the workloads differ and force said to go on */
};

/* Defaults and ranges are the rows of harness/report/compare_options.c. */
struct hz_compare_opts {
    enum hz_profile profile;
    bool median;             /* over the runs of a side; default: the mean */
    bool force;              /* compare unlike workloads */
    int draws;               /* of the bootstrap */
    uint64_t seed;           /* of the draws */
    double noise; /* half-width of the interval beyond which an undecided figure is "too noisy" */
    const struct hz_metric *const *metrics; /* NULL: every one that can be judged */
    int n_metrics;
};
struct hz_compare_opts hz_compare_defaults(void);
/* The options as a table of base/option.h, for command lines. */
struct km_option_group hz_compare_option_group(struct hz_compare_opts *o);

/* Unlike workloads (SHA-256 of what was sent) are KM_EINVAL unless forced. */
int hz_compare(struct hz_comparison *out, const struct run_folder *const *a, const struct run_folder *const *b,
               int pairs, const struct hz_compare_opts *o, struct km_err *err);
void hz_comparison_free(struct hz_comparison *c);

/* Verdicts over a family of comparisons, with Holm's correction: hz_compare does it for its own deltas, a table
 * of several rows does it again over all of them. */
void hz_judge(struct hz_delta *const *d, int n, double noise);

/* Metric | A | B | Change | Ratio | 95% interval | Pairs | Requests | Verdict */
int hz_comparison_grid(struct hz_grid *g, const struct hz_comparison *c, const char *a, const char *b,
                       struct km_err *err);
cJSON *hz_comparison_json(const struct hz_comparison *c);       /* "kvmark.compare.1" */
void hz_put_interval(struct km_buf *out, double lo, double hi); /* "1.552 to 1.671", "n/a" */

/* A limit on the change from A to B: "ttft_ms.mean>+5%" is missed when mean TTFT rose by more than 5%. */
struct hz_limit {
    const struct hz_metric *metric;
    char op; /* '<' or '>' */
    double percent;
};
int hz_limit_parse(const char *text, struct hz_limit *out, struct km_err *err);
/* A change that was not measured misses the limit too; *change is NAN then. */
bool hz_limit_missed(const struct hz_limit *l, const struct hz_comparison *c, double *change);

/* The runs of one side. path: a run folder; a stem whose PATH-1, PATH-2 ... are run folders (the cells of a
 * suite); or a folder of run folders, in order of name. */
struct hz_side {
    struct run_folder *runs;        /* [n] */
    const struct run_folder **list; /* [n], into runs */
    int n;
};
int hz_side_read(struct hz_side *out, const char *path, struct km_err *err);
void hz_side_free(struct hz_side *s);

#endif
