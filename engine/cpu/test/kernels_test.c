/* The two ways of attention of every instruction set of this CPU: few rows read K and V in place, many rows use panels.
 * Both must give the same bits, because a token may be computed by either, depending on the batch. */
#include "base/test/test.h"

#include "base/dtype.h"
#include "base/mem.h"
#include "base/random.h"
#include "engine/cpu/kernels.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

enum { TILES = 3, MAX_D = 160, MAX_ROWS = 12 };

/* K and V of TILES tiles, queries, and the state of two computations. */
struct attention {
    const struct kernels *k;
    int d, dp, n;
    bool bf16;
    char *kv;                           /* [2][TILES * KV_TILE][d] */
    struct kv_tile tiles[TILES + 1];    /* the last one is only prefetched */
    int32_t pos[MAX_ROWS];
    float *q, *kt, *v;                  /* [MAX_ROWS][MAX_D + 16], [KV_TILE][MAX_D], [KV_TILE][dp] */
    struct attn_rows rows[2];           /* of the panels; in place */
};

static float random_float(uint64_t *seed)
{
    return (float)((double)(km_random_at(11, ++*seed) >> 11) * 0x1p-53) * 4 - 2;
}

static void open_attention(struct attention *x, const struct kernels *k, int d, bool bf16)
{
    uint64_t seed = (uint64_t)d;
    const size_t elem = bf16 ? 2 : 4, all = 2 * (size_t)(TILES * KV_TILE) * (size_t)d;
    *x = (struct attention){.k = k, .d = d, .dp = (d + k->nr - 1) / k->nr * k->nr, .bf16 = bf16};
    x->kv = km_aligned(64, all * elem);
    x->q = km_aligned(64, MAX_ROWS * (MAX_D + 16) * sizeof(float));
    x->kt = km_aligned(64, (size_t)(KV_TILE * d) * sizeof(float));
    x->v = km_aligned(64, (size_t)(KV_TILE * x->dp) * sizeof(float));
    for (size_t i = 0; i < all; i++)
        if (bf16)
            ((uint16_t *)x->kv)[i] = km_f32_to_bf16(random_float(&seed));
        else
            ((float *)x->kv)[i] = random_float(&seed);
    for (int i = 0; i < MAX_ROWS * (MAX_D + 16); i++)
        x->q[i] = random_float(&seed);
    /* Tokens lie in a scattered order. 37 has no factor in common with their number. */
    for (int t = 0; t < (TILES + 1) * KV_TILE; t++) {
        const size_t row = (size_t)(t * 37 % (TILES * KV_TILE)) * (size_t)d * elem;
        x->tiles[t / KV_TILE].k[t % KV_TILE] = x->kv + row;
        x->tiles[t / KV_TILE].v[t % KV_TILE] = x->kv + all / 2 * elem + row;
    }
    for (int i = 0; i < 2; i++)
        x->rows[i] = (struct attn_rows){.dp = x->dp,
                                        .q = x->q,
                                        .ldq = (size_t)d + 16,
                                        .pos = x->pos,
                                        .m = km_calloc(MAX_ROWS, sizeof(float)),
                                        .l = km_calloc(MAX_ROWS * KERNELS_MAX_VL, sizeof(float)),
                                        .o = km_calloc((size_t)(MAX_ROWS * x->dp), sizeof(float))};
}

static void close_attention(struct attention *x)
{
    void *const all[] = {x->kv, x->q, x->kt, x->v, x->rows[0].m, x->rows[0].l, x->rows[0].o,
                         x->rows[1].m, x->rows[1].l, x->rows[1].o};
    for (size_t i = 0; i < sizeof all / sizeof *all; i++)
        km_free(all[i]);
}

