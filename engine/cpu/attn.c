/* Dividing a batch into items, running them, merging spans. Everything an item needs lies in its thread's scratch;
 * items write nothing that another one reads, except records that the merge picks up after all are done. */
#include "engine/cpu/attn.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

enum {
    SPAN = 512,           /* tokens after which the softmax starts afresh */
    ROWS = 96,            /* query rows of an item: enough to pay for packing K and V */
    PART_FLOATS = 4 << 20 /* room for results of single spans */
};
_Static_assert(SPAN % KV_TILE == 0, "a span is whole tiles");

/* Below any score: the maximum of a row that has seen nothing. Finite, so that differences stay numbers. */
#define M_NONE (-1e30f)

struct item {
    int req, q0, n_q; /* query tokens [q0, q0 + n_q) of the batch */
    int span0, span1; /* spans to do; of a merge item: all */
    size_t part;      /* first record in parts; see record() */
    double cost;
};

/* What a thread needs for one item. */
struct scratch {
    float *q;                 /* [rows][d + 16] */
    float *o, *sum;           /* [rows][dp] of the span; of the spans so far */
    float *l;                 /* [rows][KERNELS_MAX_VL] */
    float *m, *sum_m, *sum_l; /* [rows] */
    int32_t *pos;             /* [rows] */
    float *kt, *v;            /* [KV_TILE][d], [KV_TILE][dp], as panels */
};

struct attn {
    const struct mdl_config *c;
    const struct kernels *k;
    struct thread_pool *pool;
    const struct kv_pool *kv;
    int group, q_block, rows, dp, ld_part, threads, max_items, max_parts_items;
    struct scratch *scratch;     /* [threads] */
    struct item *items, *merges; /* [n_items], [n_merges]; without merges every item is whole */
    int n_items, n_merges;
    float *parts; /* records of ld_part floats: o[dp], m, l */
    float *zeros; /* [d] the K and V of tokens that are not there */
    /* of the run in progress */
    const struct batch *b;
    int layer;
    const float *qbuf;
    float *out;
    size_t ldq, ldo;
};

static int up(int n, int to)
{
    return (n + to - 1) / to * to;
}

struct attn *attn_layout(struct arena *a, const struct mdl_config *c, const struct kernels *k, int threads,
                         int max_tokens, int max_reqs, int max_model_len)
{
    const int group = c->n_heads / c->n_kv_heads, d = c->head_dim, dp = up(d, k->nr);
    const int q_block = ROWS / group ? ROWS / group : 1, rows = q_block * group,
              spans = (max_model_len + SPAN - 1) / SPAN;
    const size_t r = (size_t)rows;
    struct attn *at = arena_alloc(a, 1, sizeof *at);
    struct attn tmp = {
        .group = group, .q_block = q_block, .rows = rows, .dp = dp, .ld_part = dp + 16, .threads = threads};
    tmp.max_items = max_reqs + max_tokens / q_block + 1;
    tmp.max_parts_items = 4 * threads * (spans + 1);
    struct scratch *s = tmp.scratch = arena_alloc(a, (size_t)threads, sizeof *s);
    for (int t = 0; t < threads; t++) {
        struct scratch one;
        one.q = arena_alloc(a, r * (size_t)(d + 16), sizeof(float));
        one.o = arena_alloc(a, r * (size_t)dp, sizeof(float));
        one.sum = arena_alloc(a, r * (size_t)dp, sizeof(float));
        one.l = arena_alloc(a, r * KERNELS_MAX_VL, sizeof(float));
        one.m = arena_alloc(a, r, sizeof(float));
        one.sum_m = arena_alloc(a, r, sizeof(float));
        one.sum_l = arena_alloc(a, r, sizeof(float));
        one.pos = arena_alloc(a, r, sizeof(int32_t));
        one.kt = arena_alloc(a, (size_t)KV_TILE * (size_t)d, sizeof(float));
        one.v = arena_alloc(a, (size_t)KV_TILE * (size_t)dp, sizeof(float));
        if (s)
            s[t] = one;
    }
    tmp.items = arena_alloc(a, (size_t)(tmp.max_items + tmp.max_parts_items), sizeof *tmp.items);
    tmp.merges = arena_alloc(a, (size_t)tmp.max_items, sizeof *tmp.merges);
    tmp.parts = arena_alloc(a, PART_FLOATS, sizeof(float));
    tmp.zeros = arena_alloc(a, (size_t)d, sizeof(float));
    if (at)
        *at = tmp;
    return at;
}

void attn_open(struct attn *at, const struct mdl_config *c, const struct kernels *k, struct thread_pool *pool,
               const struct kv_pool *kv)
{
    at->c = c;
    at->k = k;
    at->pool = pool;
    at->kv = kv;
    memset(at->zeros, 0, (size_t)c->head_dim * sizeof(float));
}

