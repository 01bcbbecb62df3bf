/* The requests that both runs of a pair answered, with one value per request and side. Internal to the comparison.
 *
 * A cluster is a conversation: the bootstrap draws conversations whole. The clusters are the same in all pairs and are
 * numbered from 0 in the order of the conversations' numbers. */
#ifndef COMPARE_MATCH_H
#define COMPARE_MATCH_H

#include "harness/run/metric.h"
#include "harness/run/runfolder.h"

struct compare_point {
    double v;    /* the request's value, such as its TTFT in ms */
    int cluster; /* the request's conversation */
};

/* The matched requests of one pair of runs. */
struct compare_pair {
    struct compare_point *a, *b; /* [n] each, sorted by value */
    double *sum_a, *sum_b;       /* [clusters] sum of the values of each conversation */
    int n;
};

struct compare_match {
    struct compare_pair *pairs; /* [n_pairs] */
    int n_pairs, clusters;
    int requests; /* matched requests of all pairs */
};

/* Matches the requests of a[k] and b[k] by (conversation, turn) for all pairs k. *only_a and *only_b receive the number
 * of requests that only one side answered. */
int compare_match_make(struct compare_match *out, const struct run_folder *const *a, const struct run_folder *const *b,
                       int pairs, enum hz_sample what, enum hz_profile profile, int *only_a, int *only_b,
                       struct km_err *err);
void compare_match_free(struct compare_match *m);

/* The number of matched requests in the pair that has the fewest. */
int compare_match_fewest(const struct compare_match *m);

#endif
