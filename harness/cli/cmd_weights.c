/* kvmark weights: a preset's dummy weights as files that other engines load. */
#include "base/log.h"
#include "engine/weights_write.h"
#include "harness/cli/cmd.h"

#include <stdio.h>

struct weights_opts {
    const char *out;
    int64_t seed, shard_bytes;
    int threads;
};

static const struct km_option rows[] = {
    {.name = "output", .letter = 'o', KM_FIELD(struct weights_opts, out), .arg = "DIR",
     .help = "folder to create (required)"},
    {.name = "seed", KM_FIELD(struct weights_opts, seed), .arg = "N", .fallback = "0", .lo = 0, .hi = 9e15,
     .help = "seed of the weights, as in serve"},
    {.name = "shard-size", KM_FIELD_SIZE(struct weights_opts, shard_bytes), .arg = "SIZE",
     .fallback = "4GiB", .help = "largest size of one file"},
    {.name = "threads", KM_FIELD(struct weights_opts, threads), .arg = "N", .lo = 0, .hi = 1024,
     .help = "CPU threads (default: one per core)"},
};

static int groups(void *options, struct km_option_group *out)
{
    out[0] = KM_OPTION_GROUP("Weights", rows, options);
    return 1;
}

static int run(const struct cmd_call *call)
{
    struct km_err err;
    const struct weights_opts *o = call->options;
    struct mdl *m = NULL;
    int rc = 0;
    if (call->args.n != 1)
        rc = km_fail(&err, KM_EINVAL, "weights takes one model, a preset or a folder with config.json, not %d",
                     call->args.n);
    else if (!o->out)
        rc = km_fail(&err, KM_EINVAL, "--output is missing; give the name of the folder to create");
    if (rc)
        return cmd_error(&err, CMD_USAGE);
    rc = mdl_open(&m, call->args.v[0], true, (uint64_t)o->seed, &err);
    if (!rc)
        rc = wts_write(m, o->out, o->shard_bytes, o->threads, &err);
    if (!rc)
        printf("%s: %s, %.3f billion bfloat16 parameters from seed %lld\n", o->out, mdl_name(m),
               (double)mdl_params(m) / 1e9, (long long)o->seed);
    mdl_free(m);
    return rc ? cmd_error(&err, CMD_FAILED) : CMD_OK;
}

const struct cmd cmd_weights = {
    .name = "weights",
    .usage = "MODEL -o DIR [--seed N]",
    .summary = "Write a preset's dummy weights as a Hugging Face folder, for another engine to load",
    .text = "MODEL is a preset, or a folder with a config.json. The weights are those that serve --model MODEL "
            "--load-format dummy --seed N computes with, bit for bit, on any device. The folder has no tokenizer, so "
            "send prompts as token ids.",
    .options_size = sizeof(struct weights_opts),
    .groups = groups,
    .run = run,
};
