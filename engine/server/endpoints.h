/* The endpoints of the API: a table of paths, and the code that answers each.
 *
 * An `endpoints` connects the requests of an `http` to what answers them: jobs for completions and chats, resets for
 * the prefix cache, and the counters of the engine and the server. All of that is borrowed from the server. */
#ifndef SRV_ENDPOINTS_H
#define SRV_ENDPOINTS_H

#include "base/hash.h"
#include "engine/server/http.h"
#include "engine/server/jobs.h"
#include "engine/server/reset.h"

#include <time.h>

struct endpoints {
    struct eng *eng;
    const struct tok *tok;             /* NULL: token ids only */
    struct runner *runner;
    struct http *http;
    struct jobs *jobs;
    struct resets *resets;
    const struct met *met;
    const char *model;                 /* the served name */
    const char *device, *kv;           /* for /version and /metrics */
    time_t created;
    bool draining;                     /* a shutdown has begun: requests are refused */

    /* Set by ep_init. */
    struct km_sha *sha;                /* NULL: no API key is asked for */
    struct km_digest key;              /* digest of the API key */
};

/* The message of requests that a shutdown refuses or ends. */
#define EP_SHUTTING_DOWN "The server is shutting down; send the request again later or to another server"

/* api_key NULL: none is asked for. The other members are set by the caller, before or after. */
int ep_init(struct endpoints *p, const char *api_key, struct km_err *err);
void ep_deinit(struct endpoints *p);

/* The http_handlers; arg is the struct endpoints. */
extern const struct http_handlers ep_handlers;

#endif
