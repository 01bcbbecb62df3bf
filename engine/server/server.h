/* The OpenAI-compatible HTTP server over one engine: libevent on the caller's thread, the engine on another. */
#ifndef SRV_SERVER_H
#define SRV_SERVER_H

#include "base/option.h"
#include "engine/engine.h"
#include "tokenizer/tokenizer.h"

/* Defaults and ranges are the rows of engine/server/options.c. */
struct srv_opts {
    const char *host;        /* address to listen on */
    int port;                /* 0: any free one, see srv_port */
    const char *served_name; /* what /v1/models says and requests must ask for; NULL: the model's name */
    const char *api_key;     /* NULL: none wanted */
    int64_t seed;            /* of requests that bring none */
    const char *device;      /* "cpu", for /version and logs */
    const char *kv;          /* "none", "dram=5GiB": likewise */
    size_t max_body;         /* bytes */
    int max_connections;
    double idle_timeout;     /* s, of a connection without a request */
    double read_timeout;     /* s, of a request that arrives slowly */
};
struct srv_opts srv_defaults(void);
/* The options as a table of base/option.h, for command lines. */
struct km_option_group srv_option_group(struct srv_opts *o);

struct srv;

/* Binds; KM_ENET naming host and port when it is taken. t may be NULL: then only token ids are served. */
int srv_open(struct srv **out, const struct srv_opts *o, struct eng *e, const struct tok *t, struct km_err *err);
int srv_port(const struct srv *s);
/* Serves until srv_stop or SIGTERM/SIGINT (when handle_signals): no new requests, streams end within the
 * grace period or get an error event. 0 after a clean stop. */
int srv_run(struct srv *s, bool handle_signals, struct km_err *err);
void srv_stop(struct srv *s); /* from any thread or a signal handler */
void srv_free(struct srv *s);

#endif
