/* To add an endpoint, write its handler and add a row to `routes`. */
#include "engine/server/endpoints.h"

#include "base/json.h"
#include "base/mem.h"
#include "engine/server/api.h"
#include "engine/server/metrics.h"
#include "engine/server/respond.h"

#include <stdio.h>
#include <string.h>
#include <strings.h>

int ep_init(struct endpoints *p, const char *api_key, struct km_err *err)
{
    p->sha = NULL;
    if (!api_key)
        return 0;
    int rc = km_sha_new(&p->sha, err);
    if (!rc) {
        km_sha_add(p->sha, api_key, strlen(api_key));
        p->key = km_sha_end(p->sha);
    }
    return rc;
}

void ep_deinit(struct endpoints *p)
{
    km_sha_free(p->sha);
}

static void reply_json(struct http_conn *c, struct km_buf *b)
{
    if (km_buf_ok(b))
        http_reply(c, 200, "application/json", "", km_buf_str(b), b->len);
    else
        http_reply_error(c, 503, HTTP_RETRY_LATER, "the server has no memory for the answer; try again later", NULL,
                         NULL);
    km_buf_free(b);
}

/* Appends a string member to the JSON object that b ends in. */
static void put_field(struct km_buf *b, const char *key, const char *value)
{
    km_buf_printf(b, "%s\"%s\":\"", b->len > 1 ? "," : "", key);
    km_buf_put_json(b, value, strlen(value));
    km_buf_putc(b, '"');
}

static void get_health(struct endpoints *p, struct http_conn *c, struct hp *r)
{
    (void)r;
    struct km_err why = {0};
    if (runner_failed(p->runner, &why))
        http_reply_error(c, 503, "", why.msg, NULL, "engine_failed");
    else
        http_reply(c, 200, NULL, "", "", 0);
}

static void get_version(struct endpoints *p, struct http_conn *c, struct hp *r)
{
    (void)r;
    struct km_buf b = {0};
    struct eng_stats st;
    runner_stats(p->runner, &st);
    const struct mdl *m = eng_model(p->eng);
    struct km_digest d;
    char hex[65];
    km_buf_putc(&b, '{');
    put_field(&b, "version", KVMARK_VERSION);
    put_field(&b, "server", "kvmark");
    put_field(&b, "device", p->device);
    put_field(&b, "device_name", st.be.device);
    put_field(&b, "kv", p->kv);
    put_field(&b, "model", mdl_name(m));
    if (mdl_fingerprint_known(m) && !mdl_fingerprint(m, &d, NULL)) {
        km_hex(&d, hex);
        put_field(&b, "fingerprint", hex);
    }
    put_field(&b, "dtype", km_dtype_name(eng_options(p->eng)->dtype));
    const struct eng_opts *o = eng_options(p->eng);
    km_buf_printf(&b,
                  ",\"dummy_weights\":%s,\"num_gpu_blocks\":%d,\"block_size\":%d,\"max_model_len\":%d,"
                  "\"max_num_seqs\":%d,\"max_num_batched_tokens\":%d}",
                  mdl_is_dummy(m) ? "true" : "false", o->num_blocks, o->block_size, o->max_model_len, o->max_num_seqs,
                  o->max_num_batched_tokens);
    reply_json(c, &b);
}

/* "root" is the folder of the model, as in vLLM: clients on the same machine load the tokenizer from it. */
static void put_model(struct endpoints *p, struct km_buf *b)
{
    const struct mdl *m = eng_model(p->eng);
    struct km_buf o = {0};
    km_buf_putc(&o, '{');
    put_field(&o, "id", p->model);
    put_field(&o, "object", "model");
    km_buf_printf(&o, ",\"created\":%lld", (long long)p->created);
    put_field(&o, "owned_by", "kvmark");
    put_field(&o, "root", mdl_dir(m) ? mdl_dir(m) : mdl_name(m));
    km_buf_printf(&o, ",\"parent\":null,\"max_model_len\":%d}", eng_options(p->eng)->max_model_len);
    km_buf_put(b, km_buf_str(&o), o.len);
    b->oom |= o.oom;
    km_buf_free(&o);
}

static void get_models(struct endpoints *p, struct http_conn *c, struct hp *r)
{
    struct km_buf b = {0};
    const char *name = r->path + strlen("/v1/models");
    if (*name == '/') {
        if (strcmp(name + 1, p->model)) {
            char why[240];
            snprintf(why, sizeof why, "The model \"%.100s\" does not exist; this server serves \"%.50s\"", name + 1,
                     p->model);
            http_reply_error(c, 404, "", why, "model", "model_not_found");
            return;
        }
        put_model(p, &b);
    } else {
        km_buf_puts(&b, "{\"object\":\"list\",\"data\":[");
        put_model(p, &b);
        km_buf_puts(&b, "]}");
    }
    reply_json(c, &b);
}

