/* A whole run: options checked, server asked for its name, connections opened, warm-up, the measured pass.
 *
 * Everything that may fail for want of sense or of a server fails here, before the clock runs. */
#include "harness/client/load.h"

#include "base/clock.h"
#include "base/mem.h"
#include "harness/client/client.h"
#include "harness/client/rest.h"

#include <inttypes.h>
#include <math.h>
#include <string.h>

enum { OPEN_AHEAD = 64 }; /* connections opened beforehand when prompts arrive at a rate */

/* The numbers that vLLM's client also refuses, with its rules. */
static int check(const struct hz_load *l, const struct wl_set *set, struct km_err *err)
{
    if (set->n < 1)
        return km_fail(err, KM_EINVAL, "workload %s is empty", set->name);
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
                       "--max-num-requests is %" PRId64 "; %" PRId64
                       " clients share it, so it must be at least that",
                       l->max_num_requests, l->num_clients);
    return 0;
}

static int closed(struct turns **out, const struct hz_load *l, const struct wl_set *set, const int *order, int n,
                  bool warmup, bool warmed, struct km_err *err)
{
    int64_t active = l->max_active_conversations ? l->max_active_conversations : l->num_clients;
    struct turns_closed o = {.order = order,
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
    return turns_closed_new(out, set, &o, err);
}

static int prompts(const struct hz_load *l, const struct wl_set *set)
{
    return l->max_num_requests > 0 && l->max_num_requests < set->n ? (int)l->max_num_requests : set->n;
}

static int open_loop(struct turns **out, const struct hz_load *l, const struct wl_set *set, bool warmup,
                     struct km_err *err)
{
    struct turns_open o = {.n = prompts(l, set),
                           .rate = warmup ? 0 : l->request_rate,
                           .burstiness = l->burstiness,
                           .cap = l->max_concurrency,
                           .seed = l->seed};
    return turns_open_new(out, &o, err);
}

static int connections(const struct hz_load *l, const struct wl_set *set)
{
    if (!wl_kind_ops(set->kind)->open_loop)
        return (int)l->num_clients;
    int n = prompts(l, set);
    if (l->max_concurrency > 0 && l->max_concurrency < n)
        n = (int)l->max_concurrency;
    bool paced = l->request_rate > 0 && !isinf(l->request_rate);
    return paced && n > OPEN_AHEAD ? OPEN_AHEAD : n;
}

/* The unmeasured pass. Its conversations, in order of completion and with the answers that they got, are what
 * the measured pass goes on with. */
static int warm_up(struct cli *c, struct req *r, const struct hz_load *l, const struct wl_set *set,
                   struct turns **s, struct hz_trace *t, struct km_err *err)
{
    struct hz_trace pass = {0};
    bool open = wl_kind_ops(set->kind)->open_loop;
    int64_t t0 = km_now_ns();
    int rc = open ? open_loop(s, l, set, true, err) : closed(s, l, set, NULL, set->n, true, false, err);
    if (!rc)
        rc = cli_play(c, *s, r, NULL, NULL, &pass, err);
    t->warmup_ns = km_now_ns() - t0;
    t->warm = pass.recs;
    t->n_warm = pass.n;
    pass.recs = NULL;
    pass.n = 0;
    hz_trace_free(&pass);
    if (open && !rc)
        req_rewind(r);
    int done = 1;
    if (!rc && !open)
        turns_finished(*s, &done);
    if (done == 0)
        rc = km_fail(err, KM_ENET, "no request of the warm-up succeeded; the first said: %s",
                     t->n_warm ? t->warm[0].error : "nothing");
    return rc;
}

int hz_run(const struct hz_target *target, const struct hz_load *load, const struct wl_set *set,
           hz_progress_fn progress, void *arg, struct hz_trace *out, struct km_err *err)
{
    struct req *r = NULL;
    struct cli *c = NULL;
    struct turns *warm = NULL, *s = NULL;
    *out = (struct hz_trace){.fixed_history = load->fixed_history};
    int rc = hz_load_check(load, err);
    if (!rc)
        rc = check(load, set, err);
    if (!rc)
        rc = rest_model(target, out->model, sizeof out->model, err);
    if (!rc)
        rc = req_new(&r, load, target->extra_body, out->model, set, err);
    if (!rc) {
        rest_version(target, out->server_version, sizeof out->server_version);
        struct cli_opts o = {.target = target,
                             .path = req_path(r),
                             .stream = load->stream,
                             .prompts = wl_kind_ops(set->kind)->single_prompts,
                             .completions = load->endpoint == HZ_COMPLETIONS,
                             .by_ids = load->send_token_ids,
                             .timeout_s = load->timeout_s};
        rc = cli_new(&c, &o, err);
    }
    if (!rc)
        rc = cli_connect(c, connections(load, set), err);
    if (!rc && load->warmup_step)
        rc = warm_up(c, r, load, set, &warm, out, err);
    if (!rc && wl_kind_ops(set->kind)->open_loop)
        rc = open_loop(&s, load, set, false, err);
    else if (!rc) {
        int n = set->n;
        const int *order = warm ? turns_finished(warm, &n) : NULL;
        rc = closed(&s, load, set, order, n, false, warm != NULL, err);
    }
    if (!rc)
        rc = cli_play(c, s, r, progress, arg, out, err);
    if (!rc) {
        out->dropped = turns_lost(s);
        int left = turns_planned(s) - out->n - out->dropped;
        out->abandoned = left > 0 ? left : 0;
    }
    cli_free(c);
    req_free(r);
    turns_free(s);
    turns_free(warm);
    if (rc)
        hz_trace_free(out);
    return rc;
}

static void free_recs(struct hz_rec *recs, int n)
{
    for (int i = 0; i < n; i++)
        km_free(recs[i].text);
    km_free(recs);
}

void hz_trace_free(struct hz_trace *t)
{
    if (!t)
        return;
    free_recs(t->recs, t->n);
    free_recs(t->warm, t->n_warm);
    km_free(t->ticks);
    *t = (struct hz_trace){0};
}
