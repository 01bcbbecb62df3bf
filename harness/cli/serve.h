/* An engine and its server from command-line flags: what `serve` runs, and what `run` starts beside itself.
 *
 * `serve_opts` holds every serve flag with vLLM's names. serve_run opens model, tokenizer, cache layer,
 * engine and server in this order and serves until told to stop; serve_spawn does that in a child process, so that the
 * client is measured apart from what it measures. */
#ifndef SERVE_H
#define SERVE_H

#include "base/args.h"
#include "base/err.h"
#include "engine/engine.h"

#include <stdbool.h>
#include <stdint.h>
#include <sys/types.h>

struct serve_opts {
    const char *model, *tokenizer, *load_format, *dtype, *device;
    const char *host, *served_model_name, *api_key;
    const char *kv_cache, *kv_config, *kv_role;
    int64_t port, seed, threads;
    int64_t max_model_len, max_num_seqs, max_num_batched_tokens, block_size, num_gpu_blocks_override;
    int64_t gpu_memory_limit, chunk_size;
    double gpu_memory_utilization;
    bool enable_prefix_caching, batch_invariant;
};
struct serve_opts serve_defaults(void);
/* The serve flags, pointing into o; returns how many. */
int serve_flags(struct serve_opts *o, struct km_flag *out, int max);

/* What of the options ends up in results; text buffers owned by the caller. */
struct serve_facts {
    char kv[128];    /* "none", "dram=5GiB, chunk 256" */
    char device[16]; /* cpu or cuda: what auto came to */
    bool dummy_weights;
};
/* Checks everything that can be checked without loading weights. */
int serve_check(const struct serve_opts *o, struct serve_facts *facts, struct km_err *err);

/* What serve_run would take, nothing of it taken: no weights read, and no card needed where --gpu-memory-limit says
 * what one may use. */
struct serve_plan {
    struct serve_facts facts;
    char model[96];
    struct plan mem;
    struct eng_opts engine; /* as resolved */
    int64_t token_bytes;    /* of KV */
    int chunk_size;         /* tokens, of the cache layer; the usual 256 without one */
    int64_t cache_chunks;   /* that the cache layer holds in host memory */
    bool fits;              /* else only mem.rows, mem.limit and what stands above them count */
};
/* KM_EINVAL: flags. KM_ELIMIT: it does not fit, in serve's words. */
int serve_make_plan(const struct serve_opts *o, struct serve_plan *out, struct km_err *err);

/* Serves in this process until SIGTERM or SIGINT. ready (may be NULL) is called once the port is bound. */
int serve_run(const struct serve_opts *o, void (*ready)(void *arg, int port), void *arg, struct km_err *err);

/* Starts serve_run in a child on a free port (o->port is ignored). The child ends with this process. Returns when it
 * accepts connections; a child that fails hands its error over. */
int serve_spawn(const struct serve_opts *o, pid_t *pid, int *port, struct km_err *err);
/* Ends the child and collects it; a child that had died before is an error that says how. */
int serve_stop(pid_t pid, struct km_err *err);

#endif
