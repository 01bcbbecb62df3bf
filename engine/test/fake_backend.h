/* A fake backend for tests of the engine, which detects any mistake in a batch.
 *
 * The "KV" of a token is a hash of the token, its position and the KV of all tokens before it, which is read through
 * the block table. A sampled id is a hash of all of that and of the sampling row. A wrong page, slot or position, or
 * stale KV, changes the sampled ids, and fake_answer computes the right ones. A copy starts as soon as its fence allows
 * and moves its bytes only when its ticket is reported complete; in between the pages that it fills hold garbage. A
 * step behind the fence that writes to a page of an open copy is a mistake.
 *
 * The fake backend with async scheduling runs some steps when they are submitted, and others only when the engine waits
 * for them or for a copy that was submitted after them. It cannot sample rows that need a history, log-probabilities or
 * many banned ids on the device, and refuses other rows at random. */
#ifndef TEST_FAKE_BACKEND_H
#define TEST_FAKE_BACKEND_H

#include "engine/engine.h"

struct fake_copy {
    uint64_t ticket;
    enum kv_dir dir;
    struct kv_copy *c; /* [n], the caller's */
    int n, polls;
    long after_step;   /* the step that must run before this copy; 0: none */
    bool started;      /* the step has run */
};

/* Replaces the model, and has the settings and counters of the fake backend. */
struct mdl {
    struct mdl_config c;
    int copy_polls;       /* polls until a copy is complete; 0 and 1: the first one reports it */
    int copy_limit;       /* most copies in flight; 0: no limit */
    int copy_fails;       /* percentage of copies that fail, one half of them at the submission */
    long fail_at;         /* number of the step that fails, from 1; 0: none */
    int fail_code;
    bool fail_in_wait;    /* the wait fails instead of the submission */
    _Atomic long steps;   /* submitted so far */
    int step_us;          /* duration of a step */
    int host_sampled;     /* with async scheduling: percentage of rows that the device cannot sample */
    _Atomic long in_flight;  /* steps */
    _Atomic long prefill_at; /* number of the last step with more rows than requests */
    int64_t rows, clock;
    double row_ns;        /* with the simulated clock: duration of a step per row, */
    int64_t floor_ns;     /* but at least this; both 0: 1000 ns a step */
    uint64_t rng;
    int64_t spare_pages;  /* entries of block tables that are not needed for kv_len tokens, summed */
    char complaint[200];  /* the first mistake found in a batch */
};

extern const struct backend be_fake;       /* wall clock */
extern const struct backend be_fake_clock; /* mdl.clock */
extern const struct backend be_fake_async; /* wall clock, async scheduling */

struct mdl fake_model(int vocab, int max_pos);

/* Computes the answer to r without batches or pages: at most cap ids to out, and how the request ends to finish. */
int fake_answer(const struct mdl *m, const struct eng_request *r, int max_model_len, int32_t *out, int cap,
                enum eng_finish *finish);

uint64_t fake_random(uint64_t *state);

#endif
