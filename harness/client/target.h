/* The server under test, and single blocking requests to it, which are not measured.
 *
 * A `target` holds the address of an OpenAI-compatible server and what every request to it carries. Its strings are
 * borrowed. */
#ifndef TARGET_H
#define TARGET_H

#include "base/buf.h"
#include "base/err.h"
#include "base/option.h"

#include <stddef.h>

struct target {
    const char *url;        /* http://127.0.0.1:8000; it may end in "/" or "/v1" */
    const char *model;      /* NULL: the first model that the server lists */
    const char *api_key;    /* NULL: none */
    struct km_strs headers; /* extra headers, "Name: value" or "Name=value" */
    const char *extra_body; /* a JSON object merged into each request; NULL: none */
};

/* GET or POST of url + path. Appends the body to out (NULL: dropped). Returns the HTTP status, or an error code < 0. */
int target_get(const struct target *t, const char *path, double timeout_s, struct km_buf *out, struct km_err *err);
int target_post(const struct target *t, const char *path, const char *body, double timeout_s, struct km_buf *out,
                struct km_err *err);

/* Waits until GET /health returns 200, or GET /v1/models on a server without /health. KM_ENET after timeout_s; the
 * message quotes the last response. */
int target_wait_ready(const struct target *t, double timeout_s, struct km_err *err);

/* The model name to send: t->model, or the first model that the server lists. KM_EINVAL when the server lists models
 * and t->model is not among them; a server without /v1/models is not checked. */
int target_model(const struct target *t, char *out, size_t size, struct km_err *err);
/* The `root` of that model in /v1/models: a folder with its tokenizer, if the server runs on this machine. KM_ENOENT
 * when the server does not report one. */
int target_model_root(const struct target *t, struct km_buf *out, struct km_err *err);
/* "version" of GET /version; "" when there is none. */
void target_version(const struct target *t, char *out, size_t size);

/* For a request that the caller makes with libcurl: appends the URL of a path, and builds the list of headers (freed by
 * curl_slist_free_all). */
struct curl_slist;
int target_url(const struct target *t, const char *path, struct km_buf *out, struct km_err *err);
int target_headers(const struct target *t, struct curl_slist **out, struct km_err *err);

#endif
