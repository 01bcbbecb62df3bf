/* Tests of the CPU backend's copies between pages and host memory: bytes, checksums, refusals, and copies by another
 * thread while steps run. Every KV pool is filled with NaN before use. */
#include "engine/cpu/test/cpu_rig.h"

#include "base/mem.h"
#include "base/page_sum.h"

#include <pthread.h>
#include <stdatomic.h>
#include <string.h>
#include <unistd.h>

static struct smp_params greedy; /* set by main */

static void copy_pages(struct rig *r, enum kv_dir dir, struct kv_copy *c, int n)
{
    struct km_err err = {0};
    if (rig_copy_pages(r, dir, c, n, &err))
        fail_msg("%s", err.msg);
}

/* The copies of the first n pages of a sequence from or to host[n][page_bytes]. Every page has a seed of its own. */
static void list_copies(const struct rig *r, const struct rig_seq *s, char *host, int n, struct kv_copy *c)
{
    for (int i = 0; i < n; i++)
        c[i] = (struct kv_copy){.page = s->table[i],
                                .n_tokens = r->g.block_size,
                                .host = host + (size_t)i * r->g.page_bytes,
                                .seed = km_page_sum_seed(7, (uint32_t)i)};
}

static uint64_t host_sum(const struct rig *r, const struct kv_copy *c)
{
    const size_t token_bytes = (size_t)r->g.head_dim * km_dtype_size(r->g.dtype);
    return km_page_sum(c->host, r->g.page_bytes / 8, (uint32_t)(token_bytes / 8), (uint32_t)r->g.block_size,
                       (uint32_t)c->n_tokens, c->seed);
}

static void copied_pages_give_the_same_bits(void **state)
{
    (void)state;
    enum { N = 512, PAGES = N / 16 };
    int32_t tokens[N + 1];
    struct mdl *m = open_model(TINY);
    for (int dtype = KM_F32; dtype <= KM_BF16; dtype++) {
        struct rig r;
        struct rig_seq a, b;
        struct smp_result want, got;
        struct kv_copy out[PAGES], in[PAGES];
        open_rig(&r, m, rig_opts((enum km_dtype)dtype));
        random_tokens(tokens, N + 1, mdl_config(m)->vocab);
        open_seq(&r, &a, N + 1);
        prefill(&r, &a, tokens, N, 2048);
        char *host = malloc(PAGES * r.g.page_bytes), *back = malloc(PAGES * r.g.page_bytes);
        list_copies(&r, &a, host, PAGES, out);
        copy_pages(&r, KV_TO_HOST, out, PAGES);
        run_step(&r, &(struct rig_part){&a, &tokens[N], 1, &greedy}, 1, &want);
        r.stride = 5;
        open_seq(&r, &b, N + 1);
        list_copies(&r, &b, host, PAGES, in);
        copy_pages(&r, KV_TO_PAGE, in, PAGES);
        for (int i = 0; i < PAGES; i++) {
            assert_true(out[i].sum == in[i].sum && in[i].sum == host_sum(&r, &in[i]));
            in[i].host = back + (size_t)i * r.g.page_bytes;
        }
        copy_pages(&r, KV_TO_HOST, in, PAGES);
        assert_memory_equal(host, back, PAGES * r.g.page_bytes);
        b.n_done = N;
        run_step(&r, &(struct rig_part){&b, &tokens[N], 1, &greedy}, 1, &got);
        assert_true(rig_same(&want, &got));
        /* One flipped exponent bit of the last V changes the checksum and the result: the pages are really read. */
        host[PAGES * r.g.page_bytes - 1] ^= 0x20;
        in[PAGES - 1].host = host + (PAGES - 1) * r.g.page_bytes;
        copy_pages(&r, KV_TO_PAGE, &in[PAGES - 1], 1);
        assert_true(in[PAGES - 1].sum != out[PAGES - 1].sum);
        b.n_done = N;
        run_step(&r, &(struct rig_part){&b, &tokens[N], 1, &greedy}, 1, &got);
        assert_false(rig_same(&want, &got));
        free(host);
        free(back);
        rig_seq_close(&a);
        rig_seq_close(&b);
        rig_close(&r);
    }
    mdl_free(m);
}

/* True if the rows of a page's tokens in host memory, from n on, are 0. */
static bool rest_is_zero(const struct rig *r, const char *host, int n)
{
    const size_t row = (size_t)r->g.head_dim * km_dtype_size(r->g.dtype), B = (size_t)r->g.block_size;
    for (size_t i = 0; i < r->g.page_bytes; i++)
        if (i / row % B >= (size_t)n && host[i])
            return false;
    return true;
}

/* The first n_tokens tokens of a page enter the checksum. A copy to the host has 0 in place of the others. A copy to
 * the page writes all bytes. */
