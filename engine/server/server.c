/* The endpoints, and the event loop that joins connections, jobs and the engine.
 *
 * The engine runs on a thread of its own and writes to an eventfd when it has events. Everything else runs on the
 * thread of the event loop, without locks. All events of a step are handled before anything is sent, so that each
 * connection gets one write for each step.
 *
 * To add an endpoint, add a row to `routes`. */
#include "engine/server/server.h"

#include "base/clock.h"
#include "base/hash.h"
#include "base/json.h"
#include "base/log.h"
#include "base/mem.h"
#include "engine/server/api.h"
#include "engine/server/http.h"
#include "engine/server/jobs.h"
#include "engine/server/metrics.h"
#include "engine/server/reset.h"
#include "engine/server/respond.h"

#include <errno.h>
#include <event2/event.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdio.h>
#include <string.h>
#include <strings.h>
#include <sys/eventfd.h>
#include <time.h>
#include <unistd.h>

/* A shutdown gives requests in work GRACE_S to finish. Then they fail, and their clients have LAST_SEND_MS to read the
 * error. Every DRAIN_TICK_MS the server looks whether all connections have closed. */
enum { GRACE_S = 10, LAST_SEND_MS = 1500, DRAIN_TICK_MS = 10 };
enum { MAX_UNSENT = 4 << 20 }; /* bytes of a stream that its client has not read */

#define SHUTTING_DOWN "The server is shutting down; send the request again later or to another server"

struct srv {
    struct srv_opts o;
    char *model, *device, *kv; /* owned copies of options */
    struct eng *eng;
    const struct tok *tok;
    struct run *run;
    struct event_base *base;
    struct event *wake_event, *drain_timer;
    int wake_fd;               /* an eventfd: the engine has events, or srv_stop was called */
    struct http *http;
    struct jobs *jobs;
    struct resets *resets;
    struct met met;
    struct eng_events events;  /* scratch */
    struct km_sha *sha;        /* NULL without an API key */
    struct km_digest key;      /* digest of the API key */
    time_t created;
    bool draining;             /* a shutdown has begun */
    bool forced;               /* the requests in work were ended */
    int64_t drain_until;       /* when the requests in work are ended, by km_now_ns */
    atomic_bool stop;
};

static void reply_json(struct http_conn *c, struct km_buf *b)
{
    if (km_buf_ok(b))
        http_reply(c, 200, "application/json", "", km_buf_str(b), b->len);
    else
        http_reply_error(c, 503, HTTP_RETRY_LATER, "the server has no memory for the answer; try again later", NULL,
                         NULL);
    km_buf_free(b);
}

/* Appends a member to an object that is open in b. */
static void put_field(struct km_buf *b, const char *key, const char *value)
{
    km_buf_printf(b, "%s\"%s\":\"", b->len > 1 ? "," : "", key);
    km_buf_put_json(b, value, strlen(value));
    km_buf_putc(b, '"');
}

static void get_health(struct srv *s, struct http_conn *c, struct hp *r)
{
    (void)r;
    struct km_err why = {0};
    if (run_failed(s->run, &why))
        http_reply_error(c, 503, "", why.msg, NULL, "engine_failed");
    else
        http_reply(c, 200, NULL, "", "", 0);
}

static void get_version(struct srv *s, struct http_conn *c, struct hp *r)
{
    (void)r;
    struct km_buf b = {0};
    struct eng_stats st;
    run_stats(s->run, &st);
    const struct mdl *m = eng_model(s->eng);
    struct km_digest d = mdl_fingerprint(m);
    char hex[65];
    km_hex(&d, hex);
    km_buf_putc(&b, '{');
    put_field(&b, "version", KVMARK_VERSION);
    put_field(&b, "server", "kvmark");
    put_field(&b, "device", s->device);
    put_field(&b, "device_name", st.be.device);
    put_field(&b, "kv", s->kv);
    put_field(&b, "model", mdl_name(m));
    put_field(&b, "fingerprint", hex);
    put_field(&b, "dtype", km_dtype_name(eng_options(s->eng)->dtype));
    const struct eng_opts *o = eng_options(s->eng);
    km_buf_printf(&b, ",\"dummy_weights\":%s,\"num_gpu_blocks\":%d,\"block_size\":%d,\"max_model_len\":%d,"
                      "\"max_num_seqs\":%d,\"max_num_batched_tokens\":%d}",
                  mdl_is_dummy(m) ? "true" : "false", o->num_blocks, o->block_size, o->max_model_len, o->max_num_seqs,
                  o->max_num_batched_tokens);
    reply_json(c, &b);
}

