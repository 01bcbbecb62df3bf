#include "kvcache/test/engine_rig.h"

#include "base/clock.h"
#include "kvcache/header.h"
#include "kvcache/internal.h"

#include <ftw.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

struct mdl *er_dummy_model(uint64_t seed)
{
    static const char config[] =
        "{\"architectures\": [\"Qwen3ForCausalLM\"], \"model_type\": \"qwen3\", \"hidden_act\": \"silu\","
        " \"hidden_size\": 48, \"intermediate_size\": 96, \"num_hidden_layers\": 3, \"num_attention_heads\": 4,"
        " \"num_key_value_heads\": 2, \"head_dim\": 12, \"vocab_size\": 512, \"max_position_embeddings\": 8192,"
        " \"rms_norm_eps\": 1e-6, \"rope_theta\": 1000000.0, \"tie_word_embeddings\": true, \"dtype\": \"float32\","
        " \"eos_token_id\": 511}";
    char dir[256], path[300];
    struct mdl *m;
    struct km_err err = {0};
    er_folder(dir);
    snprintf(path, sizeof path, "%s/config.json", dir);
    FILE *f = fopen(path, "w");
    if (!f || fputs(config, f) < 0 || fclose(f))
        fail_msg("cannot write %s", path);
    if (mdl_open(&m, dir, true, seed, &err))
        fail_msg("%s", err.msg);
    er_remove(dir);
    return m;
}

struct eng *er_engine(const struct mdl *m, const struct kv_port *port, struct er_opts e)
{
    struct eng_opts o = eng_defaults();
    struct km_err err = {0};
    struct eng *out;
    o.max_model_len = e.max_len;
    o.max_num_seqs = e.seqs;
    o.max_num_batched_tokens = e.batched;
    o.block_size = ER_BLOCK;
    o.num_blocks = e.blocks;
    o.prefix_caching = e.prefix;
    o.dtype = (int)e.dtype;
    o.n_threads = e.threads;
    o.kv_planner = e.planner;
    if (eng_open(&out, &o, m, &be_cpu, port, &err))
        fail_msg("%s", err.msg);
    return out;
}

int64_t er_host_bytes(const struct mdl *m, enum km_dtype dtype, int chunk, int slots)
{
    const struct mdl_config *c = mdl_config(m);
    const size_t token = (size_t)(c->n_layers * 2 * c->n_kv_heads * c->head_dim) * km_dtype_size(dtype);
    const size_t slot = (size_t)chunk * token + kvc_header_bytes(chunk, chunk / ER_BLOCK);
    return (int64_t)slots * (int64_t)((slot + 63) / 64 * 64);
}

static void submit(struct eng *e, struct er_job *a)
{
    struct km_err err = {0};
    struct eng_request r = {.prompt = a->prompt, .n_prompt = a->n, .max_tokens = a->n_out, .ignore_eos = true,
                            .cache_salt = a->salt, .sampling = smp_defaults(), .user = a};
    r.sampling.temperature = 0;
    r.sampling.n_logprobs = 2;
    if (eng_submit(e, &r, &a->id, &err))
        fail_msg("%s", err.msg);
}

static void take_events(const struct eng_events *ev)
{
    for (int i = 0; i < ev->n; i++) {
        struct er_job *a = ev->v[i].user;
        assert_true(ev->v[i].has_token && a->got < a->n_out && a->got < ER_OUT);
        a->out[a->got++] = ev->v[i].token;
        a->cached = ev->v[i].n_cached;
        a->cached_pool = ev->v[i].n_cached_pool;
        a->preempted = ev->v[i].n_preempted;
    }
}

void er_run(struct eng *e, struct er_job *const *a, int n, void (*each)(void *arg), void *arg)
{
    struct km_err err = {0};
    struct eng_events ev;
    const int64_t until = km_now_ns() + 300 * 1000000000LL;
    int left = n;
    for (int i = 0; i < n; i++)
        a[i]->got = a[i]->cached = a[i]->cached_pool = a[i]->preempted = 0;
    for (int step = 0; left || !eng_idle(e); step++) {
        for (int i = 0; i < n; i++) {
            if (a[i]->submit_at == step) {
                submit(e, a[i]);
                left--;
            }
            if (a[i]->cancel_at && a[i]->cancel_at == step && a[i]->got < a[i]->n_out)
                eng_cancel(e, a[i]->id, ENG_ABORT);
        }
        if (each)
            each(arg);
        if (eng_step(e, &ev, &err) || ((step < 40 || step % 16 == 0) && eng_check(e, &err)))
            fail_msg("%s", err.msg);
        take_events(&ev);
        if (ev.stalled)
            usleep(30);
        assert_true(km_now_ns() < until);
    }
    for (int i = 0; i < n; i++)
        assert_true(a[i]->cancel_at || a[i]->got == a[i]->n_out);
}

