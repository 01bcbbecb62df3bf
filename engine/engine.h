/* The engine: continuous batching over a paged KV pool.
 *
 * An `eng` is one loaded model on one backend; a request is one sequence to continue. The engine is
 * single-threaded: submit, cancel and step come from one thread (engine/runner.h puts it on a thread of its
 * own for servers). Each step schedules, runs the backend, samples, and reports what happened as events;
 * the caller may not know about pages, batches or the cache.
 *
 * On a backend that takes it, the engine runs a step ahead: while a decode is under way the next step is scheduled and
 * given, so that the device never waits for the host. Such a decode is in flight when eng_step returns. */
#ifndef ENG_ENGINE_H
#define ENG_ENGINE_H

#include "base/err.h"
#include "engine/backend.h"
#include "engine/kv_port.h"
#include "engine/model.h"
#include "engine/sample.h"

#include <stdbool.h>
#include <stdint.h>

struct eng_opts {
    int max_model_len;          /* prompt + generated; 0: the model's, or what the pool holds if less */
    int max_num_seqs;           /* running at once: 256; not above max_num_batched_tokens */
    int max_num_batched_tokens; /* a step: 2048 */
    int block_size;             /* 16 */
    int num_blocks;             /* --num-gpu-blocks-override; 0: from memory */
    int64_t memory_limit;       /* --gpu-memory-limit, bytes; 0: none stated */
    double memory_utilization;  /* 0.9 */
    bool prefix_caching;        /* true */
    enum km_dtype dtype;
    int n_threads;
    int max_waiting;            /* queue length past which submit refuses: 4096 */
};
struct eng_opts eng_defaults(void);

/* What an engine of these options would take on this backend, without opening one; o becomes what eng_options would
 * say of it. Fails as eng_open would. KM_ELIMIT: the plan's rows are there, but they leave too little for KV. */
int eng_plan(struct plan *out, struct eng_opts *o, const struct mdl *m, const struct backend *backend,
             struct km_err *err);

enum eng_finish { ENG_RUNNING, ENG_STOP, ENG_LENGTH, ENG_ABORT, ENG_ERROR };

struct eng_request {
    const int32_t *prompt;   /* [n_prompt], copied */
    int n_prompt;
    int max_tokens;          /* >= 1 */
    int min_tokens;          /* end tokens are banned until then */
    bool ignore_eos;
    const int32_t *stop_ids; /* [n_stop], copied; besides the model's end tokens */
    int n_stop;
    const char *cache_salt;  /* NULL: none; copied */
    struct smp_params sampling;
    int priority;            /* lower runs first among waiting; arrival order within */
    void *user;              /* comes back with each event */
};

/* One generated token, or an end without one (abort, error). */
struct eng_event {
    uint64_t id;
    void *user;
    bool has_token;
    struct smp_result token;
    enum eng_finish finish;  /* ENG_RUNNING: more will come */
    int32_t stop_id;         /* the token that ended it, with ENG_STOP; -1 */
    int n_prompt, n_output;  /* so far, this token included */
    int n_cached;            /* prompt tokens not computed: from the pool and from the cache layer */
    int n_cached_pool;       /* the part that was still in the pool */
    int n_preempted;
    int64_t arrived_ns, scheduled_ns, now_ns; /* by the backend's clock; scheduled -1: never was */
};

struct eng_events {
    struct eng_event *v; /* [n]; valid until the next eng_step */
    int n, cap;
    bool stalled; /* no rows ran, all work waits for transfers: stepping again at once gains nothing */
    /* When the step in flight should end (km_now_ns). The next one is scheduled by the call that waits for it: called
     * much earlier, it is without those who come meanwhile. 0: nothing to wait for, or not known. */
    int64_t busy_until_ns;
};

struct eng_stats {
    int running, waiting, loading;     /* requests now */
    int pages, pages_used, pages_cached; /* used: referenced; cached: free but findable */
    int64_t steps, prompt_tokens, generated_tokens;
    int64_t computed_tokens;           /* rows the backend ran: what the cache saves shows here */
    int64_t async_steps;               /* given while the step before was running */
    int64_t wasted_rows;               /* ahead, for a request that had ended or on a wrong token; in no other count */
    int64_t prefix_queries, prefix_hits; /* tokens asked of and found in the pool */
    int64_t preemptions, finished[5];  /* by enum eng_finish */
    struct kv_port_stats kv;           /* zeros without a port */
    struct be_stats be;
};

struct eng;

/* The engine borrows m, backend and port (NULL: none) for its lifetime. */
int eng_open(struct eng **out, const struct eng_opts *o, const struct mdl *m, const struct backend *backend,
             const struct kv_port *port, struct km_err *err);
void eng_close(struct eng *e); /* requests still alive are dropped without events */

/* Queues a request. KM_EINVAL: a bad field, named. KM_ELIMIT: too long for the context or the pool, or the
 * queue is full (message says which). */
int eng_submit(struct eng *e, const struct eng_request *r, uint64_t *id, struct km_err *err);
/* Ends a request now: its pages are free when this returns, full ones stay findable. No event follows.
 * finish says how it counts (ENG_STOP for a stop string, ENG_ABORT for a vanished client). */
void eng_cancel(struct eng *e, uint64_t id, enum eng_finish finish);

/* One step. *out is set to the step's events. A backend failure ends the requests of that step with ENG_ERROR
 * and returns its code; the engine stays usable unless the code is KM_EDEVICE. */
int eng_step(struct eng *e, struct eng_events *out, struct km_err *err);
/* Nothing running, waiting or being stored: a step would do nothing. */
bool eng_idle(const struct eng *e);

/* Forgets cached pages (and the cache layer's chunks when `external`). KM_ELIMIT while requests hold some;
 * stores of ended requests are waited for. */
int eng_reset_cache(struct eng *e, bool external, struct km_err *err);
void eng_stats(const struct eng *e, struct eng_stats *out);
const struct eng_opts *eng_options(const struct eng *e); /* as resolved: no zeros left */
const struct kv_geom *eng_geom(const struct eng *e);
const struct mdl *eng_model(const struct eng *e);

/* Walks every page, map and list and compares counts: 0, or a description of the first broken invariant.
 * For tests and debug builds. */
int eng_check(const struct eng *e, struct km_err *err);

#endif
