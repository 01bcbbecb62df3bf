/* An engine and its HTTP server, from command-line options.
 *
 * `serve_opts` holds every option of `kvmark serve`; the names are vLLM's where vLLM has the option. serve_run opens
 * the model, the tokenizer, the cache layer, the engine and the server, in this order, and serves until SIGTERM or
 * SIGINT. serve_spawn does the same in a child process, so that `kvmark run` measures its own engine over HTTP and in a
 * process apart from the client. */
#ifndef SERVE_H
#define SERVE_H

#include "base/err.h"
#include "base/option.h"
#include "engine/engine.h"
#include "engine/server/server.h"
#include "harness/cli/kv_options.h"

#include <stdbool.h>
#include <stdint.h>
#include <sys/types.h>

struct serve_opts {
    const char *model, *tokenizer, *device;
    bool dummy_weights; /* --load-format dummy */
    int64_t seed;
    bool batch_invariant;
    struct eng_opts engine;
    struct kvo_opts kv;
    struct srv_opts server;
};
enum { SERVE_GROUPS = 4 };
/* Fills `out` with the SERVE_GROUPS option groups over o. Returns their number. */
int serve_option_groups(struct serve_opts *o, struct km_option_group *out);

/* The facts about an engine that results record besides its options. */
struct serve_facts {
    char kv[KVO_TEXT]; /* "none", or the cache layer: "dram=5GiB, chunk 256" */
    char device[16];   /* cpu or cuda: the backend that --device auto found */
    bool dummy_weights;
};
/* Checks all that can be checked without loading weights: options, device, cache layer. Fills *facts. */
int serve_check(const struct serve_opts *o, struct serve_facts *facts, struct km_err *err);

/* The memory that serve_run would allocate. */
struct serve_plan {
    struct serve_facts facts;
    char model[96];         /* name of the model */
    struct plan mem;        /* buffers by kind of memory, and the memory limit */
    struct eng_opts engine; /* the options as the engine resolves them; none is 0 for "default" any more */
    int64_t token_bytes;    /* bytes of one token's KV */
    struct kvo_choice kv;   /* the cache layer */
    struct kvc_plan cache;  /* of the cache layer; zeros without one */
    int64_t available;      /* bytes of host memory that this process could allocate now */
    bool fits;              /* false: only facts, model, mem.rows and mem.limit are valid */
};
/* Plans without reading weights, and with --gpu-memory-limit also without a GPU. KM_EINVAL: wrong options. KM_ELIMIT:
 * the engine does not fit; the message is the one with which serve_run would fail. */
int serve_make_plan(const struct serve_opts *o, struct serve_plan *out, struct km_err *err);

/* The state of a server when its port is bound. The cache layer takes its host memory in the background. */
struct serve_ready {
    int port;
    double cache_wait_s; /* s that serve_run waited for the cache layer's memory */
    bool cache_complete; /* the cache layer's memory has its final size, or there is no cache layer */
};
/* Serves in this process until SIGTERM or SIGINT. Calls ready, which may be NULL, when the port is bound and the cache
 * layer's memory has its final size, or cache_wait_s seconds after the port was bound. */
int serve_run(const struct serve_opts *o, double cache_wait_s, void (*ready)(void *arg, const struct serve_ready *r),
              void *arg, struct km_err *err);

/* Starts serve_run in a child process, on a free port whatever --port says. Returns when the server accepts
 * connections, or with the child's error. It waits at most SERVE_CACHE_WAIT_S for the cache layer's memory, so that a
 * measurement does not begin with a cache that stores only a part. The child ends when this process ends. */
int serve_spawn(const struct serve_opts *o, pid_t *pid, struct serve_ready *ready, struct km_err *err);
enum { SERVE_CACHE_WAIT_S = 120 };
/* Ends the child with SIGTERM and waits for it. KM_EIO if the child had ended before or ends with an error; the message
 * has its signal or exit status. */
int serve_stop(pid_t pid, struct km_err *err);

#endif