static void start_rows(struct attention *x, int n, int last)
{
    for (int i = 0; i < n; i++) /* rows in rising order of their positions, as in a chunk; the first may see nothing */
        x->pos[i] = last - (n - 1 - i) * 3;
    for (int i = 0; i < 2; i++) {
        x->rows[i].n = n;
        for (int j = 0; j < n; j++)
            x->rows[i].m[j] = -1e30f;
        memset(x->rows[i].l, 0, (size_t)n * KERNELS_MAX_VL * sizeof(float));
        memset(x->rows[i].o, 0, (size_t)(n * x->dp) * sizeof(float));
    }
}

static void attend_both(struct attention *x)
{
    for (int t = 0; t < TILES; t++) {
        const struct kv_tile *now = &x->tiles[t], *next = &x->tiles[t + 1];
        x->k->pack_k(now, next, x->bf16, x->d, x->kt);
        x->k->pack_v(now, next, x->bf16, x->d, x->dp, x->v);
        x->k->attend(&x->rows[0], x->d, t * KV_TILE, x->kt, x->v);
        x->k->attend_in_place(&x->rows[1], x->d, t * KV_TILE, now, next, x->bf16);
    }
}

static void attention_in_place_gives_the_bits_of_the_panels(void **state)
{
    (void)state;
    const int dims[] = {2, 10, 34, 64, 66, 96, 128, MAX_D};
    const int lasts[] = {0, 5, KV_TILE - 1, KV_TILE, 2 * KV_TILE + 20, TILES * KV_TILE - 1};
    int cases = 0;
    for (const struct kernels *const *k = kernels_supported(); *k; k++)
        for (size_t i = 0; i < sizeof dims / sizeof *dims * 2; i++) {
            struct attention x;
            open_attention(&x, *k, dims[i / 2], i % 2);
            assert_in_range((*k)->mr, 1, MAX_ROWS);
            for (int n = 1; n <= (*k)->mr; n++)
                for (size_t l = 0; l < sizeof lasts / sizeof *lasts; l++, cases++) {
                    start_rows(&x, n, lasts[l]);
                    attend_both(&x);
                    const struct attn_rows *a = &x.rows[0], *b = &x.rows[1];
                    if (memcmp(a->o, b->o, (size_t)(n * x.dp) * sizeof(float)) ||
                        memcmp(a->m, b->m, (size_t)n * sizeof(float)) ||
                        memcmp(a->l, b->l, (size_t)n * KERNELS_MAX_VL * sizeof(float)))
                        fail_msg("%s, %s, head_dim %d, %d rows, last position %d: the bits differ", (*k)->name,
                                 x.bf16 ? "bfloat16" : "float32", x.d, n, lasts[l]);
                }
            close_attention(&x);
        }
    assert_true(cases > 0);
}

/* The score and output of one row, beside the definition in double precision: equal bits of both ways could be equally
 * wrong. */
static void attention_matches_the_definition(void **state)
{
    (void)state;
    for (const struct kernels *const *k = kernels_supported(); *k; k++) {
        struct attention x;
        double out[64] = {0}, sum = 0, l = 0;
        open_attention(&x, *k, 64, false);
        for (int i = 0; i < 64; i++)
            x.q[i] *= 0.1f;
        start_rows(&x, 1, TILES * KV_TILE - 30);
        attend_both(&x);
        for (int t = 0; t <= x.pos[0]; t++) {
            const float *kr = x.tiles[t / KV_TILE].k[t % KV_TILE], *vr = x.tiles[t / KV_TILE].v[t % KV_TILE];
            double score = 0;
            for (int i = 0; i < 64; i++)
                score += (double)x.q[i] * (double)kr[i];
            sum += exp2(score);
            for (int i = 0; i < 64; i++)
                out[i] += exp2(score) * (double)vr[i];
        }
        for (int i = 0; i < KERNELS_MAX_VL; i++)
            l += (double)x.rows[1].l[i];
        for (int i = 0; i < 64; i++)
            assert_true(fabs((double)x.rows[1].o[i] / l - out[i] / sum) < 1e-5);
        close_attention(&x);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(attention_in_place_gives_the_bits_of_the_panels),
        cmocka_unit_test(attention_matches_the_definition),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
