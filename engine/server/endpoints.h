/* The endpoints of the API: a table of paths, and the code that answers each.
 *
 * An `endpoints` holds what the handlers of an `http` need to answer requests: the jobs for completions and chats, the
 * resets of the prefix cache, and the counters of the engine and the server. The server owns all of these. */
#ifndef SRV_ENDPOINTS_H
#define SRV_ENDPOINTS_H

#include "base/hash.h"
#include "engine/server/http.h"
#include "engine/server/jobs.h"
#include "engine/server/reset.h"

#include <time.h>

struct endpoints {
    struct eng *eng;
    const struct tok *tok; /* NULL: token ids only */
    struct runner *runner;
    struct http *http;
    struct jobs *jobs;
    struct resets *resets;
    const struct met *met;
    const char *model;       /* the served name */
    const char *device, *kv; /* names of the backend and the cache layer in /version and /metrics */
    time_t created;          /* start of the server, for /v1/models */
    bool draining;           /* a shutdown has begun: requests are refused */

    /* Set by ep_init. */
    struct km_sha *sha;   /* NULL: requests need no API key */
    struct km_digest key; /* digest of the API key */
};

/* The error message of requests that a shutdown refuses or ends. */
#define EP_SHUTTING_DOWN "The server is shutting down; send the request again later or to another server"

/* Sets the API key; NULL: requests need none. The caller sets the other members, before or after. */
int ep_init(struct endpoints *p, const char *api_key, struct km_err *err);
void ep_deinit(struct endpoints *p);

/* Handlers for http_open; their arg is the struct endpoints. */
extern const struct http_handlers ep_handlers;

#endif
