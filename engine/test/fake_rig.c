/* Jobs on an engine with the fake backend. */
#include "base/test/test.h"

#include "engine/planner.h"
#include "fake_rig.h"

#include <stdlib.h>
#include <string.h>

struct eng_opts fake_rig_opts(int num_blocks, int budget, int max_seqs)
{
    struct eng_opts o = eng_defaults();
    o.num_blocks = num_blocks;
    o.max_num_batched_tokens = budget;
    o.max_num_seqs = max_seqs;
    o.kv_planner = PLN_LOAD; /* so that what is loaded does not depend on the clock */
    return o;
}

void fake_rig_open(struct fake_rig *g, const struct eng_opts *o, struct fake_port *port)
{
    fake_rig_open_on(g, o, port, &be_fake);
}

void fake_rig_open_on(struct fake_rig *g, const struct eng_opts *o, struct fake_port *port,
                      const struct backend *backend)
{
    *g = (struct fake_rig){.m = fake_model(997, 4096), .port = port};
    struct km_err err;
    if (eng_open(&g->e, o, &g->m, backend, port ? &port->port : NULL, &err))
        fail_msg("%s", err.msg);
}

void fake_rig_close(struct fake_rig *g)
{
    struct eng_stats s;
    eng_stats(g->e, &s);
    assert_int_equal(s.pages_used, 0);
    assert_int_equal(s.running + s.waiting + s.loading, 0);
    eng_close(g->e);
    assert_string_equal(g->m.complaint, "");
    if (!g->m.fail_at)
        assert_int_equal(s.computed_tokens + s.wasted_rows, g->m.rows);
    if (!g->port && !s.wasted_rows)
        /* block tables have unneeded pages only after a load that failed in part, or when a row is run again */
        assert_int_equal(g->m.spare_pages, 0);
    if (g->port) {
        assert_int_equal(g->port->seqs, 0);
        assert_int_equal(g->port->n_tickets, 0);
        assert_false(g->port->attached);
        assert_false(g->port->changed);
    }
}

void job_init(struct job *j, int n, int shared, int family, uint64_t own, int max_tokens)
{
    *j = (struct job){.finish = ENG_RUNNING};
    j->prompt = malloc(sizeof *j->prompt * (size_t)n);
    uint64_t common = (uint64_t)family * 1000003u, state = own * 7919 + 5;
    for (int i = 0; i < n; i++)
        j->prompt[i] = (int32_t)(fake_random(i < shared ? &common : &state) % 997);
    j->r = (struct eng_request){.prompt = j->prompt, .n_prompt = n, .max_tokens = max_tokens, .ignore_eos = true,
                                .sampling = smp_defaults(), .user = j};
}

void job_free(struct job *j)
{
    free(j->prompt);
    j->prompt = NULL;
}

void fake_rig_submit(struct fake_rig *g, struct job *j)
{
    struct km_err err;
    if (eng_submit(g->e, &j->r, &j->id, &err))
        fail_msg("%s", err.msg);
    /* The engine must have copied the prompt, so changing it must not matter. */
    for (int i = 0; i < j->r.n_prompt; i++)
        j->prompt[i] = ~j->prompt[i];
}

int fake_rig_step(struct fake_rig *g)
{
    struct eng_events ev;
    struct km_err err = {0};
    int rc = eng_step(g->e, &ev, &err);
    g->steps++;
    if (ev.stalled)
        g->m.clock += g->stall_ns ? g->stall_ns : 50000;
    for (int i = 0; i < ev.n; i++) {
        struct eng_event *v = &ev.v[i];
        struct job *j = v->user;
        assert_int_equal(v->id, j->id);
        assert_int_equal(j->finish, ENG_RUNNING);
        assert_false(j->cancelled);
        j->last = *v;
        j->finish = v->finish;
        if (v->has_token)
            j->out[j->n_out++] = v->token.id;
        assert_int_equal(v->n_output, j->n_out);
        assert_int_equal(v->n_prompt, j->r.n_prompt);
    }
    if (eng_check(g->e, &err))
        fail_msg("step %ld: %s", g->steps, err.msg);
    if (g->m.complaint[0])
        fail_msg("%s", g->m.complaint);
    return rc;
}

void fake_rig_run(struct fake_rig *g)
{
    for (long i = 0; !eng_idle(g->e); i++) {
        assert_int_equal(fake_rig_step(g), 0);
        if (i > 200000)
            fail_msg("the engine is not idle after 200000 steps");
    }
}

void fake_rig_verify(struct fake_rig *g, const struct job *j)
{
    int32_t want[FAKE_RIG_OUT];
    enum eng_finish finish;
    struct eng_request r = j->r;
    int32_t *prompt = malloc(sizeof *prompt * (size_t)r.n_prompt);
    for (int i = 0; i < r.n_prompt; i++)
        prompt[i] = ~j->prompt[i];
    r.prompt = prompt;
    int n = fake_answer(&g->m, &r, eng_options(g->e)->max_model_len, want, FAKE_RIG_OUT, &finish);
    free(prompt);
    if (j->cancelled) {
        assert_true(j->n_out <= n);
        n = j->n_out;
    } else
        assert_int_equal(j->finish, finish);
    assert_int_equal(j->n_out, n);
    for (int i = 0; i < n; i++)
        if (j->out[i] != want[i])
            fail_msg("prompt of %d tokens: generated token %d is %d instead of %d", r.n_prompt, i, j->out[i], want[i]);
}

void fake_rig_one(struct fake_rig *g, struct job *j)
{
    fake_rig_submit(g, j);
    fake_rig_run(g);
    fake_rig_verify(g, j);
}

struct job fake_rig_run_job(struct fake_rig *g, int n, uint64_t own, int max_tokens, const char *salt)
{
    struct job j;
    job_init(&j, n, 0, 0, own, max_tokens);
    j.r.cache_salt = salt;
    fake_rig_one(g, &j);
    job_free(&j);
    return j;
}

struct eng_stats fake_rig_stats(const struct fake_rig *g)
{
    struct eng_stats s;
    eng_stats(g->e, &s);
    return s;
}

void fake_rig_finish(struct fake_rig *g, struct job *j, int n)
{
    for (int i = 0; i < n; i++) {
        fake_rig_verify(g, &j[i]);
        job_free(&j[i]);
    }
    fake_rig_close(g);
}
