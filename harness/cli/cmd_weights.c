/* kvmark weights: the weights this engine runs, for any other engine to load. */
#include "base/log.h"
#include "base/mem.h"
#include "engine/weights_write.h"
#include "harness/cli/cmd.h"

#include <stdio.h>

struct weights_opts {
    const char *out;
    int64_t seed, shard_bytes, threads;
};

static int weights_flags(struct weights_opts *o, struct km_flag *out, int max)
{
    const struct km_flag table[] = {
        {"output", 'o', KM_STR, &o->out, "DIR", "the new folder (needed)", 0, 0},
        {"seed", 0, KM_INT, &o->seed, "N", "of the dummy weights, as in serve (default 0)", 0, 9e15},
        {"shard-size", 0, KM_SIZE, &o->shard_bytes, "SIZE", "most bytes of one file (default 4GiB)", 0, 0},
        {"threads", 0, KM_INT, &o->threads, "N", "threads (default: one a core)", 0, 1024},
    };
    int n = (int)(sizeof table / sizeof *table);
    for (int i = 0; i < n && i < max; i++)
        out[i] = table[i];
    return n < max ? n : max;
}

static struct weights_opts shown;

static int flags(struct km_flag *out, int max)
{
    return weights_flags(&shown, out, max);
}

static int run(int argc, char **argv)
{
    struct weights_opts o = {0};
    struct km_flag table[4];
    struct km_strs pos = {0};
    struct km_err err = {0};
    struct mdl *m = NULL;
    bool help;
    int rc = km_args_parse(table, weights_flags(&o, table, 4), argc, argv, &pos, &help, &err);
    if (!rc && pos.n != 1)
        rc = km_fail(&err, KM_EINVAL, "weights takes one model, a preset or a folder with config.json, not %d",
                     pos.n);
    if (!rc && !o.out)
        rc = km_fail(&err, KM_EINVAL, "-o is missing; give the name of the folder to make");
    int status = rc ? CMD_USAGE : CMD_FAILED;
    if (!rc)
        rc = mdl_open(&m, pos.v[0], true, (uint64_t)o.seed, &err);
    if (!rc)
        rc = wts_write(m, o.out, o.shard_bytes, (int)o.threads, &err);
    if (!rc) {
        printf("%s: %s, %.3f billion bf16 parameters of seed %lld\n", o.out, mdl_name(m),
               (double)mdl_params(m) / 1e9, (long long)o.seed);
        status = CMD_OK;
    } else {
        km_log(KM_LOG_ERROR, "%s", err.msg);
    }
    mdl_free(m);
    km_free(pos.v);
    return status;
}

const struct cmd cmd_weights = {
    .name = "weights",
    .usage = "MODEL -o DIR [--seed N]",
    .summary = "Write a preset's dummy weights as a Hugging Face folder, for another engine to load",
    .text = "The numbers are those that serve --model PRESET --seed N computes with, bit for bit, on any device. "
            "MODEL may also be a\n"
            "folder with a config.json. There is no tokenizer in the folder: send token ids.",
    .run = run,
    .flags = flags,
};
