/* A rig for tests of the engine: an engine on the fake backend, jobs for it, and a check of their answers.
 *
 * `struct job` is one request with everything that the engine reported about it. Every step of the rig is followed by
 * eng_check. */
#ifndef FAKE_RIG_H
#define FAKE_RIG_H

#include "fake_backend.h"
#include "fake_port.h"

enum { FAKE_RIG_OUT = 64 }; /* most tokens a job may generate */

struct job {
    struct eng_request r;
    int32_t *prompt;        /* [r.n_prompt], inverted by fake_rig_submit: the engine must have its own copy */
    char salt[8];
    uint64_t id;
    int32_t out[FAKE_RIG_OUT];
    int n_out;
    enum eng_finish finish;
    bool cancelled;
    struct eng_event last;  /* the last event seen */
};

struct fake_rig {
    struct mdl m;
    struct eng *e;
    struct fake_port *port; /* NULL: no cache layer */
    long steps;
    int64_t stall_ns;       /* by which the simulated clock advances when a step has no rows; 0: as long as a runner
                               sleeps */
};

struct eng_opts fake_rig_opts(int num_blocks, int budget, int max_seqs);
void fake_rig_open(struct fake_rig *g, const struct eng_opts *o, struct fake_port *port);
void fake_rig_open_on(struct fake_rig *g, const struct eng_opts *o, struct fake_port *port,
                      const struct backend *backend);
/* Asserts that no page is in use, closes the engine, and asserts that the backend had no complaint. */
void fake_rig_close(struct fake_rig *g);

/* A prompt of n tokens. The first `shared` tokens are the same for all jobs of `family`, the others depend on `own`. */
void job_init(struct job *j, int n, int shared, int family, uint64_t own, int max_tokens);
void job_free(struct job *j);
void fake_rig_submit(struct fake_rig *g, struct job *j);
/* Runs one step and eng_check, and records the events in their jobs. */
int fake_rig_step(struct fake_rig *g);
void fake_rig_run(struct fake_rig *g);                     /* until idle */
void fake_rig_verify(struct fake_rig *g, const struct job *j); /* against fake_answer */
void fake_rig_one(struct fake_rig *g, struct job *j);      /* submit, run, verify */
/* Makes a job of n tokens without a shared prefix, runs and verifies it; job_free has been called on the result. */
struct job fake_rig_run_job(struct fake_rig *g, int n, uint64_t own, int max_tokens, const char *salt);
struct eng_stats fake_rig_stats(const struct fake_rig *g);
void fake_rig_finish(struct fake_rig *g, struct job *j, int n); /* verifies and frees n jobs, then closes */

#endif