static int dearest_first(const void *a, const void *b)
{
    double x = ((const struct item *)a)->cost, y = ((const struct item *)b)->cost;
    return x < y ? 1 : x > y ? -1 : 0;
}

/* Tokens that the last query of an item sees, in spans. */
static int spans_of(const struct batch *b, const struct item *it)
{
    return b->positions[it->q0 + it->n_q - 1] / SPAN + 1;
}

double attn_plan(struct attn *at, const struct batch *b)
{
    const int G = at->c->n_kv_heads;
    double pairs = 0;
    size_t records = 0;
    int parts = 0;
    at->b = b;
    at->n_items = at->n_merges = 0;
    for (int r = 0; r < b->n_reqs; r++)
        for (int q = b->q_start[r]; q < b->q_start[r + 1]; q += at->q_block) {
            struct item it = {.req = r, .q0 = q, .n_q = b->q_start[r + 1] - q};
            if (it.n_q > at->q_block)
                it.n_q = at->q_block;
            it.span1 = spans_of(b, &it);
            for (int t = 0; t < it.n_q; t++)
                it.cost += b->positions[q + t] + 1;
            pairs += it.cost;
            it.part = records;
            records += (size_t)it.span1 * (size_t)(it.n_q * at->group * G);
            parts += it.span1;
            at->items[at->n_items++] = it;
        }
    /* Too few to share out evenly: a span each, and a merge. */
    if (at->n_items * G < 4 * at->threads && parts > at->n_items && parts <= at->max_parts_items &&
        records * (size_t)at->ld_part <= PART_FLOATS) {
        at->n_merges = at->n_items;
        memcpy(at->merges, at->items, (size_t)at->n_items * sizeof *at->items);
        at->n_items = 0;
        for (int i = 0; i < at->n_merges; i++)
            for (int s = 0; s < at->merges[i].span1; s++) {
                struct item *it = &at->items[at->n_items++];
                *it = at->merges[i];
                it->span0 = s;
                it->span1 = s + 1;
            }
    }
    qsort(at->items, (size_t)at->n_items, sizeof *at->items, dearest_first);
    return 4.0 * pairs * at->c->n_heads * at->c->head_dim;
}

/* The result of one span for one row: o[dp], m, l. */
static float *record(const struct attn *at, const struct item *it, int span, int head, int row)
{
    size_t rows = (size_t)(it->n_q * at->group);
    size_t i = it->part + ((size_t)span * (size_t)at->c->n_kv_heads + (size_t)head) * rows + (size_t)row;
    return at->parts + i * (size_t)at->ld_part;
}

/* Adds a span's result (o, m, l) to the sum of the spans before it. */
static __attribute__((noinline)) void merge_row(float *sum, float *sum_m, float *sum_l, const float *o, float m,
                                                float l, int dp)
{
    if (l == 0) /* the row sees nothing of this span */
        return;
    float keep = m > *sum_m ? exp2f(*sum_m - m) : 1, share = m > *sum_m ? 1 : exp2f(m - *sum_m);
    for (int c = 0; c < dp; c++)
        sum[c] = sum[c] * keep + o[c] * share;
    *sum_l = *sum_l * keep + l * share;
    *sum_m = m > *sum_m ? m : *sum_m;
}

static void put_out(const struct attn *at, const struct item *it, int head, int row, const float *sum, float l)
{
    const int d = at->c->head_dim, h = head * at->group + row % at->group;
    float *out = at->out + (size_t)(it->q0 + row / at->group) * at->ldo + (size_t)h * (size_t)d;
    for (int c = 0; c < d; c++)
        out[c] = sum[c] / l;
}

/* Where K and V of tokens [from, from + KV_TILE) lie, as far as the request has them. */
struct tile {
    const void *k[KV_TILE], *v[KV_TILE];
};

static void find_tile(const struct attn *at, int req, int head, int from, struct tile *t)
{
    const struct batch *b = at->b;
    const int B = at->kv->g.block_size, n = b->kv_len[req] - from;
    const int32_t *table = b->block_table + b->table_start[req];
    const size_t row = (size_t)at->c->head_dim * km_dtype_size(at->kv->g.dtype);
    int i = 0;
    while (i < KV_TILE && i < n) {
        int off = (from + i) % B, run = B - off;
        const char *pk = kv_row(at->kv, table[(from + i) / B], at->layer, 0, head, off);
        const char *pv = kv_row(at->kv, table[(from + i) / B], at->layer, 1, head, off);
        for (; run > 0 && i < KV_TILE && i < n; run--, i++, pk += row, pv += row) {
            t->k[i] = pk;
            t->v[i] = pv;
        }
    }
    for (; i < KV_TILE; i++)
        t->k[i] = t->v[i] = at->zeros;
}

