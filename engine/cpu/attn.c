/* Divides a batch into jobs, runs the jobs, and merges partials. A job uses the scratch memory of its thread. It writes
 * nothing that another job reads. Partials are merged when all jobs are done. */
#include "engine/cpu/attn.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

enum {
    KV_SPLIT = 512,          /* tokens of a split of the KV */
    MAX_ROWS = 96,           /* query rows of a job: packing K and V then takes a small share of its time */
    TASKS_MIN = 8,           /* tasks for each thread that keep the threads about equally busy */
    PARTIAL_FLOATS = 4 << 20 /* floats of the array of partials */
};
_Static_assert(KV_SPLIT % KV_TILE == 0, "a split has whole tiles");

/* Maximum of a row that has seen no token: less than any score, but finite, so that no difference of two is NaN. */
#define M_NONE (-1e30f)

struct job {
    int req, q0, n_q;   /* query tokens [q0, q0 + n_q) of the batch, all of request req */
    int split0, split1; /* KV splits [split0, split1) of the job; all splits in a merge */
    size_t partial;     /* index of the first partial of these query tokens; see partial_at */
    double cost;        /* number of pairs of query and KV token; the jobs with the highest cost run first */
};

/* The arrays of a thread for one job. */
struct scratch {
    float *q;             /* [rows][d + 16] */
    float *o;             /* [rows][dp] output of the current split, as in attn_rows */
    float *l, *m;         /* [rows][KERNELS_MAX_VL], [rows] sum and maximum of the current split, as in attn_rows */
    float *sum;           /* [rows][dp] output, merged over the previous splits */
    float *sum_m, *sum_l; /* [rows] maximum and sum, merged over the previous splits */
    int32_t *pos;         /* [rows] position of the row's query token */
    float *kt, *v;        /* [KV_TILE][d], [KV_TILE][dp] a tile of K and V as panels */
};

struct attn {
    const struct mdl_config *c;
    const struct kernels *k;
    struct thread_pool *pool;
    const struct kv_pool *kv;
    int group;          /* query heads of a KV head */
    int q_block, rows;  /* query tokens of a job, and its rows: q_block * group */
    int dp, ld_partial; /* head_dim rounded up to nr; floats of a partial */
    int threads, max_jobs, max_split_jobs;
    struct scratch *scratch;   /* [threads] */
    struct job *jobs, *merges; /* [n_jobs], [n_merges]; if n_merges is 0, a job processes all splits of its rows */
    int n_jobs, n_merges;
    int task_heads;  /* KV heads that one task computes, one after the other: all of them, or 1 if there are few jobs */
    float *partials; /* [PARTIAL_FLOATS / ld_partial][ld_partial] o[dp], m and l of one split and one row */
    float *zeros;    /* [d] K and V of tokens after the request's last */
    /* The current call of attn_run. */
    const struct batch *b;
    int layer;
    const float *qbuf;
    float *out;
    size_t ldq, ldo;
};

static int round_up(int n, int to)
{
    return (n + to - 1) / to * to;
}

