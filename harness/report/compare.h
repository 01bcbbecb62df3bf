/* Two configurations against each other: what changed, how sure that is, and the word for it.
 *
 * A side is one run or the repeats of it; run k of A and run k of B are a pair, measured next to each other.
 * Ratios are B over A. For figures over requests, requests are matched by (conversation, turn) within a pair
 * and the 95% interval comes from a hierarchical bootstrap: pairs are drawn, then conversations (whole ones:
 * their turns depend on each other; the same ones in every pair, because every pair ran the same
 * conversations); where there are few of either, its part of the interval is widened by Student's t. One figure
 * a run (tokens per second) rests on pairs alone and has no interval with one pair. Percentiles are compared
 * only where the number of requests gives them an interval at all. */
#ifndef COMPARE_H
#define COMPARE_H

#include "harness/run/metric.h"
#include "harness/run/runfolder.h"
#include "harness/report/table.h"

enum compare_verdict { COMPARE_NOT_JUDGED, COMPARE_BETTER, COMPARE_WORSE, COMPARE_NO_DIFFERENCE, COMPARE_TOO_NOISY };
const char *compare_verdict_word(enum compare_verdict v); /* "better", "no detectable difference" ... */

struct compare_delta {
    const struct hz_metric *metric;
    double a, b;                        /* mean or median over the runs of a side; NAN: not there */
    double a_min, a_max, b_min, b_max;  /* over the runs */
    double ratio, lo, hi;               /* on matched requests, with its 95% interval; NAN: none, see why */
    double p;                           /* of "no difference", two-sided, by the same draws */
    int pairs, requests, conversations; /* that the ratio rests on; requests are those of all pairs */
    enum compare_verdict verdict;
    char why[160]; /* when there is no ratio, no interval or no difference: the reason; else "" */
};

struct compare_result {
    int pairs;
    struct compare_delta *deltas; /* [n], in the order asked for */
    int n;
    int only_a, only_b; /* requests that only one side answered; left out of the ratios */
    bool unlike;        /* the workloads differ and force said to go on */
};

struct compare_opts {
    enum hz_profile profile; /* HZ_SEED */
    bool median;             /* over the runs of a side; default: the mean */
    bool force;              /* compare unlike workloads */
    int draws;               /* 10,000 */
    uint64_t seed;           /* of the draws: 1 */
    double noise; /* half-width of the interval beyond which an undecided figure is "too noisy": 0.05 */
    const struct hz_metric *const *metrics; /* NULL: every one that can be judged */
    int n_metrics;
};
struct compare_opts compare_defaults(void);

/* Unlike workloads (SHA-256 of what was sent) are KM_EINVAL unless forced. */
int compare_runs(struct compare_result *out, const struct hz_run *const *a, const struct hz_run *const *b,
               int pairs, const struct compare_opts *o, struct km_err *err);
void compare_result_free(struct compare_result *c);

/* Verdicts over a family of comparisons, with Holm's correction: compare_runs does it for its own deltas, a table
 * of several rows does it again over all of them. */
void compare_judge(struct compare_delta *const *d, int n, double noise);

/* Metric | A | B | Change | Ratio | 95% interval | Pairs | Requests | Verdict */
int compare_result_grid(struct table_grid *g, const struct compare_result *c, const char *a, const char *b,
                       struct km_err *err);
cJSON *compare_result_json(const struct compare_result *c);       /* "kvmark.compare.1" */
void compare_put_interval(struct km_buf *out, double lo, double hi); /* "1.552 to 1.671", "n/a" */

/* A limit on the change from A to B: "ttft_ms.mean>+5%" is missed when mean TTFT rose by more than 5%. */
struct compare_limit {
    const struct hz_metric *metric;
    char op; /* '<' or '>' */
    double percent;
};
int compare_limit_parse(const char *text, struct compare_limit *out, struct km_err *err);
/* A change that was not measured misses the limit too; *change is NAN then. */
bool compare_limit_missed(const struct compare_limit *l, const struct compare_result *c, double *change);

/* The runs of one side. path: a run folder; a stem whose PATH-1, PATH-2 ... are run folders (the cells of a
 * suite); or a folder of run folders, in order of name. */
struct compare_side {
    struct hz_run *runs;        /* [n] */
    const struct hz_run **list; /* [n], into runs */
    int n;
};
int compare_side_read(struct compare_side *out, const char *path, struct km_err *err);
void compare_side_free(struct compare_side *s);

#endif
