/* A backend that can be wrong in no unnoticed way, for tests of the engine core.
 *
 * The "KV" of a token is one hash over the token, its position and the KV of all tokens before it, read through the
 * block table; a sampled id is a hash over all of that and the sampling row. A wrong page, slot, position, a stale or
 * missing load: all change what comes out, and fake_answer says what should. Copies happen at the last moment, when
 * their ticket is seen complete, and pages being filled hold garbage until then.
 *
 * The one that runs ahead keeps steps in flight: some run when given, some only when they are waited for or a copy must
 * come after them, and what they read is read then. Its device chooses no token that needs a history, log-probabilities
 * or a long ban, nor some others. */
#ifndef TEST_FAKE_BACKEND_H
#define TEST_FAKE_BACKEND_H

#include "engine/engine.h"

struct fake_copy {
    uint64_t ticket;
    enum kv_dir dir;
    struct kv_copy *c; /* [n] */
    int n, polls;
    long behind; /* the step it comes after */
};

/* The test's stand-in for a model carries the backend's switches and counters. */
struct mdl {
    struct mdl_config c;
    int copy_polls;       /* how many looks a copy takes; 0: done at once */
    long fail_at;         /* the step that fails, from 1; 0: none */
    int fail_code;
    bool fail_in_wait;
    _Atomic long steps;   /* given so far */
    int step_us;          /* how long a step takes */
    int unchosen;         /* ahead: of 100 tokens the device leaves so many to the host, at random */
    _Atomic long in_flight, prefill_at; /* steps; the last one given with more rows than requests */
    int64_t rows, clock;
    int64_t spare_pages;  /* table entries past the tokens of a request, summed */
    char complaint[200];  /* the first thing wrong with a batch */
};

extern const struct backend be_fake;       /* wall clock */
extern const struct backend be_fake_clock; /* mdl.clock, 1000 a step */
extern const struct backend be_fake_async; /* wall clock, a step ahead */

struct mdl fake_model(int vocab, int max_pos);

/* The answer to r, computed in a straight line: up to cap ids into out, how it ends into finish. */
int fake_answer(const struct mdl *m, const struct eng_request *r, int max_model_len, int32_t *out, int cap,
                enum eng_finish *finish);

uint64_t fake_random(uint64_t *state);

#endif
