/* Who sends what next: vLLM's two ways of putting load on a server, with no socket in sight.
 *
 * A `schedule` answers one question, schedule_next, and is told of each end, schedule_done. Closed loop: so many sequential
 * clients draw conversations from one queue. Open: every prompt has a time of its own. Same inputs, same
 * answers: the order of requests is testable without a server. */
#ifndef SCHEDULE_H
#define SCHEDULE_H

#include "base/err.h"
#include "workloads/workload.h"

#include <stdbool.h>
#include <stdint.h>

struct schedule;

struct schedule_item {
    int conv, turn, client; /* client: 0 in an open schedule */
    int64_t due_ns;         /* by plan */
    int64_t ready_ns;       /* when nothing but this client stood in its way: due, or later when a cap held it back */
};

struct schedule_closed {
    const int *order;       /* [n] conversations in the order of the queue; NULL: 0, 1, 2 ... set->n */
    int n;
    int first_turn;         /* 1 after a warm-up: the first turn is history */
    int clients;
    int active;             /* conversations that one client keeps in turn */
    int64_t quota;          /* requests of one client, failed ones too; 0: no limit */
    int64_t max_turns;      /* messages used of a conversation; 0: all */
    bool early_stop, random;
    double rate;            /* pauses after each request, exponential with mean 1/rate; 0: none */
    uint64_t seed;
};
int schedule_closed_new(struct schedule **out, const struct wl_set *set, const struct schedule_closed *o, struct km_err *err);

struct schedule_open {
    int n;                  /* the first n prompts of the set */
    double rate, burstiness; /* arrivals a second, 0 or inf: all at once; gamma shape of the gaps, 1: Poisson */
    int64_t cap;            /* in flight at most; 0: no cap */
    uint64_t seed;
};
int schedule_open_new(struct schedule **out, const struct schedule_open *o, struct km_err *err);

void schedule_free(struct schedule *s);

void schedule_begin(struct schedule *s, int64_t now_ns);
enum schedule_answer {
    SCHEDULE_SEND, /* *out is to be sent now */
    SCHEDULE_WAIT, /* nothing before *wake_ns (INT64_MAX: before some request has ended) */
    SCHEDULE_END   /* nothing more will come and nothing is in flight */
};
enum schedule_answer schedule_next(struct schedule *s, int64_t now_ns, struct schedule_item *out, int64_t *wake_ns);
void schedule_done(struct schedule *s, const struct schedule_item *it, bool ok, int64_t now_ns);
void schedule_stop(struct schedule *s); /* no further requests */

int schedule_planned(const struct schedule *s); /* requests if nothing failed and nothing stopped early */
int schedule_lost(const struct schedule *s);    /* turns given up because an earlier one of their conversation failed */
const int *schedule_finished(const struct schedule *s, int *n); /* completed conversations in order of completion */

#endif
