/* The engine: continuous batching over a paged KV pool.
 *
 * `struct eng` is one loaded model on one backend; a request is one sequence of tokens to continue. Each step schedules
 * requests, runs the backend, samples, and reports the results as events. The caller sees no pages, batches or cache
 * layer.
 *
 * The engine has no thread: all calls must come from one thread. For servers, engine/runner.h runs it on a thread of
 * its own.
 *
 * Async scheduling: if the backend supports it, the engine schedules and submits a step while a decode step runs, so
 * that the device never waits for the host. eng_step then returns while the step that it submitted is in flight. */
#ifndef ENG_ENGINE_H
#define ENG_ENGINE_H

#include "base/err.h"
#include "base/option.h"
#include "engine/backend.h"
#include "engine/kv_port.h"
#include "engine/model.h"
#include "engine/sample.h"

#include <stdbool.h>
#include <stdint.h>

/* Defaults and ranges are the rows of engine/options.c; 0 where a comment says what 0 means. */
struct eng_opts {
    int max_model_len;          /* tokens of one request, prompt and output; 0: the model's, or the KV pool if less */
    int max_num_seqs;           /* most requests that run at once; cut to max_num_batched_tokens */
    int max_num_batched_tokens; /* token budget of a step */
    int block_size;             /* tokens of a block, whose KV is stored in one page */
    int num_blocks;             /* pages of the KV pool (--num-gpu-blocks-override); 0: what the memory allows */
    int64_t memory_limit;       /* bytes (--gpu-memory-limit); 0: the share memory_utilization of the device's memory */
    double memory_utilization;  /* share of the device's memory to use when memory_limit is 0 */
    bool prefix_caching;
    int dtype;                  /* of weights and KV: an enum km_dtype, or ENG_DTYPE_AUTO: float32 for a float32
                                   checkpoint, else bfloat16 */
    int n_threads;              /* CPU threads; 0: one per core */
    int kv_planner;             /* what is loaded and what is computed: an enum pln_mode */
    int max_waiting;            /* most requests that may wait; eng_submit refuses more */
};
enum { ENG_DTYPE_AUTO = -1 };
struct eng_opts eng_defaults(void);
/* The options as a table of base/option.h, for command lines. */
struct km_option_group eng_option_group(struct eng_opts *o);

/* Fills *out with the memory plan of an engine with these options, without opening one. o becomes the resolved options,
 * as eng_options would return them. Fails as eng_open would. After KM_ELIMIT the plan's rows are valid, but leave too
 * little memory for KV. */
int eng_plan(struct plan *out, struct eng_opts *o, const struct mdl *m, const struct backend *backend,
             struct km_err *err);

enum eng_finish { ENG_RUNNING, ENG_STOP, ENG_LENGTH, ENG_ABORT, ENG_ERROR };

struct eng_request {
    const int32_t *prompt;   /* [n_prompt], copied */
    int n_prompt;
    int max_tokens;          /* >= 1 */
    int min_tokens;          /* tokens that end the request are banned until this many are generated */
    bool ignore_eos;
    const int32_t *stop_ids; /* [n_stop], copied; end the request, as the model's EOS tokens do */
    int n_stop;
    const char *cache_salt;  /* NULL: none; copied */
    struct smp_params sampling;
    int priority;            /* waiting requests are admitted by rising priority, then by arrival */
    void *user;              /* returned in each event */
};

/* One generated token, or the end of a request without a token (abort, error). */
struct eng_event {
    uint64_t id;
    void *user;
    bool has_token;
    struct smp_result token;
    enum eng_finish finish;  /* ENG_RUNNING: more events will follow */
    int32_t stop_id;         /* with ENG_STOP, the token that ended the request; else -1 */
    int n_prompt, n_output;  /* n_output includes this token */
    int n_cached;            /* prompt tokens whose KV came from the pool or the cache layer */
    int n_cached_pool;       /* the part of n_cached that came from the pool */
    int n_preempted;
    int64_t arrived_ns, scheduled_ns, now_ns; /* on the backend's clock; scheduled_ns -1: it was never scheduled */
};

struct eng_events {
    struct eng_event *v; /* [n]; valid until the next eng_step */
    int n, cap;
    bool stalled; /* no rows ran, because all requests wait for transfers: calling eng_step again at once is useless */
    /* The estimated end of the step in flight (km_now_ns); 0: no step is in flight, or its duration is not known. The
     * next eng_step schedules the step after it. If it is called much earlier, requests that arrive in between miss
     * that step. */
    int64_t busy_until_ns;
};

struct eng_stats {
    int running, waiting, loading;       /* requests now */
    int pages, pages_used, pages_cached; /* used: by requests or transfers; cached: unused, but found by their prefix */
    int64_t steps, prompt_tokens, generated_tokens;
    int64_t computed_tokens;             /* rows that the backend computed; tokens from a cache are not in it */
    int64_t async_steps;                 /* steps that were submitted while the step before them ran */
    int64_t wasted_rows;                 /* rows whose result was dropped, because the request ended while the step was
                                            in flight, or the device could not sample the row or the row before it; not
                                            in computed_tokens */
    int64_t prefix_queries, prefix_hits; /* prompt tokens looked up and found in the pool */
    int64_t preemptions, finished[5];    /* finished: by enum eng_finish */
    int64_t overlapped_rows;             /* rows that were computed for requests whose load was open */
    int64_t abandoned_loads;             /* loads whose tokens were computed instead, because they took too long */
    struct be_stats be;
    struct kv_port_stats kv;             /* zeros without a cache layer; the last member (eng_step_stats) */
};

struct eng;

/* The engine borrows m, backend and port until eng_close. port NULL: no cache layer. */
int eng_open(struct eng **out, const struct eng_opts *o, const struct mdl *m, const struct backend *backend,
             const struct kv_port *port, struct km_err *err);
void eng_close(struct eng *e); /* drops unfinished requests without events */

/* Queues a request. KM_EINVAL: a field has a bad value. KM_ELIMIT: the request is too long for the context, or the
 * queue is full. The message says which. */
int eng_submit(struct eng *e, const struct eng_request *r, uint64_t *id, struct km_err *err);
/* Ends a request at once and frees its pages, of which full ones can still be found by their prefix. No event follows.
 * finish selects the counter eng_stats.finished that the request adds to: ENG_STOP for a stop string, ENG_ABORT for a
 * client that disconnected. */
void eng_cancel(struct eng *e, uint64_t id, enum eng_finish finish);

/* Runs one step and sets *out to its events. If the backend fails, the requests of the step end with ENG_ERROR and the
 * backend's code is returned. The engine remains usable unless that code is KM_EDEVICE. */
int eng_step(struct eng *e, struct eng_events *out, struct km_err *err);
/* True if no request is alive, no step in flight and no transfer open: a step would do nothing. */
bool eng_idle(const struct eng *e);

/* Evicts all cached pages, and with `external` also the cache layer's chunks. Never blocks. 1: not done yet, because
 * transfers of requests that ended are open, or a tier needs time; call it again. KM_ELIMIT: requests use pages or
 * chunks. */
int eng_reset_cache(struct eng *e, bool external, struct km_err *err);
void eng_stats(const struct eng *e, struct eng_stats *out);
const struct eng_opts *eng_options(const struct eng *e); /* resolved: no member has its 0 or auto value */
const struct kv_geom *eng_geom(const struct eng *e);
const struct mdl *eng_model(const struct eng *e);

/* Checks the invariants of every page, map and list, for tests: 0, or KM_EINVAL and the first one that is broken. */
int eng_check(const struct eng *e, struct km_err *err);

#endif