static void get_metrics(struct endpoints *p, struct http_conn *c, struct hp *r)
{
    (void)r;
    struct km_buf b = {0};
    struct met_facts f = {.model = p->model,
                          .device = p->device,
                          .kv = p->kv,
                          .opts = eng_options(p->eng),
                          .http = http_stats(p->http),
                          .live = jobs_live(p->jobs)};
    runner_stats(p->runner, &f.stats);
    met_write(p->met, &f, &b);
    http_reply(c, 200, "text/plain; version=0.0.4; charset=utf-8", "", km_buf_str(&b), b.len);
    km_buf_free(&b);
}

/* Parses the body and frees it. If it is not valid, answers with the error and returns false. */
static bool parse_body(struct endpoints *p, struct http_conn *c, struct hp *r, enum api_kind kind,
                       struct api_request *a)
{
    const struct mdl_config *m = mdl_config(eng_model(p->eng));
    struct api_env env = {.model = p->model,
                          .tok = p->tok,
                          .vocab = m->vocab,
                          .max_model_len = eng_options(p->eng)->max_model_len,
                          .temperature = m->temperature,
                          .top_p = m->top_p,
                          .top_k = m->top_k};
    struct api_error e;
    int rc = api_parse(a, kind, km_buf_str(&r->body), r->body.len, &env, &e);
    km_buf_free(&r->body);
    if (!rc)
        return true;
    http_reply_error(c, e.status, "", e.err.msg, e.param, e.code);
    return false;
}

static void post_completions(struct endpoints *p, struct http_conn *c, struct hp *r)
{
    struct api_request a;
    if (parse_body(p, c, r, API_COMPLETION, &a))
        jobs_start(p->jobs, c, &a);
}

static void post_chat_completions(struct endpoints *p, struct http_conn *c, struct hp *r)
{
    struct api_request a;
    if (parse_body(p, c, r, API_CHAT, &a))
        jobs_start(p->jobs, c, &a);
}

static void post_tokenize(struct endpoints *p, struct http_conn *c, struct hp *r)
{
    struct api_request a;
    if (!parse_body(p, c, r, API_TOKENIZE, &a))
        return;
    struct km_buf b = {0};
    const struct tok_ids *ids = &a.prompts[0];
    km_buf_printf(&b, "{\"count\":%zu,\"max_model_len\":%d,\"tokens\":[", ids->n, eng_options(p->eng)->max_model_len);
    for (size_t i = 0; i < ids->n; i++)
        km_buf_printf(&b, i ? ",%d" : "%d", ids->v[i]);
    km_buf_puts(&b, "],\"token_strs\":");
    if (a.token_strs) {
        for (size_t i = 0; i < ids->n; i++) {
            km_buf_puts(&b, i ? ",\"" : "[\"");
            rsp_token(&b, p->tok, ids->v[i], false);
            km_buf_putc(&b, '"');
        }
        km_buf_puts(&b, ids->n ? "]}" : "[]}");
    } else {
        km_buf_puts(&b, "null}");
    }
    api_free(&a);
    reply_json(c, &b);
}

static void post_detokenize(struct endpoints *p, struct http_conn *c, struct hp *r)
{
    struct api_request a;
    if (!parse_body(p, c, r, API_DETOKENIZE, &a))
        return;
    struct km_buf text = {0}, b = {0};
    struct km_err err = {0};
    if (tok_decode(p->tok, a.prompts[0].v, a.prompts[0].n, false, &text, &err)) {
        http_reply_error(c, 400, "", err.msg, "tokens", NULL);
    } else {
        km_buf_puts(&b, "{\"prompt\":\"");
        km_buf_put_json(&b, km_buf_str(&text), text.len);
        km_buf_puts(&b, "\"}");
        b.oom |= text.oom;
        reply_json(c, &b);
    }
    km_buf_free(&text);
    api_free(&a);
}

enum { MAX_RESET_BODY = 4096 };

static void post_reset_prefix_cache(struct endpoints *p, struct http_conn *c, struct hp *r)
{
    struct km_err err = {0};
    bool external = hp_query_flag(r, "reset_external");
    if (r->body.len > MAX_RESET_BODY) {
        http_reply_error(c, 413, "", "the body is longer than 4096 bytes; send {\"reset_external\": true} or no body",
                         NULL, NULL);
        return;
    }
    if (r->body.len) {
        cJSON *v = NULL;
        int rc = km_json_parse(r->body.data, r->body.len, &v, &err);
        if (!rc)
            rc = km_json_bool(v, "reset_external", false, &external, &err);
        cJSON_Delete(v);
        if (rc) {
            http_reply_error(c, 400, "", err.msg, "reset_external", NULL);
            return;
        }
    }
    rst_start(p->resets, c, external);
}

enum { GET, POST };
enum { PUBLIC = 1, SUBTREE = 2, JSON = 4 };

