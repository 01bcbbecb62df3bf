/* A step in flight: the input arrays that the backend reads, and the requests that the rows belong to.
 *
 * The engine owns one `struct step`, or two with async scheduling, when step N + 1 is submitted while step N runs. In
 * step N + 1 a token of -(k + 1) then stands for the id that step N samples for its sample k. A request may end while a
 * step with its rows is in flight. The step keeps the request's id, which is never used again, so the results of these
 * rows are recognised and dropped.
 *
 * `struct step_times` records how long decode steps take. The runner schedules the next step shortly before the
 * estimated end of the step in flight.
 *
 * Invariant: the arrays change in step_fill only, and step_fill is called only after the step was retired. */
#ifndef STEP_STEP_H
#define STEP_STEP_H

#include "engine/batch.h"
#include "engine/sched.h"

struct step {
    struct batch batch;
    uint64_t *req_ids;    /* [max_reqs] ids of the requests; 0: the rows of this request were discarded */
    uint64_t ticket;      /* the backend's, from submission until the step is retired */
    int64_t submitted_ns;
    int64_t kv_tokens;    /* sum of batch.kv_len */
    bool is_async_decode; /* all rows are decodes that the device can sample: the next step may be submitted early */

    int block_size;
    int32_t *tokens, *positions, *slots; /* [max_tokens] */
    int32_t *q_start;                    /* [max_reqs + 1] */
    int32_t *kv_len;                     /* [max_reqs] */
    int32_t *table_start;                /* [max_reqs + 1] */
    int32_t *block_table;                /* [max_reqs * max_blocks] */
    struct smp_row *samples;             /* [max_reqs] */
};

/* Allocates the arrays; max_blocks is the largest number of blocks of one request. KM_ENOMEM: call step_deinit, as
 * after success. */
int step_init(struct step *s, int max_tokens, int max_reqs, int max_blocks, int block_size, struct km_err *err);
void step_deinit(struct step *s);

/* Fills the arrays with the scheduled rows of the running and the loading requests, in the order of these lists.
 * batch.n_tokens is 0 if there are none. */
void step_fill(struct step *s, const struct sch *sched);

/* The last two decode steps, newest first. */
struct step_times {
    struct step_time {
        int64_t ns, kv_tokens;
        int n_reqs;
    } last[2];
};
void step_times_add(struct step_times *t, const struct step *s, int64_t ns);
/* Lower estimate of a decode step's duration in ns; 0 until two steps have been timed. */
int64_t step_times_estimate(const struct step_times *t, const struct step *s);

#endif
