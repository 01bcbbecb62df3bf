/* Parses responses and decides which requests have failed.
 *
 * A request fails for one of these reasons: a status other than 200; a response that is not an event stream; an error
 * event; an event that is not JSON; a time-out; a lost connection; an end without [DONE] and without a finish_reason
 * (Hugging Face's server sends no [DONE]); an answer without tokens. The record of a failed request holds the reason
 * and the events until the failure. No latency includes the request. */
#include "harness/client/answer.h"

#include "base/mem.h"
#include "harness/client/event.h"

#include <stdio.h>
#include <string.h>
#include <xxhash.h>

int ans_init(struct ans *a, bool stream, bool completions, bool by_ids, struct ans_tally *tally, struct km_err *err)
{
    *a = (struct ans){.stream = stream, .completions = completions, .by_ids = by_ids, .tally = tally};
    a->hash = XXH3_createState();
    return a->hash ? 0 : km_fail(err, KM_ENOMEM, "no memory for one more connection");
}

void ans_free(struct ans *a)
{
    XXH3_freeState(a->hash);
    km_free(a->ticks);
    km_buf_free(&a->text);
    km_buf_free(&a->reasoning);
    sse_free(&a->sse);
}

void ans_begin(struct ans *a, const struct hz_rec *rec)
{
    a->rec = *rec;
    a->n_ticks = a->tokens = a->snippet_len = 0;
    a->events = 0;
    a->arrival = (struct stamp){0};
    a->done = a->broken = a->oom = false;
    a->server_error[0] = 0;
    km_buf_clear(&a->text);
    sse_reset(&a->sse);
    XXH3_64bits_reset(a->hash);
}

static void add_tick(struct ans *a, struct stamp arrival, int tokens)
{
    if (a->n_ticks == a->cap_ticks) {
        int cap = a->cap_ticks ? 2 * a->cap_ticks : 256;
        struct hz_tick *p = km_reallocarray(a->ticks, (size_t)cap, sizeof *p);
        if (!p) {
            a->oom = true;
            return;
        }
        a->ticks = p;
        a->cap_ticks = cap;
    }
    a->ticks[a->n_ticks++] = (struct hz_tick){arrival.ns, tokens, arrival.lag_ns};
    a->tokens += tokens;
    a->tally->tokens += tokens;
}

static void copy_message(char *out, struct ev_slice m)
{
    struct km_buf b = {0};
    ev_text(m, &b);
    snprintf(out, ANS_SNIPPET + 1, "%s", km_buf_str(&b));
    km_buf_free(&b);
}

/* Hashes the text of token_ids without its spaces and with a comma after the last id. So the hash does not depend on
 * how the ids are spread over events. */
static void hash_ids(struct ans *a, struct ev_slice ids)
{
    const char *run = ids.p, *end = ids.p + ids.n; /* run: the digits and commas since the last space */
    for (const char *p = ids.p; p && p < end; p++)
        if (*p == ' ') {
            XXH3_64bits_update(a->hash, run, (size_t)(p - run));
            run = p + 1;
        }
    if (ids.p) {
        XXH3_64bits_update(a->hash, run, (size_t)(end - run));
        XXH3_64bits_update(a->hash, ",", 1);
    }
}

/* Copies usage, finish_reason, text and error of an event, or of a whole response that was not streamed. Returns its
 * number of tokens. */
