/* Shared by the files of engine_check: prints the results of checks, asks an engine, and compares results of steps and
 * answers up to the error of bf16.
 *
 * A tolerance is for log-probabilities; engine_check.c states how it is used. */
#ifndef JDG_JUDGE_H
#define JDG_JUDGE_H

#include "engine/engine.h"

enum { JDG_MOST = 64 }; /* most tokens of an answer */

extern int jdg_failures; /* checks that failed so far */

/* Prints the result of a check, and counts it if it failed. */
void jdg_report(bool good, const char *fmt, ...) __attribute__((format(printf, 2, 3)));
/* Prints the message and exits if rc is not 0. */
void jdg_exit_on_error(int rc, const struct km_err *err);
void jdg_random_tokens(int32_t *t, int n, int vocab, uint32_t seed);

/* The difference of two log-probabilities, relative to b if b is below -1. */
double jdg_difference(double a, double b);
/* The largest difference of two results, over those of a's first eight ids that both results have. *mean2: the mean of
 * the squared differences; may be NULL. Both are 99 if the results have no id in common. */
double jdg_largest_difference(const struct smp_result *a, const struct smp_result *b, double *mean2);
/* True if two ids may be exchanged. gap: difference of their log-probabilities. top: the larger log-probability. */
bool jdg_is_near_tie(double gap, double top, double tolerance);
/* True if both results have the same id, or b's id is a near-tie with a's. */
bool jdg_agree(const struct smp_result *a, const struct smp_result *b, double tolerance);

/* An answer of greedy decoding, with the log-probabilities of each token. */
struct jdg_answer {
    int32_t ids[JDG_MOST];
    struct smp_result results[JDG_MOST];
    int n, n_cached, n_cached_pool; /* tokens; prompt tokens from a cache, and the part of them from the pool */
    int n_preempted;
};

/* Submits a greedy request whose answer goes to *a, which jdg_collect fills. */
uint64_t jdg_submit(struct eng *e, const int32_t *prompt, int n, int n_out, struct jdg_answer *a);
/* Adds the tokens of a step's events to their answers. */
void jdg_collect(const struct eng_events *v);
/* Submits one greedy request to an idle engine and waits for its answer. */
struct jdg_answer jdg_ask(struct eng *e, const int32_t *prompt, int n, int n_out);
/* Compares two answers up to the first near-tie with different ids: true if they are the same up to there, and the
 * log-probabilities differ by at most 1.5 tolerance. *n_equal: equal tokens. *largest rises to the largest difference
 * of two log-probabilities. */
bool jdg_same_answer(const struct jdg_answer *a, const struct jdg_answer *b, double tolerance, int *n_equal,
                     double *largest);

#endif
