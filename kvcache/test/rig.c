#include "kvcache/test/rig.h"

#include "base/clock.h"
#include "kvcache/header.h"

#include <string.h>

void rig_tokens(struct rig *r, int variant)
{
    for (int i = 0; i < MAX_TOK; i++)
        r->tok[i] = i * 7 + variant * 100003;
}

static struct kvc_config config(const struct rig_opts *o, size_t page_bytes)
{
    struct kvc_config c = kvc_defaults();
    const int pages = o->chunk / B;
    c.chunk_size = o->chunk;
    c.max_local_cpu = o->slots * (int64_t)((size_t)pages * page_bytes + kvc_header_bytes(o->chunk, pages)) + 100;
    c.local_cpu = !o->no_local_cpu;
    if (o->spec) {
        struct kvc_config tiers = c;
        bool off;
        assert_int_equal(kvc_config_spec(o->spec, &tiers, &off, NULL), 0);
        c.n_tiers = tiers.n_tiers;
        memcpy(c.tier, tiers.tier, sizeof c.tier);
    }
    c.save_decode = o->save_decode;
    c.save_unfull = o->save_unfull;
    c.policy = o->fifo ? KVC_FIFO : KVC_LRU;
    c.throttle = o->throttle;
    for (int i = 0; i < 2 && o->tier[i]; i++)
        fake_tier_config(o->tier[i], &c.tier[c.n_tiers++]);
    return c;
}

void rig_open(struct rig *r, struct rig_opts o)
{
    memset(r, 0, sizeof *r);
    fake_pages_open(&r->f, o.threads, !o.no_payload);
    r->f.refuse_register = o.refuse_register;
    r->cfg = config(&o, r->f.geom.page_bytes);
    assert_int_equal(kvc_open(&r->k, &r->cfg, NULL), 0);
    r->k->slab_bytes = 3 * (size_t)r->cfg.max_local_cpu / (size_t)o.slots;
    assert_int_equal(kvc_port(r->k, &r->p, NULL), 0);
    assert_int_equal(r->p.chunk_size, o.chunk);
    struct km_err err = {0};
    if (r->p.attach(r->p.self, &r->f.geom, &r->f.copier, &err))
        fail_msg("%s", err.msg);
    assert_true(kvc_settle(r->k, 10));
    rig_tokens(r, 0);
    for (int i = 0; i < MAX_TOK / B; i++) {
        r->from[i] = i;
        r->into[i] = FAKE_PAGES - 1 - i;
    }
}

void rig_check(struct rig *r)
{
    struct km_err err = {0};
    if (kvc_check(r->k, &err))
        fail_msg("%s", err.msg);
    r->p.stats(r->p.self, &r->st);
    assert_true(r->st.bytes <= r->st.capacity && r->st.capacity <= r->cfg.max_local_cpu);
    assert_int_equal(r->f.violations, 0);
}

void rig_free(struct rig *r)
{
    rig_check(r);
    r->p.detach(r->p.self);
    rig_check(r);
    kvc_free(r->k);
    assert_int_equal(r->f.in_flight, 0);
    assert_int_equal(r->f.registered, 0);
    fake_pages_close(&r->f);
}

void rig_end_step(struct rig *r, uint64_t step)
{
    pthread_mutex_lock(&r->f.lock);
    r->f.step = step;
    pthread_mutex_unlock(&r->f.lock);
}

struct kv_result rig_wait(struct rig *r, uint64_t ticket)
{
    struct kv_result res = {-1, -1};
    int rc;
    const int64_t until = km_now_ns() + 20 * 1000000000LL;
    while (!(rc = r->p.poll(r->p.self, ticket, &res))) {
        assert_true(km_now_ns() < until);
        if (r->f.copier.threads)
            usleep(20);
        else
            r->f.clock += r->f.poll_ns; /* also if no copy is in flight whose poll would do so */
    }
    assert_int_equal(rc, 1);
    assert_int_equal(r->p.poll(r->p.self, ticket, NULL), KM_EINVAL); /* a finished ticket is not valid any more */
    return res;
}