/* "root" is the folder of the model, as in vLLM: clients on the same machine load the tokenizer from it. */
static void put_model(struct srv *s, struct km_buf *b)
{
    const struct mdl *m = eng_model(s->eng);
    struct km_buf o = {0};
    km_buf_putc(&o, '{');
    put_field(&o, "id", s->model);
    put_field(&o, "object", "model");
    km_buf_printf(&o, ",\"created\":%lld", (long long)s->created);
    put_field(&o, "owned_by", "kvmark");
    put_field(&o, "root", mdl_dir(m) ? mdl_dir(m) : mdl_name(m));
    km_buf_printf(&o, ",\"parent\":null,\"max_model_len\":%d}", eng_options(s->eng)->max_model_len);
    km_buf_put(b, km_buf_str(&o), o.len);
    b->oom |= o.oom;
    km_buf_free(&o);
}

static void get_models(struct srv *s, struct http_conn *c, struct hp *r)
{
    struct km_buf b = {0};
    const char *name = r->path + strlen("/v1/models");
    if (*name == '/') {
        if (strcmp(name + 1, s->model)) {
            char why[240];
            snprintf(why, sizeof why, "The model \"%.100s\" does not exist; this server serves \"%.50s\"", name + 1,
                     s->model);
            http_reply_error(c, 404, "", why, "model", "model_not_found");
            return;
        }
        put_model(s, &b);
    } else {
        km_buf_puts(&b, "{\"object\":\"list\",\"data\":[");
        put_model(s, &b);
        km_buf_puts(&b, "]}");
    }
    reply_json(c, &b);
}

static void get_metrics(struct srv *s, struct http_conn *c, struct hp *r)
{
    (void)r;
    struct km_buf b = {0};
    struct met_facts f = {.model = s->model, .device = s->device, .kv = s->kv, .opts = eng_options(s->eng),
                          .http = http_stats(s->http), .live = jobs_live(s->jobs)};
    run_stats(s->run, &f.stats);
    met_write(&s->met, &f, &b);
    http_reply(c, 200, "text/plain; version=0.0.4; charset=utf-8", "", km_buf_str(&b), b.len);
    km_buf_free(&b);
}

/* Parses the body and frees it; answers with the error and returns false if it is not valid. */
static bool parse_body(struct srv *s, struct http_conn *c, struct hp *r, enum api_kind kind, struct api_request *a)
{
    const struct mdl_config *m = mdl_config(eng_model(s->eng));
    struct api_env env = {.model = s->model, .tok = s->tok, .vocab = m->vocab,
                          .max_model_len = eng_options(s->eng)->max_model_len, .temperature = m->temperature,
                          .top_p = m->top_p, .top_k = m->top_k};
    struct api_error e;
    int rc = api_parse(a, kind, km_buf_str(&r->body), r->body.len, &env, &e);
    km_buf_free(&r->body);
    if (!rc)
        return true;
    http_reply_error(c, e.status, "", e.err.msg, e.param, e.code);
    return false;
}

static void post_completions(struct srv *s, struct http_conn *c, struct hp *r)
{
    struct api_request a;
    if (parse_body(s, c, r, API_COMPLETION, &a))
        jobs_start(s->jobs, c, &a);
}

static void post_chat_completions(struct srv *s, struct http_conn *c, struct hp *r)
{
    struct api_request a;
    if (parse_body(s, c, r, API_CHAT, &a))
        jobs_start(s->jobs, c, &a);
}

static void post_tokenize(struct srv *s, struct http_conn *c, struct hp *r)
{
    struct api_request a;
    if (!parse_body(s, c, r, API_TOKENIZE, &a))
        return;
    struct km_buf b = {0};
    const struct tok_ids *ids = &a.prompts[0];
    km_buf_printf(&b, "{\"count\":%zu,\"max_model_len\":%d,\"tokens\":[", ids->n,
                  eng_options(s->eng)->max_model_len);
    for (size_t i = 0; i < ids->n; i++)
        km_buf_printf(&b, i ? ",%d" : "%d", ids->v[i]);
    km_buf_puts(&b, "],\"token_strs\":");
    if (a.token_strs) {
        for (size_t i = 0; i < ids->n; i++) {
            km_buf_puts(&b, i ? ",\"" : "[\"");
            rsp_token(&b, s->tok, ids->v[i], false);
            km_buf_putc(&b, '"');
        }
        km_buf_puts(&b, ids->n ? "]}" : "[]}");
    } else {
        km_buf_puts(&b, "null}");
    }
    api_free(&a);
    reply_json(c, &b);
}

