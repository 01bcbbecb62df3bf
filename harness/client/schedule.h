/* The order and the send times of requests: those of vLLM's two load clients.
 *
 * A `schedule` answers one question: which request is sent next, and when (schedule_next). Its caller reports the end
 * of every request (schedule_done). A schedule is of one of two types:
 * - Closed loop: simulated clients take conversations from one queue; each client has one request in flight.
 * - Open loop: every prompt has its own send time, whether earlier prompts are answered or not.
 * A schedule has no sockets and no clock: times are arguments. So equal inputs give equal answers, and the order of
 * requests is tested without a server. */
#ifndef SCHEDULE_H
#define SCHEDULE_H

#include "base/err.h"
#include "workloads/workload.h"

#include <stdbool.h>
#include <stdint.h>

struct schedule;

/* One request. */
struct schedule_item {
    int conv, turn, client; /* indices as in struct hz_rec; client: 0 in an open loop */
    int64_t due_ns;         /* planned send time */
    int64_t ready_ns;       /* earliest possible send time: due_ns, or later because of the concurrency limit */
};

struct schedule_closed {
    const int *order; /* [n] conversations in the order of the queue; NULL: 0 to n - 1 */
    int n;
    int first_turn; /* 0; 1 after a warm-up, which has sent turn 0 */
    int clients;
    int active;        /* most conversations that one client has open; it alternates between them */
    int64_t quota;     /* most requests of one client, failed ones included; 0: no limit */
    int64_t max_turns; /* messages used of a conversation; 0: all */
    bool early_stop;   /* the first client without work ends the run for all */
    bool random;       /* pick the next conversation at random; else round robin */
    double rate;       /* a pause after each request, exponential with mean 1/rate s; 0 or inf: none */
    uint64_t seed;
};
int schedule_closed_new(struct schedule **out, const struct wl_set *set, const struct schedule_closed *o,
                        struct km_err *err);

struct schedule_open {
    int n;             /* the first n prompts of the set */
    double rate;       /* arrivals per second; 0 or inf: all at once */
    double burstiness; /* gamma shape of the gaps between arrivals; 1: Poisson */
    int64_t cap;       /* most requests in flight; 0: no limit */
    uint64_t seed;
};
int schedule_open_new(struct schedule **out, const struct schedule_open *o, struct km_err *err);

void schedule_free(struct schedule *s);

/* Sets the time from which send times count. */
void schedule_begin(struct schedule *s, int64_t now_ns);

enum schedule_answer {
    SCHEDULE_SEND, /* send *out now */
    SCHEDULE_WAIT, /* ask again at *wake_ns, or after the end of a request; INT64_MAX: only after the end of one */
    SCHEDULE_END   /* no request is left, and none is in flight */
};
enum schedule_answer schedule_next(struct schedule *s, int64_t now_ns, struct schedule_item *out, int64_t *wake_ns);
/* Reports the end of a request. ok: it succeeded. */
void schedule_done(struct schedule *s, const struct schedule_item *it, bool ok, int64_t now_ns);
void schedule_stop(struct schedule *s); /* sends no further requests */

int schedule_planned(const struct schedule *s); /* requests to send, if none fails and early stop drops none */
int schedule_dropped(const struct schedule *s); /* requests that are not sent because an earlier turn failed */
/* [*n] finished conversations, in order of completion; owned by the schedule. */
const int *schedule_finished(const struct schedule *s, int *n);

#endif