void rig_store_seq(struct rig *r, struct kv_seq *s, const char *salt, int n)
{
    uint64_t ticket;
    int from = -1;
    for (int b = 0; b * B < n; b++)
        fake_pages_fill(&r->f, r->from[b], salt, r->tok, n, b);
    assert_int_equal(r->p.store(s, r->tok, n, n, r->from, 0, &ticket, &from), 0);
    assert_true(from >= 0 && from <= n);
    if (ticket)
        rig_wait(r, ticket);
}

void rig_store(struct rig *r, const char *salt, int n)
{
    struct kv_seq *s = r->p.open(r->p.self, salt, r->tok, n);
    rig_store_seq(r, s, salt, n);
    r->p.close(s);
}

int rig_lookup(struct rig *r, struct kv_seq *s, int n)
{
    int got;
    const int64_t until = km_now_ns() + 20 * 1000000000LL;
    while ((got = r->p.lookup(s, r->tok, n, 0)) == KV_NOT_YET) {
        assert_true(km_now_ns() < until);
        r->f.clock += r->f.poll_ns;
        if (r->f.copier.threads)
            usleep(20);
    }
    return got;
}

int rig_hit(struct rig *r, const char *salt, int n)
{
    struct kv_seq *s = r->p.open(r->p.self, salt, r->tok, n);
    int got = rig_lookup(r, s, n);
    r->p.close(s);
    return got;
}

uint64_t rig_begin_load(struct rig *r, struct kv_seq *s, int from, int to)
{
    uint64_t ticket;
    for (int b = 0; b < MAX_TOK / B; b++) {
        fake_pages_wipe(&r->f, r->into[b]);
        r->f.writable[r->into[b]] = b >= from / B && b * B < to;
    }
    assert_int_equal(r->p.load(s, from, to, r->into, 0, &ticket), 0);
    assert_true(ticket || from == to);
    return ticket;
}

void rig_check_pages(struct rig *r, const char *salt, int n, int from, int to, struct kv_result res)
{
    assert_true(res.good_from >= from && res.good_from <= res.good_to && res.good_to <= to);
    assert_int_equal(res.good_from % B, 0);
    for (int b = 0; b < MAX_TOK / B; b++) {
        if (b >= res.good_from / B && b * B < res.good_to)
            assert_true(!r->f.copier.payload || fake_pages_holds(&r->f, r->into[b], salt, r->tok, n, b));
        else if (b < from / B || b * B >= to)
            assert_true(fake_pages_wiped(&r->f, r->into[b]));
    }
    assert_int_equal(r->f.violations, 0);
}

struct kv_result rig_load(struct rig *r, struct kv_seq *s, const char *salt, int n, int from, int to)
{
    uint64_t ticket = rig_begin_load(r, s, from, to);
    struct kv_result res = ticket ? rig_wait(r, ticket) : (struct kv_result){from, to};
    rig_check_pages(r, salt, n, from, to, res);
    return res;
}

struct kv_result rig_load_all(struct rig *r, const char *salt, int n)
{
    struct kv_seq *s = r->p.open(r->p.self, salt, r->tok, n);
    int got = rig_lookup(r, s, n);
    struct kv_result res = rig_load(r, s, salt, got, 0, got);
    r->p.close(s);
    return res;
}

int rig_slot(struct rig *r, const char *salt, int chunk)
{
    struct kvc_keys keys;
    assert_int_equal(kvc_keys_open(&keys, &r->k->geometry, NULL), 0);
    struct km_digest key = kvc_keys_root(&keys, salt);
    const int C = r->cfg.chunk_size;
    for (int i = 0; i <= chunk; i++)
        key = kvc_keys_next(&keys, &key, r->tok + (size_t)i * (size_t)C, C);
    kvc_keys_close(&keys);
    return kvc_chunks_find(&r->k->chunks, &key);
}

double rig_row(struct rig *r, const char *tier, const char *name)
{
    r->p.stats(r->p.self, &r->st);
    for (int i = 0; i < r->st.n_rows; i++)
        if (!strcmp(r->st.rows[i].tier, tier) && !strcmp(r->st.rows[i].name, name))
            return r->st.rows[i].value;
    fail_msg("no row %s of tier %s", name, tier);
    return 0;
}