void er_run_one(struct eng *e, struct er_job *a)
{
    er_run(e, &a, 1, NULL, NULL);
}

static bool same(const struct smp_result *a, const struct smp_result *b)
{
    return a->id == b->id && !memcmp(&a->logprob, &b->logprob, sizeof a->logprob) && a->n_top == b->n_top &&
           !memcmp(a->top_id, b->top_id, (size_t)a->n_top * sizeof *a->top_id) &&
           !memcmp(a->top_logprob, b->top_logprob, (size_t)a->n_top * sizeof *a->top_logprob);
}

void er_check_same(const struct er_job *want, const struct er_job *a)
{
    assert_true(a->got <= want->got && a->n == want->n);
    for (int i = 0; i < a->got; i++)
        if (!same(&want->out[i], &a->out[i]))
            fail_msg("a prompt of %d tokens (%d cached, %d of them in the pool, %d preemptions) has output token %d as "
                     "%d with log-probability %.9g, but %d with %.9g without the cache",
                     a->n, a->cached, a->cached_pool, a->preempted, i, a->out[i].id, a->out[i].logprob,
                     want->out[i].id, want->out[i].logprob);
}

struct kv_port_stats er_stats(struct kvc *k, const struct kv_port *p)
{
    struct km_err err = {0};
    struct kv_port_stats st;
    if (kvc_check(k, &err))
        fail_msg("%s", err.msg);
    p->stats(p->self, &st);
    return st;
}

double er_row(const struct kv_port_stats *st, const char *tier, const char *name)
{
    for (int i = 0; i < st->n_rows; i++)
        if (!strcmp(st->rows[i].tier, tier) && !strcmp(st->rows[i].name, name))
            return st->rows[i].value;
    fail_msg("no row %s of tier %s", name, tier);
    return 0;
}

struct km_digest er_key(struct kvc *k, const char *salt, const int32_t *tokens, int n, int chunk)
{
    struct kvc_keys keys;
    const int C = k->cfg.chunk_size;
    assert_int_equal(kvc_keys_open(&keys, &k->geometry, NULL), 0);
    struct km_digest key = kvc_keys_root(&keys, salt);
    for (int i = 0; i <= chunk; i++)
        key = kvc_keys_next(&keys, &key, tokens + i * C, n - i * C < C ? n - i * C : C);
    kvc_keys_close(&keys);
    return key;
}

static bool has(struct kvc *k, const struct km_digest *key, bool memory)
{
    pthread_mutex_lock(&k->lock);
    const int slot = memory ? kvc_chunks_find(&k->chunks, key) : -1;
    bool found = slot >= 0 && k->chunks.chunk[slot].state == KVC_READY;
    pthread_mutex_unlock(&k->lock);
    for (int t = 0; t < k->cfg.n_tiers && !found; t++)
        found = k->tier[t].ops->lookup && k->tier[t].ops->lookup(k->tier[t].tier, key, 1) == 1;
    return found;
}

int er_held(struct kvc *k, const char *salt, const int32_t *tokens, int n, bool memory)
{
    struct kvc_keys keys;
    const int C = k->cfg.chunk_size;
    assert_int_equal(kvc_keys_open(&keys, &k->geometry, NULL), 0);
    struct km_digest key = kvc_keys_root(&keys, salt);
    int held = 0;
    while (held < n) {
        const int len = n - held < C ? n - held : C;
        if (len < C && !k->cfg.save_unfull)
            break;
        key = kvc_keys_next(&keys, &key, tokens + held, len);
        if (!has(k, &key, memory))
            break;
        held += len;
    }
    kvc_keys_close(&keys);
    return held;
}

void er_folder(char path[256])
{
    const char *dir = getenv("TMPDIR");
    snprintf(path, 256, "%s/kvmark-engine-XXXXXX", dir && *dir && strlen(dir) < 200 ? dir : "/tmp");
    if (!mkdtemp(path))
        fail_msg("cannot make the folder %s", path);
}

static int remove_one(const char *path, const struct stat *st, int type, struct FTW *f)
{
    (void)st, (void)type, (void)f;
    return remove(path);
}

void er_remove(const char *path)
{
    nftw(path, remove_one, 16, FTW_DEPTH | FTW_PHYS);
}
