/* The planner: which tokens of a prefix that the cache layer has found are loaded, and which are computed again.
 *
 * `struct pln` has the mode and the measured rate of the steps, `struct pln_load` the estimate of one open load. The
 * planner only calculates; engine/connector.c asks it and calls the port.
 *
 * In the mode `auto`, a request is loaded from the end of the prefix to its front while steps compute it from the front
 * to its end, until the two meet (Cake, arXiv 2410.03065). The time to the first token is then less than that of the
 * load alone and less than that of computing alone. The tokens that steps compute while the others are loaded are
 * called the front. Estimates are wrong at times, so three rules limit the cost of a wrong one:
 * - A load that is expected to save less than 5% of the time to the first token is not started.
 * - Rows of the front must not make a step end after the expected end of the load, or of another request's load.
 * - If a load takes much longer than expected, steps compute more and more of its tokens, and in the end it is
 *   abandoned.
 *
 * Times are in ns on the backend's clock. Positions count tokens from the start of the sequence. */
#ifndef PLN_PLANNER_H
#define PLN_PLANNER_H

#include "engine/kv_port.h"

#include <stdbool.h>
#include <stdint.h>

enum pln_mode {
    PLN_LOAD,    /* loads everything that the cache layer has, and computes nothing of it meanwhile */
    PLN_COMPUTE, /* loads nothing; the cache layer only stores. The baseline of experiments */
    PLN_AUTO
};

struct pln {
    enum pln_mode mode;
    int block_size, chunk_size;
    int max_tokens;  /* token budget of a step */
    double row_ns;   /* time per row of large steps; 0: no such step has been timed */
    double floor_ns; /* time of a step of few rows; 0: no such step has been timed */
};

void pln_init(struct pln *p, enum pln_mode mode, int block_size, int chunk_size, int max_tokens);
/* Records that a step of n_rows rows took this many ns. */
void pln_add_step(struct pln *p, int n_rows, int64_t ns);
/* The expected time of one step of n_rows rows, and of all the steps that compute n_rows rows of one request. */
double pln_step_ns(const struct pln *p, int n_rows);
double pln_compute_ns(const struct pln *p, int n_rows);

/* The first token to load for a request of n tokens, of which the pool has `have` and the last lookup of kv can load
 * those before `to`. Returns `to` if nothing should be loaded. */
int pln_load_from(const struct pln *p, const struct kv_port *port, struct kv_seq *kv, int have, int to, int n);

struct pln_load {
    int64_t began_ns;
    int from, to;      /* tokens of the load when it began */
    double all_ns;     /* expected time from began_ns to the end of the load */
    double token_ns;   /* expected time per token */
};
/* The estimate of the load of tokens [from, to) of kv's last lookup, which is about to be submitted. */
struct pln_load pln_load_begin(const struct pln *p, const struct kv_port *port, struct kv_seq *kv, int from, int to,
                               int64_t now);
/* The expected time until the load ends, if it loads no token before `first`; 0: the expected time has passed. */
double pln_left_ns(const struct pln_load *l, int first, int64_t now);

/* What a step looks like without the rows that pln_front is asked for. */
struct pln_step {
    int n_rows;        /* rows scheduled so far */
    int budget;        /* rows that may still be scheduled */
    double others_ns;  /* longest time that the step should take because of other requests: the expected time until the
                          first load ends whose request waits for nothing else; 0 if another request gets its first
                          output token from this step */
};
/* The decision about a request whose next token to compute is x, and whose load owns the tokens from `first` on. */
struct pln_front {
    int n_rows;        /* rows of the request that the step should compute */
    int cut;           /* argument of kv_port.cut; `first`: the load keeps all its tokens */
};
struct pln_front pln_front(const struct pln *p, const struct pln_load *l, int x, int first, const struct pln_step *s,
                           int64_t now);
/* True if a load that owns the tokens from `first` on should be abandoned, so that steps compute these tokens. The
 * request waits for nothing else. */
bool pln_abandons(const struct pln *p, const struct pln_load *l, int first, int64_t now);

#endif