struct attn *attn_layout(struct arena *a, const struct mdl_config *c, const struct kernels *k, int threads,
                         int max_tokens, int max_reqs, int max_model_len)
{
    const int group = c->n_heads / c->n_kv_heads, d = c->head_dim, dp = round_up(d, k->nr);
    const int q_block = MAX_ROWS / group ? MAX_ROWS / group : 1, rows = q_block * group,
              splits = (max_model_len + KV_SPLIT - 1) / KV_SPLIT;
    const size_t r = (size_t)rows;
    struct attn *at = arena_alloc(a, 1, sizeof *at);
    struct attn tmp = {
        .group = group, .q_block = q_block, .rows = rows, .dp = dp, .ld_partial = dp + 16, .threads = threads};
    tmp.max_jobs = max_reqs + max_tokens / q_block + 1;
    tmp.max_split_jobs = 4 * threads * (splits + 1);
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
    tmp.jobs = arena_alloc(a, (size_t)(tmp.max_jobs + tmp.max_split_jobs), sizeof *tmp.jobs);
    tmp.merges = arena_alloc(a, (size_t)tmp.max_jobs, sizeof *tmp.merges);
    tmp.partials = arena_alloc(a, PARTIAL_FLOATS, sizeof(float));
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

static int by_falling_cost(const void *a, const void *b)
{
    double x = ((const struct job *)a)->cost, y = ((const struct job *)b)->cost;
    return x < y ? 1 : x > y ? -1 : 0;
}

/* Number of splits that the job's last query token attends to. */
static int splits_of(const struct batch *b, const struct job *job)
{
    return b->positions[job->q0 + job->n_q - 1] / KV_SPLIT + 1;
}

double attn_plan(struct attn *at, const struct batch *b)
{
    const int G = at->c->n_kv_heads;
    double pairs = 0;
    size_t n_partials = 0;
    int n_splits = 0;
    at->b = b;
    at->n_jobs = at->n_merges = 0;
    for (int r = 0; r < b->n_reqs; r++)
        for (int q = b->q_start[r]; q < b->q_start[r + 1]; q += at->q_block) {
            struct job job = {.req = r, .q0 = q, .n_q = b->q_start[r + 1] - q};
            if (job.n_q > at->q_block)
                job.n_q = at->q_block;
            job.split1 = splits_of(b, &job);
            for (int t = 0; t < job.n_q; t++)
                job.cost += b->positions[q + t] + 1;
            pairs += job.cost;
            job.partial = n_partials;
            n_partials += (size_t)job.split1 * (size_t)(job.n_q * at->group * G);
            n_splits += job.split1;
            at->jobs[at->n_jobs++] = job;
        }
    /* If there are too few jobs to keep all threads busy, each split becomes a job, and the partials are merged later.
     */
    if (at->n_jobs * G < 4 * at->threads && n_splits > at->n_jobs && n_splits <= at->max_split_jobs &&
        n_partials * (size_t)at->ld_partial <= PARTIAL_FLOATS) {
        at->n_merges = at->n_jobs;
        memcpy(at->merges, at->jobs, (size_t)at->n_jobs * sizeof *at->jobs);
        at->n_jobs = 0;
        for (int i = 0; i < at->n_merges; i++)
            for (int s = 0; s < at->merges[i].split1; s++) {
                struct job *job = &at->jobs[at->n_jobs++];
                *job = at->merges[i];
                job->split0 = s;
                job->split1 = s + 1;
            }
    }
    at->task_heads = at->n_jobs >= TASKS_MIN * at->threads ? G : 1;
    qsort(at->jobs, (size_t)at->n_jobs, sizeof *at->jobs, by_falling_cost);
    return 4.0 * pairs * at->c->n_heads * at->c->head_dim;
}

/* The partial of one split and one row: o[dp], m, l. */
static float *partial_at(const struct attn *at, const struct job *job, int split, int head, int row)
{
    size_t rows = (size_t)(job->n_q * at->group);
    size_t i = job->partial + ((size_t)split * (size_t)at->c->n_kv_heads + (size_t)head) * rows + (size_t)row;
    return at->partials + i * (size_t)at->ld_partial;
}

/* Merges the partial (o, m, l) of a split into the sum over the previous splits. noinline: both callers run the same
 * machine code, so that a compiler cannot contract the arithmetic of only one of them. */
static __attribute__((noinline)) void merge_partial(float *sum, float *sum_m, float *sum_l, const float *o, float m,
                                                    float l, int dp)
{
    if (l == 0) /* the row attends to no token of this split */
        return;
    float keep = m > *sum_m ? exp2f(*sum_m - m) : 1, share = m > *sum_m ? 1 : exp2f(m - *sum_m);
    for (int c = 0; c < dp; c++)
        sum[c] = sum[c] * keep + o[c] * share;
    *sum_l = *sum_l * keep + l * share;
    *sum_m = m > *sum_m ? m : *sum_m;
}

/* Writes a row of the output: sum[d] / l. */
static void write_out(const struct attn *at, const struct job *job, int head, int row, const float *sum, float l)
{
    const int d = at->c->head_dim, h = head * at->group + row % at->group;
    float *out = at->out + (size_t)(job->q0 + row / at->group) * at->ldo + (size_t)h * (size_t)d;
    for (int c = 0; c < d; c++)
        out[c] = sum[c] / l;
}

/* Finds the tile of tokens [from, from + KV_TILE). Tokens that the request does not have are zeros. */
static void find_tile(const struct attn *at, int req, int head, int from, struct kv_tile *t)
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

/* Scales the queries of a job, and initialises the sums over its splits. */
static void start_rows(const struct attn *at, const struct job *job, int head, struct scratch *s)
{
    const int d = at->c->head_dim, n = job->n_q * at->group;
    const float scale = 1.44269504f / sqrtf((float)d);
    for (int r = 0; r < n; r++) {
        int t = job->q0 + r / at->group, h = head * at->group + r % at->group;
        const float *q = at->qbuf + (size_t)t * at->ldq + (size_t)h * (size_t)d;
        for (int c = 0; c < d; c++)
            s->q[(size_t)r * (size_t)(d + 16) + (size_t)c] = q[c] * scale;
        s->pos[r] = at->b->positions[t];
        s->sum_m[r] = M_NONE;
        s->sum_l[r] = 0;
    }
    memset(s->sum, 0, (size_t)n * (size_t)at->dp * sizeof(float));
}

/* The tiles of a task, each of which is found, and prefetched, while the one before it is computed. */
struct reading {
    struct kv_tile tiles[2];
    int now;      /* index of the current tile; the other one is the next */
    int end_head; /* the task's heads are those before this one */
};

/* Finds the tile after tokens [from, from + KV_TILE) of a head: the job's next one, or the first one of the next head.
 */
static const struct kv_tile *find_next(const struct attn *at, const struct job *job, int head, int from,
                                       struct reading *rd)
{
    const int last = at->b->positions[job->q0 + job->n_q - 1];
    const bool more = from + KV_TILE <= last && from + KV_TILE < job->split1 * KV_SPLIT;
    struct kv_tile *next = &rd->tiles[!rd->now];
    if (more || head + 1 == rd->end_head)
        find_tile(at, job->req, head, from + KV_TILE, next);
    else
        find_tile(at, job->req, head + 1, job->split0 * KV_SPLIT, next);
    return next;
}

/* Computes one split of a job's rows. The split's first tile is the current one of rd. */
static void run_split(const struct attn *at, const struct job *job, int head, int split, struct reading *rd,
                      struct scratch *s)
{
    const int d = at->c->head_dim, dp = at->dp, n = job->n_q * at->group;
    const int last = at->b->positions[job->q0 + job->n_q - 1];
    const int end = (split + 1) * KV_SPLIT <= last ? (split + 1) * KV_SPLIT : last + 1;
    const bool bf16 = at->kv->g.dtype == KM_BF16;
    struct attn_rows rows = {
        .n = n, .dp = dp, .q = s->q, .ldq = (size_t)d + 16, .pos = s->pos, .m = s->m, .l = s->l, .o = s->o};
    for (int r = 0; r < n; r++)
        s->m[r] = M_NONE;
    memset(s->l, 0, (size_t)n * KERNELS_MAX_VL * sizeof(float));
    memset(s->o, 0, (size_t)n * (size_t)dp * sizeof(float));
    for (int from = split * KV_SPLIT; from < end; from += KV_TILE, rd->now ^= 1) {
        const struct kv_tile *now = &rd->tiles[rd->now], *next = find_next(at, job, head, from, rd);
        if (n <= at->k->mr) {
            at->k->attend_in_place(&rows, d, from, now, next, bf16);
        } else {
            at->k->pack_k(now, next, bf16, d, s->kt);
            at->k->pack_v(now, next, bf16, d, dp, s->v);
            at->k->attend(&rows, d, from, s->kt, s->v);
        }
    }
}

/* Stores the results of a split as partials, or merges them into the sums of the job. */
static void finish_split(const struct attn *at, const struct job *job, int head, int split, struct scratch *s)
{
    const int dp = at->dp;
    for (int r = 0; r < job->n_q * at->group; r++) {
        float l = 0, *o = s->o + (size_t)r * (size_t)dp;
        for (int i = 0; i < KERNELS_MAX_VL; i++)
            l += s->l[(size_t)r * KERNELS_MAX_VL + (size_t)i];
        if (at->n_merges) {
            float *p = partial_at(at, job, split, head, r);
            memcpy(p, o, (size_t)dp * sizeof(float));
            p[dp] = s->m[r];
            p[dp + 1] = l;
        } else {
            merge_partial(s->sum + (size_t)r * (size_t)dp, &s->sum_m[r], &s->sum_l[r], o, s->m[r], l, dp);
        }
    }
}

static void run_job(void *ctx, int task, int thread)
{
    struct attn *at = ctx;
    const int tasks = at->c->n_kv_heads / at->task_heads, first = task % tasks * at->task_heads;
    const struct job *job = &at->jobs[task / tasks];
    struct scratch *s = &at->scratch[thread];
    struct reading rd = {.end_head = first + at->task_heads};
    find_tile(at, job->req, first, job->split0 * KV_SPLIT, &rd.tiles[0]);
    for (int head = first; head < rd.end_head; head++) {
        start_rows(at, job, head, s);
        for (int split = job->split0; split < job->split1; split++) {
            run_split(at, job, head, split, &rd, s);
            finish_split(at, job, head, split, s);
        }
        for (int r = 0; r < job->n_q * at->group && !at->n_merges; r++)
            write_out(at, job, head, r, s->sum + (size_t)r * (size_t)at->dp, s->sum_l[r]);
    }
}

/* Merges the partials of all splits of a job. */
static void run_merge(void *ctx, int task, int thread)
{
    struct attn *at = ctx;
    const int G = at->c->n_kv_heads, head = task % G, dp = at->dp;
    const struct job *job = &at->merges[task / G];
    float *sum = at->scratch[thread].sum;
    for (int r = 0; r < job->n_q * at->group; r++) {
        float m = M_NONE, l = 0;
        memset(sum, 0, (size_t)dp * sizeof(float));
        for (int s = 0; s < job->split1; s++) {
            const float *p = partial_at(at, job, s, head, r);
            merge_partial(sum, &m, &l, p, p[dp], p[dp + 1], dp);
        }
        write_out(at, job, head, r, sum, l);
    }
}

void attn_run(struct attn *at, int layer, const float *q, size_t ldq, float *out, size_t ldo)
{
    at->layer = layer;
    at->qbuf = q;
    at->ldq = ldq;
    at->out = out;
    at->ldo = ldo;
    thread_pool_run(at->pool, at->n_jobs * (at->c->n_kv_heads / at->task_heads), run_job, at);
    thread_pool_run(at->pool, at->n_merges * at->c->n_kv_heads, run_merge, at);
}
