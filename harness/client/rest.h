/* Addresses and headers, shared by the load client and the single calls of load.h. */
#ifndef REST_REST_H
#define REST_REST_H

#include "harness/client/load.h"

#include <curl/curl.h>

/* target's root + path. The root may end in / or /v1, as people write it for other clients. */
int rest_url(const struct hz_target *t, const char *path, struct km_buf *out, struct km_err *err);
/* JSON, the key, the target's own; freed by curl_slist_free_all. */
int rest_headers(const struct hz_target *t, struct curl_slist **out, struct km_err *err);

/* The name to send: target->model, or the first that the server lists. KM_EINVAL when the server lists models and
 * the one asked for is not among them; a server without /v1/models is believed. */
int rest_model(const struct hz_target *t, char *out, size_t size, struct km_err *err);
/* "version" of GET /version; "" when there is none. */
void rest_version(const struct hz_target *t, char *out, size_t size);

#endif
