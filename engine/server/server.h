/* An OpenAI-compatible HTTP server for one engine.
 *
 * A `srv` is the server: its listener, its connections and the requests in progress. The caller owns the engine and the
 * tokenizer, which must exist until srv_free. The event loop (libevent) runs on the thread that calls srv_run. The
 * engine's steps run on a thread that the server starts. */
#ifndef SRV_SERVER_H
#define SRV_SERVER_H

#include "base/option.h"
#include "engine/engine.h"
#include "tokenizer/tokenizer.h"

/* Defaults and ranges are the rows of engine/server/options.c. */
struct srv_opts {
    const char *host;        /* the address to listen on */
    int port;                /* 0: a free port, which srv_port returns */
    const char *served_name; /* the model's name in the API; NULL: the engine's name for it */
    const char *api_key;     /* the Bearer token that requests must have; NULL: requests need none */
    int64_t seed;            /* the seeds of requests without "seed" are derived from it */
    const char *device;      /* the backend's name in /version and /metrics: "cpu" */
    const char *kv;          /* the cache layer's name in /version and /metrics: "none", "dram=5GiB" */
    size_t max_body;         /* longest request body, bytes; the default has 64 for each of 131072 tokens */
    int max_connections;     /* open at once; further connections wait in the kernel's queue */
    double idle_timeout;     /* s after which a connection without a request is closed */
    double read_timeout;     /* s within which a whole request must arrive, and a stalled write must go on */
};
struct srv_opts srv_defaults(void);
/* The option table of o (base/option.h). */
struct km_option_group srv_option_group(struct srv_opts *o);

struct srv;

/* Opens the server and listens. t NULL: the server accepts and returns token ids only. KM_ENET: it cannot listen on the
 * address; the message names the host and the port. The strings of o must exist until srv_free. */
int srv_open(struct srv **out, const struct srv_opts *o, struct eng *e, const struct tok *t, struct km_err *err);
int srv_port(const struct srv *s);
/* Serves until srv_stop or, with handle_signals, until SIGTERM or SIGINT. Then new requests are refused, and requests
 * in progress have 10 s to finish before they end with an error. A second signal ends the wait. Returns 0 after a
 * stop. */
int srv_run(struct srv *s, bool handle_signals, struct km_err *err);
void srv_stop(struct srv *s); /* may be called from any thread and from a signal handler */
void srv_free(struct srv *s);

#endif
