/* A step from its arrays to its results: what the backend reads while it runs, and whose rows they are.
 *
 * The engine has one in flight, or two when it runs a step ahead: then the newer one's tokens may be -(k + 1), the id
 * that sample k of the older one chooses. A request that ends meanwhile leaves its rows behind: they are known by the
 * request's id, which nobody has again, and count for nothing when it is gone.
 *
 * Invariant: arrays of a flight change in fl_fill only, which comes after its wait. */
#ifndef FL_FLIGHT_H
#define FL_FLIGHT_H

#include "engine/batch.h"
#include "engine/sched.h"

struct flight {
    struct batch in;
    uint64_t *ids;       /* [max_reqs] the requests; 0: its rows are not wanted any more */
    uint64_t ticket;
    int64_t began;       /* when it was given to the backend */
    int64_t kv;          /* tokens that its rows attend to */
    bool plain;          /* a decode whose tokens the device chooses: the next step may be given behind it */

    int block_size;
    int32_t *tokens, *positions, *slots; /* [max_tokens] */
    int32_t *q_start;                    /* [max_reqs + 1] */
    int32_t *kv_len;                     /* [max_reqs] */
    int32_t *table_start, *table;        /* [max_reqs + 1]; [max_reqs * max_blocks] */
    struct smp_row *rows;                /* [max_reqs] */
};

/* KM_ENOMEM; fl_free takes what is there in any case. */
int fl_take(struct flight *f, int max_tokens, int max_reqs, int max_blocks, int block_size, struct km_err *err);
void fl_free(struct flight *f);

/* The rows n_now of all running requests, in their order; in.n_tokens is 0 when there are none. */
void fl_fill(struct flight *f, const struct sch *s);

/* How long plain steps take. */
struct fl_pace {
    struct fl_took {
        int64_t ns, kv;
        int reqs;
    } last[2]; /* newest first */
};
void fl_note(struct fl_pace *p, const struct flight *f, int64_t ns);
/* What a plain step will take, rather too little than too much; 0 while that is not known. */
int64_t fl_guess(const struct fl_pace *p, const struct flight *f);

#endif