static void run_item(void *ctx, int task, int thread)
{
    struct attn *at = ctx;
    const int G = at->c->n_kv_heads, d = at->c->head_dim, dp = at->dp, head = task % G;
    const struct item *it = &at->items[task / G];
    struct scratch *s = &at->scratch[thread];
    const int n = it->n_q * at->group;
    const int last = at->b->positions[it->q0 + it->n_q - 1];
    const float scale = 1.44269504f / sqrtf((float)d);
    const bool bf16 = at->kv->g.dtype == KM_BF16;
    struct tile tiles[2]; /* this one and the next */
    struct attn_rows rows = {
        .n = n, .dp = dp, .q = s->q, .ldq = (size_t)d + 16, .pos = s->pos, .m = s->m, .l = s->l, .o = s->o};

    for (int r = 0; r < n; r++) {
        int t = it->q0 + r / at->group, h = head * at->group + r % at->group;
        const float *q = at->qbuf + (size_t)t * at->ldq + (size_t)h * (size_t)d;
        for (int c = 0; c < d; c++)
            s->q[(size_t)r * (size_t)(d + 16) + (size_t)c] = q[c] * scale;
        s->pos[r] = at->b->positions[t];
        s->sum_m[r] = M_NONE;
        s->sum_l[r] = 0;
    }
    memset(s->sum, 0, (size_t)n * (size_t)dp * sizeof(float));
    find_tile(at, it->req, head, it->span0 * SPAN, &tiles[it->span0 * SPAN / KV_TILE % 2]);
    for (int span = it->span0; span < it->span1; span++) {
        for (int r = 0; r < n; r++)
            s->m[r] = M_NONE;
        memset(s->l, 0, (size_t)n * KERNELS_MAX_VL * sizeof(float));
        memset(s->o, 0, (size_t)n * (size_t)dp * sizeof(float));
        const int end = (span + 1) * SPAN <= last ? (span + 1) * SPAN : last + 1;
        for (int from = span * SPAN; from < end; from += KV_TILE) {
            const struct tile *now = &tiles[from / KV_TILE % 2];
            struct tile *next = &tiles[(from / KV_TILE + 1) % 2];
            find_tile(at, it->req, head, from + KV_TILE, next);
            at->k->pack_k(now->k, next->k, bf16, d, s->kt);
            at->k->pack_v(now->v, next->v, bf16, d, dp, s->v);
            at->k->attend(&rows, d, from, s->kt, s->v);
        }
        for (int r = 0; r < n; r++) {
            float l = 0, *o = s->o + (size_t)r * (size_t)dp;
            for (int i = 0; i < KERNELS_MAX_VL; i++)
                l += s->l[(size_t)r * KERNELS_MAX_VL + (size_t)i];
            if (at->n_merges) {
                float *rec = record(at, it, span, head, r);
                memcpy(rec, o, (size_t)dp * sizeof(float));
                rec[dp] = s->m[r];
                rec[dp + 1] = l;
            } else {
                merge_row(s->sum + (size_t)r * (size_t)dp, &s->sum_m[r], &s->sum_l[r], o, s->m[r], l, dp);
            }
        }
    }
    for (int r = 0; r < n && !at->n_merges; r++)
        put_out(at, it, head, r, s->sum + (size_t)r * (size_t)dp, s->sum_l[r]);
}

static void run_merge(void *ctx, int task, int thread)
{
    struct attn *at = ctx;
    const int G = at->c->n_kv_heads, head = task % G, dp = at->dp;
    const struct item *it = &at->merges[task / G];
    float *sum = at->scratch[thread].sum;
    for (int r = 0; r < it->n_q * at->group; r++) {
        float m = M_NONE, l = 0;
        memset(sum, 0, (size_t)dp * sizeof(float));
        for (int s = 0; s < it->span1; s++) {
            const float *rec = record(at, it, s, head, r);
            merge_row(sum, &m, &l, rec, rec[dp], rec[dp + 1], dp);
        }
        put_out(at, it, head, r, sum, l);
    }
}

void attn_run(struct attn *at, int layer, const float *q, size_t ldq, float *out, size_t ldo)
{
    at->layer = layer;
    at->qbuf = q;
    at->ldq = ldq;
    at->out = out;
    at->ldo = ldo;
    thread_pool_run(at->pool, at->n_items * at->c->n_kv_heads, run_item, at);
    thread_pool_run(at->pool, at->n_merges * at->c->n_kv_heads, run_merge, at);
}