static const struct route {
    int method; /* GET also answers HEAD */
    const char *path;
    int flags; /* PUBLIC: no API key is needed. SUBTREE: also PATH/NAME. JSON: the body must be JSON. */
    void (*handle)(struct endpoints *p, struct http_conn *c, struct hp *r);
} routes[] = {
    {GET, "/health", PUBLIC, get_health},
    {GET, "/version", 0, get_version},
    {GET, "/metrics", 0, get_metrics},
    {GET, "/v1/models", SUBTREE, get_models},
    {POST, "/v1/completions", JSON, post_completions},
    {POST, "/v1/chat/completions", JSON, post_chat_completions},
    {POST, "/tokenize", JSON, post_tokenize},
    {POST, "/detokenize", JSON, post_detokenize},
    {POST, "/reset_prefix_cache", 0, post_reset_prefix_cache},
};

static const struct route *find_route(const char *path)
{
    for (const struct route *r = routes; r < routes + sizeof routes / sizeof *routes; r++) {
        size_t n = strlen(r->path);
        if (!strncmp(path, r->path, n) && (!path[n] || (path[n] == '/' && r->flags & SUBTREE)))
            return r;
    }
    return NULL;
}

/* Compares the digests of the keys in constant time, so that the response time reveals nothing about the key. */
static bool has_api_key(struct endpoints *p, const struct hp *r)
{
    const char *auth = hp_header(r, "authorization");
    if (!auth || strncasecmp(auth, "bearer ", 7))
        return false;
    auth += 7 + strspn(auth + 7, " ");
    km_sha_begin(p->sha);
    km_sha_add(p->sha, auth, strlen(auth));
    struct km_digest d = km_sha_end(p->sha);
    volatile unsigned char differ = 0;
    for (size_t i = 0; i < sizeof d.b; i++)
        differ |= d.b[i] ^ p->key.b[i];
    return !differ;
}

static void refuse_path(struct http_conn *c, const struct hp *r)
{
    char why[200];
    snprintf(why, sizeof why, "There is no endpoint \"%.100s\"; the API is under /v1", r->path);
    http_reply_error(c, 404, "", why, NULL, "not_found");
}

static void refuse_method(struct http_conn *c, const struct hp *r, bool want_post)
{
    char why[200];
    snprintf(why, sizeof why, "%.100s does not accept %s; use %s", r->path, r->method, want_post ? "POST" : "GET");
    http_reply_error(c, 405, want_post ? "Allow: POST\r\n" : "Allow: GET, HEAD\r\n", why, NULL, NULL);
}

/* Refuses the head of a request whose body is not plain JSON of a known length. */
static void check_json_head(struct http_conn *c, const struct hp *r)
{
    const char *type = hp_header(r, "content-type"), *coding = hp_header(r, "content-encoding");
    size_t n = type ? strcspn(type, "; \t") : 0;
    char why[200];
    if (n != strlen("application/json") || strncasecmp(type, "application/json", n)) {
        snprintf(why, sizeof why, "Content-Type is \"%.100s\"; it must be application/json", type ? type : "");
        http_reply_error(c, 415, "", why, NULL, NULL);
    } else if (coding && strcasecmp(coding, "identity")) {
        snprintf(why, sizeof why, "Content-Encoding \"%.100s\" is not supported; send the JSON as it is", coding);
        http_reply_error(c, 415, "", why, NULL, NULL);
    } else if (!r->has_length && !r->chunked) {
        http_reply_error(c, 411, "", "Content-Length is missing; send it, or a chunked body", NULL, NULL);
    }
}

/* Refuses a request whose head is enough to refuse it, before the body is read. */
static void handle_head(void *arg, struct http_conn *c, const struct hp *r)
{
    struct endpoints *p = arg;
    const struct route *route = find_route(r->path);
    bool post = !strcmp(r->method, "POST"), get = !strcmp(r->method, "GET") || !strcmp(r->method, "HEAD");
    if (p->sha && !(route && route->flags & PUBLIC) && !has_api_key(p, r))
        http_reply_error(c, 401, "WWW-Authenticate: Bearer\r\n",
                         "Incorrect API key; send the server's --api-key as a Bearer token", NULL, "invalid_api_key");
    else if (!route)
        refuse_path(c, r);
    else if (route->method == POST ? !post : !get)
        refuse_method(c, r, route->method == POST);
    else if (p->draining)
        http_reply_error(c, 503, HTTP_RETRY_LATER, EP_SHUTTING_DOWN, NULL, "shutting_down");
    else if (route->flags & JSON)
        check_json_head(c, r);
}

static void handle_request(void *arg, struct http_conn *c, struct hp *r)
{
    find_route(r->path)->handle(arg, c, r);
}

const struct http_handlers ep_handlers = {handle_head, handle_request};
