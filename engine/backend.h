/* What runs a step: CPU, CUDA or a simulated card, behind one coarse vtable.
 *
 * A backend owns its copy of the weights and the KV pool; the engine owns which page belongs to whom. It
 * is step-level, not operator-level, so that CUDA may fuse and graph while the CPU loops over layers. All
 * calls come from the engine's thread. Steps run in the order given; a copy issued after a step sees that
 * step's KV and writes no page before it, and a step issued after a copy was polled complete sees the copied KV. */
#ifndef ENG_BACKEND_H
#define ENG_BACKEND_H

#include "base/err.h"
#include "engine/batch.h"
#include "engine/kv_port.h"
#include "engine/model.h"
#include "engine/plan.h"

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

struct be;

struct be_opts {
    enum km_dtype dtype;     /* weights and KV */
    int block_size;
    int n_pages;              /* 0: as many as memory_limit (or the backend's default) leaves */
    int64_t memory_limit;     /* bytes for weights, work space and KV together; 0: the backend's default */
    double memory_utilization; /* share of the device's memory to use when memory_limit is 0 */
    int max_tokens;           /* most T of one step */
    int max_reqs;             /* most requests of one step */
    int max_model_len;        /* longest request, in tokens */
    int n_threads;            /* CPU threads; 0: one a core */
};

struct be_stats {
    int64_t weight_bytes, kv_bytes, workspace_bytes;
    double flops;             /* done so far, by the model's arithmetic (GEMMs and attention) */
    int64_t busy_ns;          /* time inside steps */
    char device[96];          /* "AMD EPYC, 2 threads, OpenBLAS Haswell" */
};

struct backend {
    const char *name;         /* cpu, cuda, sim */
    /* Takes one step more while one is in flight, with tokens of -(k + 1): the id that the device chooses for sample k
     * of the step in flight. Waits come in order. */
    bool async_sched;
    /* What open would take with these options, nothing taken; it fails as open would. The rows are there even when
     * KM_ELIMIT says that they leave no room for KV. Needs no device when o->memory_limit is stated; a card is asked in
     * a child process, so plan before this one opens it. NULL: none. */
    int (*plan)(struct plan *out, const struct be_opts *o, const struct mdl *m, struct km_err *err);
    int (*open)(struct be **out, const struct be_opts *o, const struct mdl *m, struct kv_geom *geom,
                struct km_err *err);
    void (*close)(struct be *b);
    /* Enqueues a step; ticket is handed to wait. Argument arrays stay the caller's until then. */
    int (*step)(struct be *b, const struct batch *in, uint64_t *ticket, struct km_err *err);
    /* Blocks until the step is done; out[n_samples] of that step. An id of -1: the host had to choose it, for which the
     * step given behind leaves no logits. What that step made of it is wrong too, and both are to be given again, the
     * first with no step behind. */
    int (*wait)(struct be *b, uint64_t ticket, struct smp_result *out, struct km_err *err);
    /* Pages <-> host, all of them one ticket. 0 in *ticket: already complete. */
    int (*copy)(struct be *b, enum kv_dir dir, const struct kv_copy *c, int n, uint64_t *ticket, struct km_err *err);
    int (*poll)(struct be *b, uint64_t ticket); /* 1 complete, 0 not yet, <0 failed */
    void *(*host_alloc)(struct be *b, size_t size); /* memory that copies are fastest to; NULL: none */
    void (*host_free)(struct be *b, void *p, size_t size);
    /* ns; NULL: km_now_ns. A simulated card keeps its own clock, which must run on when polls come with no step
     * between them: then the engine has nothing to do but wait for a copy. */
    int64_t (*now)(struct be *b);
    void (*stats)(struct be *b, struct be_stats *out);
};

extern const struct backend be_cpu;
extern const struct backend be_cuda;    /* in builds with CUDA, as is: */
int be_cuda_probe(struct km_err *err);  /* 0, or why no card can be used. Leaves this process free to fork */

/* want: "auto", "cpu", "cuda". KM_EDEVICE when it was named and is not here; auto falls back to the CPU. */
int backend_pick(const char *want, const struct backend **out, struct km_err *err);
/* Likewise for a plan: a backend of this build that was named needs no card. */
int backend_pick_plan(const char *want, const struct backend **out, struct km_err *err);
/* True when `want` was auto and the build could use a card but found none: *why says why not. */
bool backend_fell_back(const char *want, const struct backend *got, struct km_err *why);

#endif