static int read_event(struct ans *a, const struct ev *e)
{
    struct hz_rec *r = &a->rec;
    size_t text_before = a->text.len;
    if (e->failed)
        copy_message(a->server_error, e->message.p ? e->message : (struct ev_slice){"no message", 10});
    if (e->prompt_tokens >= 0) {
        r->prompt_tokens = e->prompt_tokens;
        r->output_tokens = e->output_tokens;
        r->cached_tokens = e->cached_tokens >= 0 ? e->cached_tokens : r->cached_tokens;
    }
    if (e->finish.p)
        snprintf(r->finish, sizeof r->finish, "%.*s", (int)(e->finish.n < 15 ? e->finish.n : 15), e->finish.p);
    if (e->content.n) {
        ev_text(e->content, &a->text);
        a->oom = a->oom || a->text.oom;
        if (!a->by_ids)
            XXH3_64bits_update(a->hash, km_buf_str(&a->text) + text_before, a->text.len - text_before);
    }
    if (a->by_ids)
        hash_ids(a, e->ids);
    else if (e->reasoning.n) {
        km_buf_clear(&a->reasoning);
        ev_text(e->reasoning, &a->reasoning);
        a->oom = a->oom || a->reasoning.oom;
        XXH3_64bits_update(a->hash, km_buf_str(&a->reasoning), a->reasoning.len);
    }
    return e->listed > 0 ? e->listed : e->content.n || e->reasoning.n || e->tool_calls ? 1 : 0;
}

static void on_event(void *arg, const char *data, size_t len)
{
    struct ans *a = arg;
    struct hz_rec *r = &a->rec;
    struct stamp arrival = a->arrival;
    struct ev e;
    a->tally->events++;
    a->events++;
    if (arrival.lag_ns >= 0) {
        a->tally->stamped++;
        hist_add(&a->tally->lag, arrival.lag_ns);
    }
    a->tally->while_reading += arrival.while_reading;
    if (len == 6 && !memcmp(data, "[DONE]", 6)) {
        a->done = true;
        r->done_ns = arrival.ns;
        return;
    }
    if (a->done || len == 0)
        return;
    if (ev_scan(data, len, &e)) {
        a->broken = true;
        return;
    }
    int n = read_event(a, &e);
    if (e.choices || !a->completions)
        r->last_any_ns = arrival.ns;
    if (!e.choices)
        return;
    add_tick(a, arrival, n);
    r->first_any_ns = r->first_any_ns ? r->first_any_ns : arrival.ns;
    if (!n)
        return;
    a->tally->coalesced += r->last_ns == arrival.ns;
    if (!r->first_ns) {
        r->first_ns = arrival.ns;
        r->first_len = a->text.len;
    }
    r->last_ns = arrival.ns;
}

void ans_status(struct ans *a, int status)
{
    a->rec.status = status;
}

/* Keeps the arrival times within a response in order. The client's clock, as the stamp of some bytes, may be later than
 * the kernel timestamp of the bytes after them. Then the bytes after them get the same time. */
static void set_arrival(struct ans *a, struct stamp arrival)
{
    struct stamp before = a->arrival;
    a->arrival = arrival;
    if (arrival.ns < before.ns)
        a->arrival = before.lag_ns < 0 ? before : (struct stamp){before.ns, arrival.lag_ns, arrival.while_reading};
}

void ans_headers_done(struct ans *a, struct stamp arrival)
{
    set_arrival(a, arrival);
    if (a->rec.status >= 200) /* not the headers of a 100 Continue */
        a->rec.header_ns = a->arrival.ns;
}

bool ans_body(struct ans *a, const char *p, size_t n, struct stamp arrival)
{
    set_arrival(a, arrival);
    if (!a->events && a->snippet_len < ANS_SNIPPET) {
        size_t take = n < (size_t)(ANS_SNIPPET - a->snippet_len) ? n : (size_t)(ANS_SNIPPET - a->snippet_len);
        memcpy(a->snippet + a->snippet_len, p, take);
        a->snippet_len += (int)take;
    }
    if (a->stream && a->rec.status == 200)
        sse_feed(&a->sse, p, n, on_event, a);
    else if (a->text.len + n > SSE_MAX_EVENT)
        a->broken = true;
    else {
        km_buf_put(&a->text, p, n);
        a->oom = a->oom || a->text.oom;
    }
    return !a->oom && !a->sse.failed && !a->broken;
}

