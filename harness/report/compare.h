/* Compares two configurations: how much each figure changed, how certain the change is, and a verdict.
 *
 * A side, A or B, is one run or several repeats. Run k of A and run k of B are a pair; they ran next to each other.
 * Ratios are B over A.
 *
 * For figures over requests, the requests of a pair are matched by (conversation, turn), and the 95% confidence
 * interval is from a hierarchical bootstrap. It draws pairs, and whole conversations, because the turns of a
 * conversation depend on each other. A draw uses the same conversations in every pair, because all pairs ran the same
 * conversations. With few pairs or few conversations, that part of the interval is widened to the width of Student's t.
 *
 * A figure with one value per run, such as tokens per second, is compared by drawing pairs alone, and has no interval
 * with one pair. Percentiles are compared only if there are enough requests for an interval of that percentile. */
#ifndef COMPARE_H
#define COMPARE_H

#include "base/option.h"
#include "harness/report/table.h"
#include "harness/run/metric.h"
#include "harness/run/runfolder.h"

enum compare_verdict {
    COMPARE_NOT_JUDGED, /* there is no interval */
    COMPARE_BETTER,
    COMPARE_WORSE,
    COMPARE_NO_DIFFERENCE, /* no change was found, and a change beyond compare_opts.noise would have been */
    COMPARE_UNDECIDED      /* no change was found, but the interval is too wide to exclude one */
};
const char *compare_verdict_word(enum compare_verdict v); /* "better", "no detectable difference" ... */

struct compare_delta {
    const struct hz_metric *metric;
    double a, b;                       /* mean or median over the runs of a side; NAN: missing */
    double a_min, a_max, b_min, b_max; /* over the runs of a side */
    double ratio;                      /* B over A on the matched requests; NAN: see why */
    double lo, hi;                     /* 95% confidence interval of the ratio; NAN: see why */
    double p;                          /* two-sided p value of "no difference", from the same draws */
    int pairs;                         /* pairs of runs from which the ratio is computed */
    int requests, conversations;       /* matched requests of all pairs, and the conversations of these requests */
    enum compare_verdict verdict;
    char why[160]; /* what limits the verdict, or why there is no ratio or interval; else "" */
};

struct compare_result {
    int pairs;
    struct compare_delta *deltas; /* [n], in the order of compare_opts.metrics */
    int n;
    int only_a, only_b; /* requests that only A, or only B, of a pair answered; the ratios leave them out */
    bool unlike;        /* the workloads differ, which compare_opts.force allows */
};

/* Defaults and ranges are the rows of harness/report/compare_options.c. */
struct compare_opts {
    enum hz_profile profile;
    bool median;   /* median over the runs of a side; default: the mean */
    bool force;    /* compare runs of different workloads */
    int draws;     /* resamples of the bootstrap */
    uint64_t seed; /* seed of the bootstrap */
    double noise;  /* without a detected change, the half width of the interval above which the verdict is UNDECIDED */
    const struct hz_metric *const *metrics; /* [n_metrics]; NULL: every figure that has enough requests */
    int n_metrics;
};
struct compare_opts compare_defaults(void);
/* The options as a table of base/option.h, for command lines. */
struct km_option_group compare_option_group(struct compare_opts *o);

/* a, b: [pairs] runs. KM_EINVAL for workloads that differ (by the SHA-256 of what was sent), unless forced. */
int compare_runs(struct compare_result *out, const struct run_folder *const *a, const struct run_folder *const *b,
                 int pairs, const struct compare_opts *o, struct km_err *err);
void compare_result_free(struct compare_result *c);

/* Sets the verdicts of a family of n deltas, with Holm's correction for n questions. compare_runs calls it for its own
 * deltas; a table of several rows calls it again for the deltas of all rows. */
void compare_judge(struct compare_delta *const *d, int n, double noise);

/* Metric | A | B | Change | Ratio | 95% interval | Pairs | Requests | Verdict */
int compare_result_grid(struct table_grid *g, const struct compare_result *c, const char *a, const char *b,
                        struct km_err *err);
cJSON *compare_result_json(const struct compare_result *c);          /* schema "kvmark.compare.1" */
void compare_put_interval(struct km_buf *out, double lo, double hi); /* "1.552 to 1.671", or "n/a" */
/* The verdict and what limits it: "undecided: only a change above 8.5% would have been detected". */
void compare_put_verdict(struct km_buf *out, const struct compare_delta *d);

/* A limit on the change from A to B: "ttft_ms.mean>+5%" is missed when mean TTFT rose by more than 5%. */
struct compare_limit {
    const struct hz_metric *metric;
    char op; /* '<' or '>' */
    double percent;
};
int compare_limit_parse(const char *text, struct compare_limit *out, struct km_err *err);
/* A change that was not measured misses the limit too; *change (in percent) is then NAN. */
bool compare_limit_missed(const struct compare_limit *l, const struct compare_result *c, double *change);

/* The runs of one side, owned. */
struct compare_side {
    struct run_folder *runs;        /* [n] */
    const struct run_folder **list; /* [n] pointers into runs, as compare_runs takes them */
    int n;
};
/* Reads the runs of a side. path is a run folder; or the stem of repeats, PATH-1, PATH-2 and so on, such as the cells
 * of a suite; or a folder of run folders, which are read in the order of their names. */
int compare_side_read(struct compare_side *out, const char *path, struct km_err *err);
void compare_side_free(struct compare_side *s);

#endif
