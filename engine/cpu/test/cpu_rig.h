/* What the tests of the CPU backend share: a model, an open rig, and steps that must succeed. */
#ifndef CPU_TEST_RIG_H
#define CPU_TEST_RIG_H

#include "base/test/test.h"

#include "engine/test/backend_rig.h"

#define TINY KVM_SOURCE_DIR "/models/qwen3-tiny-lm"

static inline struct mdl *open_model(const char *dir)
{
    struct mdl *m;
    struct km_err err = {0};
    if (mdl_open(&m, dir, false, 1, &err))
        fail_msg("%s", err.msg);
    return m;
}

static inline struct be_opts rig_opts(enum km_dtype dtype)
{
    return (struct be_opts){.dtype = dtype,
                            .block_size = 16,
                            .n_pages = 512,
                            .max_tokens = 2048,
                            .max_reqs = 32,
                            .max_model_len = 8192,
                            .n_threads = 2};
}

/* Pages are assigned in order unless a test sets another stride. */
static inline void open_rig(struct rig *r, const struct mdl *m, struct be_opts o)
{
    struct km_err err = {0};
    if (rig_open(r, &be_cpu, &o, m, &err))
        fail_msg("%s", err.msg);
    r->stride = 1;
}

static inline void open_seq(struct rig *r, struct rig_seq *s, int max_len)
{
    struct km_err err = {0};
    if (rig_seq_open(r, s, max_len, &err))
        fail_msg("%s", err.msg);
}

static inline void run_step(struct rig *r, const struct rig_part *parts, int n, struct smp_result *res)
{
    struct km_err err = {0};
    if (rig_step(r, parts, n, res, &err))
        fail_msg("%s", err.msg);
}

static inline struct smp_result prefill(struct rig *r, struct rig_seq *s, const int32_t *tokens, int n, int chunk)
{
    struct smp_result res = {0};
    struct km_err err = {0};
    if (rig_prefill(r, s, tokens, n, chunk, &res, &err))
        fail_msg("%s", err.msg);
    return res;
}

/* Random token ids, the same in every call. */
static inline void random_tokens(int32_t *t, int n, int vocab)
{
    uint32_t x = 12345;
    for (int i = 0; i < n; i++) {
        x = x * 1664525u + 1013904223u;
        t[i] = (int32_t)((x >> 8) % (uint32_t)vocab);
    }
}

#endif