/* Reads a response that was not streamed: it counts as one event with all tokens. */
static void read_whole(struct ans *a)
{
    struct km_buf body = a->text;
    struct hz_rec *r = &a->rec;
    struct ev e;
    a->text = (struct km_buf){0};
    if (ev_scan(km_buf_str(&body), body.len, &e) == 0) {
        int n = read_event(a, &e);
        if (n && e.output_tokens > n)
            n = e.output_tokens;
        if (e.choices) {
            r->first_any_ns = r->last_any_ns = r->done_ns;
            add_tick(a, (struct stamp){r->done_ns, -1, false}, n);
        }
        if (n) {
            r->first_ns = r->last_ns = r->done_ns;
            r->first_len = a->text.len;
        }
    }
    km_buf_free(&body);
}

/* The first bytes of the body, printable and on one line. */
static const char *printable_start(struct ans *a)
{
    while (a->snippet_len > 0 && (unsigned char)a->snippet[a->snippet_len - 1] <= 0x20)
        a->snippet_len--;
    a->snippet[a->snippet_len] = 0;
    for (int i = 0; i < a->snippet_len; i++)
        if ((unsigned char)a->snippet[i] < 0x20 || a->snippet[i] == 0x7F)
            a->snippet[i] = ' ';
    return a->snippet;
}

#define SET_ERROR(a, ...) snprintf((a)->rec.error, sizeof(a)->rec.error, __VA_ARGS__)

/* Sets rec.ok, or rec.error to the first failure that applies. Their order matters: a failure may cause the ones below
 * it. */
static void judge(struct ans *a, const struct ans_close *end)
{
    struct hz_rec *r = &a->rec;
    struct ev e;
    if (a->oom)
        SET_ERROR(a, "the client ran out of memory");
    else if (a->sse.failed || (a->broken && !a->stream))
        SET_ERROR(a, "the answer is longer than %d bytes", SSE_MAX_EVENT);
    else if (a->broken)
        SET_ERROR(a, "an event after %d tokens is not JSON", a->tokens);
    else if (a->server_error[0] && r->status == 200)
        SET_ERROR(a, "error event after %d tokens: %.110s", a->tokens, a->server_error);
    else if (end->timed_out)
        SET_ERROR(a, "timed out after %.1f s with %d tokens received", (double)(end->now_ns - r->start_ns) / 1e9,
                  a->tokens);
    else if (end->lost && !a->done) /* after [DONE] the answer is complete */
        SET_ERROR(a, "%s after %d tokens: %.100s", r->status ? "connection lost" : "no answer", a->tokens, end->lost);
    else if (r->status != 200) {
        if (ev_scan(km_buf_str(&a->text), a->text.len, &e) == 0 && e.message.p)
            copy_message(a->server_error, e.message);
        SET_ERROR(a, "HTTP %d: %.120s", r->status, a->server_error[0] ? a->server_error : printable_start(a));
    } else if (a->stream && !a->events)
        SET_ERROR(a, "HTTP 200 but no event stream (%.40s): %.80s", end->type ? end->type : "no content type",
                  printable_start(a));
    else if (a->stream && !a->done && !r->finish[0])
        SET_ERROR(a, "the stream ended without a finish_reason or [DONE] after %d tokens", a->tokens);
    else if (!a->tokens)
        SET_ERROR(a, "no token in the answer");
    else
        r->ok = true;
}

void ans_end(struct ans *a, const struct ans_close *end)
{
    bool good = a->rec.status == 200 && !end->lost && !end->timed_out && !a->broken;
    if (good && a->stream)
        sse_end(&a->sse, on_event, a);
    if (!a->rec.done_ns)
        a->rec.done_ns = end->now_ns;
    if (good && !a->stream)
        read_whole(a);
    judge(a, end);
}

int ans_record(struct ans *a, struct hz_trace *t, struct km_err *err)
{
    struct hz_rec *r = &a->rec;
    if (r->ok) {
        r->text_xxh = XXH3_64bits_digest(a->hash);
        r->text_len = a->text.len;
        if (!(r->text = km_buf_take(&a->text)))
            return km_fail(err, KM_ENOMEM, "no memory for an answer of %zu bytes", r->text_len);
    }
    int rc = hz_trace_append(t, r, a->ticks, a->n_ticks, err);
    if (rc)
        km_free(r->text);
    r->text = NULL;
    return rc;
}
