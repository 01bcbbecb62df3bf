/* An engine and its HTTP server, from command-line options.
 *
 * `serve_opts` holds every option of `kvmark serve`; the names are vLLM's where vLLM has the option. serve_run opens the
 * model, the tokenizer, the cache layer, the engine and the server, in this order, and serves until it is told to stop.
 * serve_spawn does so in a child process: `kvmark run` measures its own engine over HTTP, in a process apart from the
 * client. */
#ifndef SERVE_H
#define SERVE_H

#include "base/err.h"
#include "base/option.h"
#include "engine/engine.h"
#include "engine/server/server.h"

#include <stdbool.h>
#include <stdint.h>
#include <sys/types.h>

struct serve_opts {
    const char *model, *tokenizer, *device;
    bool dummy_weights; /* --load-format dummy */
    int64_t seed;
    bool batch_invariant;
    const char *kv_cache, *kv_config, *kv_role;
    int chunk_size; /* 0: not given */
    struct eng_opts engine;
    struct srv_opts server;
};
enum { SERVE_GROUPS = 4 };
/* The option groups that fill o; returns how many: SERVE_GROUPS. */
int serve_option_groups(struct serve_opts *o, struct km_option_group *out);

/* What results record of an engine besides its options. */
struct serve_facts {
    char kv[128];    /* "none", or the cache layer: "dram=5GiB, chunk 256" */
    char device[16]; /* cpu or cuda: the backend that --device auto found */
    bool dummy_weights;
};
/* Checks everything that can be checked without loading weights. */
int serve_check(const struct serve_opts *o, struct serve_facts *facts, struct km_err *err);

/* The memory that serve_run would take. */
struct serve_plan {
    struct serve_facts facts;
    char model[96];
    struct plan mem;
    struct eng_opts engine; /* as the engine resolved them: no zeros left */
    int64_t token_bytes;    /* of one token's KV */
    int chunk_size;         /* tokens of a chunk of the cache layer; its default without a layer */
    int64_t cache_chunks;   /* chunks that the cache layer's memory holds */
    bool fits;              /* if not, only facts, model, mem.rows and mem.limit are valid */
};
/* Plans without reading weights, and with --gpu-memory-limit also without a GPU. KM_EINVAL: wrong options. KM_ELIMIT: it
 * does not fit, with the message that serve_run would fail with. */
int serve_make_plan(const struct serve_opts *o, struct serve_plan *out, struct km_err *err);

/* Serves in this process until SIGTERM or SIGINT. ready (may be NULL) is called when the port is bound. */
int serve_run(const struct serve_opts *o, void (*ready)(void *arg, int port), void *arg, struct km_err *err);

/* Starts serve_run in a child process, on a free port whatever --port says. Returns when the server accepts
 * connections, or with the child's error. The child ends when this process ends. */
int serve_spawn(const struct serve_opts *o, pid_t *pid, int *port, struct km_err *err);
/* Ends the child and waits for it. A child that had ended before, or that ends with an error, is an error that says
 * how it ended. */
int serve_stop(pid_t pid, struct km_err *err);

#endif
