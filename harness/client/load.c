/* A whole run, step by step: check the options, ask the server for its model, open the connections, warm up, measure.
 *
 * Invalid options and a server that cannot be reached are errors before the first request is sent. */
#include "harness/client/load.h"

#include "base/clock.h"
#include "base/mem.h"
#include "harness/client/request.h"
#include "harness/client/schedule.h"

#include <inttypes.h>
#include <math.h>
#include <string.h>

/* If prompts are sent at a rate, at most this many connections are opened beforehand. More are opened as needed. */
enum { MAX_PACED_CONNECTIONS = 64 };

/* Checks the options that depend on the size of the set. The limits are those of vLLM's clients. */
static int check_with_set(const struct load_opts *l, const struct wl_set *set, struct km_err *err)
{
    if (set->n < 1)
        return km_fail(err, KM_EINVAL, "workload %s has no conversations and no prompts; check its file", set->name);
    if (wl_kind_ops(set->kind)->open_loop)
        return 0;
    if (l->num_clients < 1 || l->num_clients > set->n)
        return km_fail(err, KM_EINVAL,
                       "--num-clients is %" PRId64 "; with the %d conversations of %s it must be between 1 and %d",
                       l->num_clients, set->n, set->name, set->n);
    int64_t active = l->max_active_conversations ? l->max_active_conversations : l->num_clients;
    if (active < l->num_clients || active > set->n)
        return km_fail(err, KM_EINVAL,
                       "--max-active-conversations is %" PRId64 "; with %" PRId64
                       " clients and %d conversations it must "
                       "be between %" PRId64 " and %d",
                       active, l->num_clients, set->n, l->num_clients, set->n);
    if (l->max_num_requests && l->max_num_requests < l->num_clients)
        return km_fail(err, KM_EINVAL,
                       "--max-num-requests is %" PRId64 "; %" PRId64 " clients share it, so it must be at least that",
                       l->max_num_requests, l->num_clients);
    return 0;
}

/* order: [n] conversations, NULL: all in the set's order. warmup: the schedule of the warm-up. warmed: the schedule of
 * a measured phase after a warm-up. */
static int new_closed_loop(struct schedule **out, const struct load_opts *l, const struct wl_set *set, const int *order,
                           int n, bool warmup, bool warmed, struct km_err *err)
{
    int64_t active = l->max_active_conversations ? l->max_active_conversations : l->num_clients;
    struct schedule_closed o = {.order = order,
                                .n = n,
                                .first_turn = warmed,
                                .clients = (int)l->num_clients,
                                .active = warmup ? 1 : (int)(active / l->num_clients),
                                .quota = l->max_num_requests / l->num_clients,
                                .max_turns = warmup ? 1 : l->max_turns,
                                .early_stop = l->early_stop && !warmup,
                                .random = l->random_sampling,
                                .rate = l->request_rate,
                                .seed = l->seed};
    return schedule_closed_new(out, set, &o, err);
}

static int prompt_count(const struct load_opts *l, const struct wl_set *set)
{
    return l->max_num_requests > 0 && l->max_num_requests < set->n ? (int)l->max_num_requests : set->n;
}

static int new_open_loop(struct schedule **out, const struct load_opts *l, const struct wl_set *set, bool warmup,
                         struct km_err *err)
{
    struct schedule_open o = {.n = prompt_count(l, set),
                              .rate = warmup ? 0 : l->request_rate,
                              .burstiness = l->burstiness,
                              .cap = l->max_concurrency,
                              .seed = l->seed};
    return schedule_open_new(out, &o, err);
}

/* Connections to open before the clock starts. */
static int connection_count(const struct load_opts *l, const struct wl_set *set)
{
    if (!wl_kind_ops(set->kind)->open_loop)
        return (int)l->num_clients;
    int n = prompt_count(l, set);
    if (l->max_concurrency > 0 && l->max_concurrency < n)
        n = (int)l->max_concurrency;
    bool paced = l->request_rate > 0 && !isinf(l->request_rate);
    return paced && n > MAX_PACED_CONNECTIONS ? MAX_PACED_CONNECTIONS : n;
}

/* Runs the warm-up. It sends the first turn of each conversation, or each prompt once. The measured phase continues the
 * conversations in the order in which their first turns ended, with the answers received. *s: the schedule. */
static int warm_up(struct client *c, struct req *r, const struct load_opts *l, const struct wl_set *set,
                   struct schedule **s, struct hz_trace *t, struct km_err *err)
{
    struct hz_trace pass = {0};
    bool open = wl_kind_ops(set->kind)->open_loop;
    int64_t start = km_now_ns();
    int rc = open ? new_open_loop(s, l, set, true, err) : new_closed_loop(s, l, set, NULL, set->n, true, false, err);
    if (!rc)
        rc = client_play(c, *s, r, NULL, NULL, &pass, err);
    t->warmup_ns = km_now_ns() - start;
    t->warm = pass.recs;
    t->n_warm = pass.n;
    pass.recs = NULL;
    pass.n = 0;
    hz_trace_free(&pass);
    if (open && !rc)
        req_rewind(r); /* the measured phase sends the prompts again */
    int done = 1;
    if (!rc && !open)
        schedule_finished(*s, &done);
    if (done == 0)
        rc = km_fail(err, KM_ENET, "no request of the warm-up succeeded; the first one failed with: %s",
                     t->n_warm ? t->warm[0].error : "nothing");
    return rc;
}

int load_run(const struct target *target, const struct load_opts *load, const struct wl_set *set,
             client_progress_fn progress, void *arg, struct hz_trace *out, struct km_err *err)
{
    struct req *r = NULL;
    struct client *c = NULL;
    struct schedule *warm = NULL, *s = NULL;
    *out = (struct hz_trace){.fixed_history = load->fixed_history};
    int rc = load_check(load, err);
    if (!rc)
        rc = check_with_set(load, set, err);
    if (!rc)
        rc = target_model(target, out->model, sizeof out->model, err);
    if (!rc)
        rc = req_new(&r, load, target->extra_body, out->model, set, err);
    if (!rc) {
        target_version(target, out->server_version, sizeof out->server_version);
        struct client_opts o = {.target = target,
                                .path = req_path(r),
                                .stream = load->stream,
                                .prompts = wl_kind_ops(set->kind)->single_prompts,
                                .completions = load->endpoint == LOAD_COMPLETIONS,
                                .by_ids = load->send_token_ids,
                                .timeout_s = load->timeout_s};
        rc = client_new(&c, &o, err);
    }
    if (!rc)
        rc = client_connect(c, connection_count(load, set), err);
    if (!rc && load->warmup_step)
        rc = warm_up(c, r, load, set, &warm, out, err);
    if (!rc && wl_kind_ops(set->kind)->open_loop)
        rc = new_open_loop(&s, load, set, false, err);
    else if (!rc) {
        int n = set->n;
        const int *order = warm ? schedule_finished(warm, &n) : NULL;
        rc = new_closed_loop(&s, load, set, order, n, false, warm != NULL, err);
    }
    if (!rc)
        rc = client_play(c, s, r, progress, arg, out, err);
    if (!rc) {
        out->dropped = schedule_dropped(s);
        int left = schedule_planned(s) - out->n - out->dropped;
        out->abandoned = left > 0 ? left : 0;
    }
    client_free(c);
    req_free(r);
    schedule_free(s);
    schedule_free(warm);
    if (rc)
        hz_trace_free(out);
    return rc;
}