static void the_checksum_covers_the_valid_tokens(void **state)
{
    (void)state;
    struct mdl *m = open_model(TINY);
    struct rig r;
    struct rig_seq s;
    int32_t tokens[16];
    uint64_t sums[17];
    open_rig(&r, m, rig_opts(KM_BF16));
    open_seq(&r, &s, 32);
    random_tokens(tokens, 16, mdl_config(m)->vocab);
    prefill(&r, &s, tokens, 16, 16);
    const size_t row = (size_t)r.g.head_dim * 2, size = r.g.page_bytes;
    char *host = malloc(size), *back = malloc(size);
    struct kv_copy c = {.page = s.table[0], .host = host, .seed = 3};
    for (c.n_tokens = 1; c.n_tokens <= 16; c.n_tokens++) {
        memset(host, 0x5A, size);
        copy_pages(&r, KV_TO_HOST, &c, 1);
        assert_true(rest_is_zero(&r, host, c.n_tokens) && !rest_is_zero(&r, host, c.n_tokens - 1));
        sums[c.n_tokens] = c.sum;
        assert_true(c.sum == host_sum(&r, &c) && (c.n_tokens == 1 || c.sum != sums[c.n_tokens - 1]));
    }
    host[size - 1] ^= 1; /* V of token 15, in the last layer and head */
    host[15 * row] ^= 1; /* K of token 15, in the first layer and head */
    c.page = s.table[1];
    for (c.n_tokens = 1; c.n_tokens <= 16; c.n_tokens++) {
        copy_pages(&r, KV_TO_PAGE, &c, 1);
        assert_true((c.sum == sums[c.n_tokens]) == (c.n_tokens < 16));
    }
    host[0] ^= 1;
    c.n_tokens = 1;
    copy_pages(&r, KV_TO_PAGE, &c, 1);
    c.n_tokens = 16;
    c.host = back;
    copy_pages(&r, KV_TO_HOST, &c, 1);
    assert_memory_equal(host, back, size);
    free(host);
    free(back);
    rig_seq_close(&s);
    rig_close(&r);
    mdl_free(m);
}

static void invalid_copies_are_refused(void **state)
{
    (void)state;
    struct mdl *m = open_model(TINY);
    struct rig r;
    struct km_err err = {0};
    open_rig(&r, m, rig_opts(KM_F32));
    char *host = malloc(r.g.page_bytes);
    struct kv_copy *c = calloc(KV_COPY_MOST + 1, sizeof *c);
    uint64_t ticket = 0, next = 0;
    for (int i = 0; i <= KV_COPY_MOST; i++)
        c[i] = (struct kv_copy){.page = i, .n_tokens = 16, .host = host};
    const struct {
        int32_t *at, value;
    } invalid[] = {{&c[1].page, -1}, {&c[1].page, r.g.n_pages}, {&c[1].n_tokens, 0}, {&c[1].n_tokens, 17}};
    assert_int_equal(be_cpu.copy(r.b, KV_TO_HOST, c, KV_COPY_MOST, 0, &ticket, &err), 0);
    for (int dir = KV_TO_HOST; dir <= KV_TO_PAGE; dir++) {
        for (size_t i = 0; i < sizeof invalid / sizeof *invalid; i++) {
            int32_t was = *invalid[i].at;
            *invalid[i].at = invalid[i].value;
            assert_int_equal(be_cpu.copy(r.b, (enum kv_dir)dir, c, 2, 0, &next, &err), KM_EINVAL);
            *invalid[i].at = was;
        }
        c[1].host = NULL;
        assert_int_equal(be_cpu.copy(r.b, (enum kv_dir)dir, c, 2, 0, &next, &err), KM_EINVAL);
        c[1].host = host;
        assert_int_equal(be_cpu.copy(r.b, (enum kv_dir)dir, c, 0, 0, &next, &err), KM_EINVAL);
        assert_int_equal(be_cpu.copy(r.b, (enum kv_dir)dir, c, KV_COPY_MOST + 1, 0, &next, &err), KM_EINVAL);
    }
    assert_int_equal(be_cpu.copy(r.b, KV_TO_HOST, c, 1, 0, &next, &err), 0);
    assert_true(next != ticket && ticket && next);
    assert_int_equal(be_cpu.poll(r.b, next), 1); /* tickets are polled in any order */
    assert_int_equal(be_cpu.poll(r.b, ticket), 1);
    assert_true(be_cpu.poll(r.b, next + 1) < 0 && be_cpu.poll(r.b, 0) < 0);
    free(c);
    free(host);
    rig_close(&r);
    mdl_free(m);
}

/* What the copying thread of copies_run_beside_steps does: store a finished sequence and load it into other pages,
 * again and again. */
struct copying {
    struct rig *r;
    struct rig_seq from, to;
    char *host, *back;
    atomic_bool stop;
    int rounds, wrong;
};

