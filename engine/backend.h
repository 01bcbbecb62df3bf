/* A backend runs the steps of the engine on one kind of device, such as the CPU or an NVIDIA GPU.
 *
 * `struct backend` is a table of functions; `struct be` is one open instance, which owns its copy of the weights and
 * the KV pool. The engine assigns pages to requests. The unit of the interface is a whole step, not an operator, so
 * that the CUDA backend can fuse kernels and capture graphs, while the CPU backend loops over layers.
 *
 * All calls come from the engine's thread, except copy, poll, host_register, host_unregister and now, which one other
 * thread may call at the same time if `threads` is set. Steps run in the order of submission. A copy with the fence
 * `after` starts when that step has ended, and sees the KV that this step and the steps before it write. A step
 * submitted after `poll` reported a copy complete sees the copied KV. */
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
struct rates;

struct be_opts {
    enum km_dtype dtype;       /* of weights and KV */
    int block_size;            /* tokens of a block */
    int n_pages;               /* size of the KV pool; 0: as large as the memory limit allows */
    int64_t memory_limit;      /* bytes for weights, workspace and KV together; 0: the backend's default */
    double memory_utilization; /* share of the device's memory to use if memory_limit is 0 */
    int max_tokens;            /* most rows (T) of one step */
    int max_reqs;              /* most requests of one step */
    int max_model_len;         /* longest request, prompt and output, in tokens */
    int n_threads;             /* CPU threads; 0: one per core */
};

struct be_stats {
    int64_t weight_bytes, kv_bytes, workspace_bytes;
    double flops;    /* of all steps so far: GEMMs and attention, from the model's shape */
    int64_t busy_ns; /* time spent in steps */
    char device[96]; /* for example "AMD EPYC, 2 threads, OpenBLAS Haswell" */
};

/* Members may be NULL where the comment says so. */
struct backend {
    const char *name; /* the value of --device */
    /* Async scheduling: the backend accepts step N + 1 while step N runs. In step N + 1 a token of -(k + 1) stands for
     * the id that step N samples for its sample k. The engine waits for steps in the order of submission. */
    bool async_sched;
    bool threads;       /* one other thread may call copy, poll, host_register, host_unregister and now */
    bool no_payload;    /* a simulated device: copies move no bytes */

    /* 0 if this machine has a device that the backend can use; else KM_EDEVICE and the reason. The calling process can
     * still fork afterwards. NULL: always usable. */
    int (*probe)(struct km_err *err);
    /* Measures the device's memory and GEMM rates, before the calling process uses the device; the process can still
     * fork afterwards. NULL: not supported. */
    int (*measure)(struct rates *out, struct km_err *err);

    /* The memory that `open` would allocate for these options; allocates nothing, and fails as `open` would. After
     * KM_ELIMIT the plan's rows are valid, but leave no memory for KV. If o->memory_limit is set, no device is needed.
     * Otherwise a child process asks the device, so call this before the process opens the device. NULL: no plans. */
    int (*plan)(struct plan *out, const struct be_opts *o, const struct mdl *m, struct km_err *err);
    int (*open)(struct be **out, const struct be_opts *o, const struct mdl *m, struct kv_geom *geom,
                struct km_err *err);
    void (*close)(struct be *b);

    /* Submits a step. The arrays of `in` do not change until `wait` for this ticket returns. */
    int (*step)(struct be *b, const struct batch *in, uint64_t *ticket, struct km_err *err);
    /* Blocks until the step is done and fills out[n_samples].
     * id -1: the device could not sample this row, and the next step in flight has overwritten the row's logits. The
     * engine then discards the row in both steps, and submits it again in a step that no other step follows early. */
    int (*wait)(struct be *b, uint64_t ticket, struct smp_result *out, struct km_err *err);

    /* Copies between pages and host memory, as in struct kv_copier. */
    int (*copy)(struct be *b, enum kv_dir dir, struct kv_copy *c, int n, uint64_t after, uint64_t *ticket,
                struct km_err *err);
    int (*poll)(struct be *b, uint64_t ticket);
    /* NULL: ordinary memory is as fast. */
    int (*host_register)(struct be *b, void *p, size_t size, struct km_err *err);
    void (*host_unregister)(struct be *b, void *p, size_t size);
    /* The time in ns; NULL: km_now_ns. A backend that simulates a device has its own clock. The clock must advance when
     * `poll` is called repeatedly with no step in between, because the engine then only waits for a copy. */
    int64_t (*now)(struct be *b);
    void (*stats)(struct be *b, struct be_stats *out);
};

extern const struct backend be_cpu;
extern const struct backend be_cuda; /* in a build without CUDA: only a name and a probe, which fails */

/* Backend i of the registry (engine/backend.c), which is sorted by preference; NULL after the last. */
const struct backend *backend_at(int i);
/* The backend named `want`, or for "auto" the first whose probe succeeds. KM_EINVAL: no such name. KM_EDEVICE: the
 * named backend has no usable device. */
int backend_pick(const char *want, const struct backend **out, struct km_err *err);
/* Like backend_pick, but for a plan: a named backend of this build needs no device. */
int backend_pick_plan(const char *want, const struct backend **out, struct km_err *err);
/* True if `want` is "auto" and a backend of this build that is preferred to `got` has no usable device; *why is the
 * reason. */
bool backend_fell_back(const char *want, const struct backend *got, struct km_err *why);

#endif
