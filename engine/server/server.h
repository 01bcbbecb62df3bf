/* An OpenAI-compatible HTTP server for one engine.
 *
 * A `srv` is the server: its listener, its connections and the requests in work. The caller owns the engine and the
 * tokenizer and keeps both until srv_free. The event loop (libevent) runs on the thread that calls srv_run; the
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
    const char *api_key;     /* the Bearer token that requests must carry; NULL: none is asked for */
    int64_t seed;            /* seeds requests that have no "seed" of their own */
    const char *device;      /* the backend, for /version and /metrics: "cpu" */
    const char *kv;          /* the cache layer, for /version and /metrics: "none", "dram=5GiB" */
    size_t max_body;         /* the longest request body, bytes; 8 MiB are 64 for each token of a context of 131072 */
    int max_connections;     /* open at once; further clients wait in the kernel's queue */
    double idle_timeout;     /* s before a connection without a request is closed */
    double read_timeout;     /* s for a whole request to arrive, and for a stalled write */
};
struct srv_opts srv_defaults(void);
/* The options as a table of base/option.h, for command lines. */
struct km_option_group srv_option_group(struct srv_opts *o);

struct srv;

/* Opens the server and listens. t NULL: the server accepts and returns token ids only. KM_ENET: the address cannot be
 * listened on; the message names the host and the port. The strings of o are needed until srv_free. */
int srv_open(struct srv **out, const struct srv_opts *o, struct eng *e, const struct tok *t, struct km_err *err);
int srv_port(const struct srv *s);
/* Serves until srv_stop, or with handle_signals until SIGTERM or SIGINT. Then new requests are refused, and requests
 * in work have 10 s to finish before they end with an error. A second signal ends the 10 s. Returns 0 after a stop. */
int srv_run(struct srv *s, bool handle_signals, struct km_err *err);
void srv_stop(struct srv *s); /* from any thread or a signal handler */
void srv_free(struct srv *s);

#endif