static void post_detokenize(struct srv *s, struct http_conn *c, struct hp *r)
{
    struct api_request a;
    if (!parse_body(s, c, r, API_DETOKENIZE, &a))
        return;
    struct km_buf text = {0}, b = {0};
    struct km_err err = {0};
    if (tok_decode(s->tok, a.prompts[0].v, a.prompts[0].n, false, &text, &err)) {
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

static void post_reset_prefix_cache(struct srv *s, struct http_conn *c, struct hp *r)
{
    struct km_err err = {0};
    bool external = hp_query_flag(r, "reset_external");
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
    rst_start(s->resets, c, external);
}

enum { GET, POST };
enum { PUBLIC = 1, SUBTREE = 2, JSON = 4 };

static const struct route {
    int method; /* GET also answers HEAD */
    const char *path;
    int flags; /* PUBLIC: no API key is needed. SUBTREE: also PATH/NAME. JSON: the body must be JSON. */
    void (*handle)(struct srv *s, struct http_conn *c, struct hp *r);
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

/* Compares the digests of the keys, always all bytes, so that the time it takes tells nothing about the key. */
static bool has_api_key(struct srv *s, const struct hp *r)
{
    const char *auth = hp_header(r, "authorization");
    if (!auth || strncasecmp(auth, "bearer ", 7))
        return false;
    auth += 7 + strspn(auth + 7, " ");
    km_sha_begin(s->sha);
    km_sha_add(s->sha, auth, strlen(auth));
    struct km_digest d = km_sha_end(s->sha);
    volatile unsigned char differ = 0;
    for (size_t i = 0; i < sizeof d.b; i++)
        differ |= d.b[i] ^ s->key.b[i];
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

/* Refuses what can be refused before the body is read. */
static void on_head(void *arg, struct http_conn *c, const struct hp *r)
{
    struct srv *s = arg;
    const struct route *route = find_route(r->path);
    bool post = !strcmp(r->method, "POST"), get = !strcmp(r->method, "GET") || !strcmp(r->method, "HEAD");
    if (s->o.api_key && !(route && route->flags & PUBLIC) && !has_api_key(s, r))
        http_reply_error(c, 401, "WWW-Authenticate: Bearer\r\n",
                         "Incorrect API key; send the server's --api-key as a Bearer token", NULL, "invalid_api_key");
    else if (!route)
        refuse_path(c, r);
    else if (route->method == POST ? !post : !get)
        refuse_method(c, r, route->method == POST);
    else if (s->draining)
        http_reply_error(c, 503, HTTP_RETRY_LATER, SHUTTING_DOWN, NULL, "shutting_down");
    else if (route->flags & JSON)
        check_json_head(c, r);
}

static void on_request(void *arg, struct http_conn *c, struct hp *r)
{
    find_route(r->path)->handle(arg, c, r);
}

/* Wakes the event loop; called on the engine's thread. */
static void wake(void *arg)
{
    struct srv *s = arg;
    uint64_t one = 1;
    ssize_t n = write(s->wake_fd, &one, sizeof one);
    (void)n; /* fails only if the counter is full, and then the loop is about to wake anyway */
}

static void begin_drain(struct srv *s)
{
    if (s->draining) {
        s->drain_until = km_now_ns(); /* asked twice: do not wait any longer */
        return;
    }
    s->draining = true;
    s->drain_until = km_now_ns() + (int64_t)GRACE_S * 1000000000;
    if (jobs_live(s->jobs))
        km_log(KM_LOG_INFO, "shutting down: %d requests in work have %d s to finish", jobs_live(s->jobs), GRACE_S);
    http_drain(s->http);
    event_active(s->drain_timer, EV_TIMEOUT, 0);
}

static void on_drain(evutil_socket_t fd, short what, void *arg)
{
    (void)fd, (void)what;
    struct srv *s = arg;
    int64_t over = km_now_ns() - s->drain_until;
    if (over >= 0 && !s->forced) {
        s->forced = true;
        s->drain_until += over;
        jobs_fail_all(s->jobs, 503, SHUTTING_DOWN);
        rst_fail_all(s->resets, 503, SHUTTING_DOWN);
        http_flush(s->http);
    }
    if (!http_stats(s->http)->connections || (s->forced && over > (int64_t)LAST_SEND_MS * 1000000)) {
        event_base_loopbreak(s->base);
        return;
    }
    struct timeval tv = {0, DRAIN_TICK_MS * 1000};
    event_add(s->drain_timer, &tv);
}

static void on_wake(evutil_socket_t fd, short what, void *arg)
{
    (void)fd, (void)what;
    struct srv *s = arg;
    uint64_t n;
    if (read(s->wake_fd, &n, sizeof n) < 0 && errno != EAGAIN)
        km_log(KM_LOG_ERROR, "cannot read the eventfd of the engine's thread: %s", strerror(errno));
    struct km_err err = {0};
    if (run_collect(s->run, &s->events, &err)) {
        struct timeval soon = {0, 1000}; /* out of memory: the runner keeps the events for the next try */
        event_base_once(s->base, -1, EV_TIMEOUT, on_wake, s, &soon);
    }
    for (int i = 0; i < s->events.n; i++)
        jobs_handle(s->jobs, &s->events.v[i]);
    rst_poll(s->resets);
    http_flush(s->http);
    if (atomic_load(&s->stop) && !s->draining)
        begin_drain(s);
}

static void on_signal(evutil_socket_t sig, short what, void *arg)
{
    (void)sig, (void)what;
    begin_drain(arg);
}

/* Opens what the server consists of; srv_free closes what was opened before a failure. */
static int open_parts(struct srv *s, struct km_err *err)
{
    const struct srv_opts *o = &s->o;
    if ((s->wake_fd = eventfd(0, EFD_NONBLOCK | EFD_CLOEXEC)) < 0)
        return km_fail(err, KM_EIO, "cannot create an eventfd: %s", strerror(errno));
    s->base = event_base_new();
    s->wake_event = s->base ? event_new(s->base, s->wake_fd, EV_READ | EV_PERSIST, on_wake, s) : NULL;
    s->drain_timer = s->base ? evtimer_new(s->base, on_drain, s) : NULL;
    if (!s->wake_event || !s->drain_timer || !s->model || !s->device || !s->kv)
        return km_fail(err, KM_ENOMEM, "no memory for the server");
    event_add(s->wake_event, NULL);
    int rc = 0;
    if (o->api_key && !(rc = km_sha_new(&s->sha, err))) {
        km_sha_add(s->sha, o->api_key, strlen(o->api_key));
        s->key = km_sha_end(s->sha);
    }
    struct http_opts h = {.host = o->host, .port = o->port, .max_connections = o->max_connections,
                          .max_body = o->max_body, .max_unsent = MAX_UNSENT, .idle_timeout = o->idle_timeout,
                          .read_timeout = o->read_timeout};
    static const struct http_handlers handlers = {on_head, on_request};
    if (!rc)
        rc = http_open(&s->http, s->base, &h, &handlers, s, err);
    if (!rc)
        rc = run_start(&s->run, s->eng, wake, s, err);
    if (!rc)
        rc = rst_open(&s->resets, s->run, err);
    struct jobs_env env = {.run = s->run, .tok = s->tok, .model = s->model, .seed = o->seed, .met = &s->met};
    return rc ? rc : jobs_open(&s->jobs, &env, err);
}

int srv_open(struct srv **out, const struct srv_opts *o, struct eng *e, const struct tok *t, struct km_err *err)
{
    struct srv *s = km_calloc(1, sizeof *s);
    if (!s)
        return km_fail(err, KM_ENOMEM, "no memory for the server");
    s->o = *o;
    s->wake_fd = -1;
    s->eng = e;
    s->tok = t;
    s->model = km_strdup(o->served_name ? o->served_name : mdl_name(eng_model(e)));
    s->device = km_strdup(o->device ? o->device : "");
    s->kv = km_strdup(o->kv ? o->kv : "none");
    s->created = time(NULL);
    int rc = open_parts(s, err);
    if (rc) {
        srv_free(s);
        return rc;
    }
    *out = s;
    return 0;
}

int srv_port(const struct srv *s)
{
    return http_port(s->http);
}

int srv_run(struct srv *s, bool handle_signals, struct km_err *err)
{
    struct event *sig[2] = {NULL, NULL};
    if (handle_signals) {
        sig[0] = evsignal_new(s->base, SIGTERM, on_signal, s);
        sig[1] = evsignal_new(s->base, SIGINT, on_signal, s);
        for (int i = 0; i < 2; i++)
            if (sig[i])
                event_add(sig[i], NULL);
    }
    int rc = 0;
    if (event_base_dispatch(s->base) < 0)
        rc = km_fail(err, KM_EIO, "the event loop of the server failed: %s", strerror(errno));
    for (int i = 0; i < 2; i++)
        if (sig[i])
            event_free(sig[i]);
    return rc;
}

void srv_stop(struct srv *s)
{
    atomic_store(&s->stop, true);
    wake(s);
}

void srv_free(struct srv *s)
{
    if (!s)
        return;
    http_free(s->http); /* first: the requests of its clients are cancelled, for which the runner must exist */
    jobs_free(s->jobs);
    rst_free(s->resets);
    run_free(s->run);
    km_free(s->events.v);
    if (s->wake_event)
        event_free(s->wake_event);
    if (s->drain_timer)
        event_free(s->drain_timer);
    if (s->base)
        event_base_free(s->base);
    if (s->wake_fd >= 0)
        close(s->wake_fd);
    km_sha_free(s->sha);
    km_free(s->model);
    km_free(s->device);
    km_free(s->kv);
    km_free(s);
}