static void *copy_until_stopped(void *arg)
{
    struct copying *x = arg;
    const size_t size = (size_t)x->from.blocks * x->r->g.page_bytes;
    while (!atomic_load(&x->stop)) {
        x->wrong += rig_copy(x->r, &x->from, KV_TO_HOST, x->host, NULL) != 0;
        x->wrong += rig_copy(x->r, &x->to, KV_TO_PAGE, x->host, NULL) != 0;
        x->wrong += rig_copy(x->r, &x->to, KV_TO_HOST, x->back, NULL) != 0;
        x->wrong += memcmp(x->host, x->back, size) != 0;
        x->rounds++;
    }
    return NULL;
}

static void copies_run_beside_steps(void **state)
{
    (void)state;
    enum { N = 400 };
    int32_t tokens[N];
    struct mdl *m = open_model(TINY);
    struct rig r;
    struct rig_seq a, b;
    pthread_t thread;
    open_rig(&r, m, rig_opts(KM_F32));
    random_tokens(tokens, N, mdl_config(m)->vocab);
    struct copying x = {.r = &r};
    open_seq(&r, &x.from, N);
    open_seq(&r, &x.to, N);
    open_seq(&r, &a, N);
    open_seq(&r, &b, N);
    prefill(&r, &x.from, tokens, N, 2048);
    struct smp_result want = prefill(&r, &a, tokens, N, 16);
    x.host = malloc((size_t)x.from.blocks * r.g.page_bytes);
    x.back = malloc((size_t)x.from.blocks * r.g.page_bytes);
    assert_int_equal(pthread_create(&thread, NULL, copy_until_stopped, &x), 0);
    for (int i = 0; i < 5; i++) {
        b.n_done = 0;
        struct smp_result got = prefill(&r, &b, tokens, N, 16);
        assert_true(rig_same(&want, &got));
    }
    atomic_store(&x.stop, true);
    pthread_join(thread, NULL);
    assert_true(x.rounds > 0);
    assert_int_equal(x.wrong, 0);
    free(x.host);
    free(x.back);
    struct rig_seq *const all[] = {&a, &b, &x.from, &x.to};
    for (int i = 0; i < 4; i++)
        rig_seq_close(all[i]);
    rig_close(&r);
    mdl_free(m);
}

/* Runs the kernels of each instruction set that this CPU has, not only those of kernels_best. */
/* What the copying thread of a_partial_page_is_copied_beside_steps does. */
struct partial {
    struct rig *r;
    struct kv_copy copy;
    char *want; /* [page_bytes] */
    atomic_bool stop;
    atomic_int rounds;
    int wrong;
};

static void *copy_partial(void *arg)
{
    struct partial *x = arg;
    const uint64_t sum = host_sum(x->r, &(struct kv_copy){.host = x->want, .n_tokens = x->copy.n_tokens, .seed = 5});
    while (!atomic_load(&x->stop)) {
        x->wrong += rig_copy_pages(x->r, KV_TO_HOST, &x->copy, 1, NULL) != 0 || x->copy.sum != sum ||
                    memcmp(x->copy.host, x->want, x->r->g.page_bytes) != 0;
        atomic_fetch_add(&x->rounds, 1);
    }
    return NULL;
}

/* The page of a prompt's last 5 tokens is copied again and again while steps write the tokens after them. */
static void a_partial_page_is_copied_beside_steps(void **state)
{
    (void)state;
    enum { N = 5 };
    int32_t tokens[16];
    struct mdl *m = open_model(TINY);
    struct rig r;
    struct rig_seq s;
    struct smp_result res;
    pthread_t thread;
    open_rig(&r, m, rig_opts(KM_F32));
    random_tokens(tokens, 16, mdl_config(m)->vocab);
    open_seq(&r, &s, 16);
    prefill(&r, &s, tokens, N, 16);
    struct partial x = {.r = &r, .want = malloc(r.g.page_bytes)};
    x.copy = (struct kv_copy){.page = s.table[0], .n_tokens = N, .host = x.want, .seed = 5};
    copy_pages(&r, KV_TO_HOST, &x.copy, 1);
    x.copy.host = malloc(r.g.page_bytes);
    assert_int_equal(pthread_create(&thread, NULL, copy_partial, &x), 0);
    for (int round = 0; round < 20 || atomic_load(&x.rounds) < 20; round++) {
        s.n_done = N;
        for (int i = N; i < 16; i++)
            run_step(&r, &(struct rig_part){&s, &tokens[i], 1, &greedy}, 1, &res);
    }
    atomic_store(&x.stop, true);
    pthread_join(thread, NULL);
    assert_int_equal(x.wrong, 0);
    free(x.want);
    free(x.copy.host);
    rig_seq_close(&s);
    rig_close(&r);
    mdl_free(m);
}

int main(void)
{
    greedy = rig_greedy();
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(copied_pages_give_the_same_bits),
        cmocka_unit_test(the_checksum_covers_the_valid_tokens),
        cmocka_unit_test(invalid_copies_are_refused),
        cmocka_unit_test(copies_run_beside_steps),
        cmocka_unit_test(a_partial_page_is_copied_beside_steps),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
