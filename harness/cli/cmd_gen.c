/* kvmark gen: generates the requests of a workload without sending them. */
#include "base/buf.h"
#include "base/log.h"
#include "harness/cli/cmd.h"
#include "harness/cli/generate.h"

#include <stdio.h>

struct gen_opts {
    struct wl_gen_opts workload;
    const char *tokenizer, *out;
};

static const struct km_option rows[] = {
    {.name = "tokenizer",
     .letter = 't',
     KM_FIELD(struct gen_opts, tokenizer),
     .arg = "DIR",
     .help = "folder of a tokenizer.json, or the file itself, to count tokens with (required)"},
    {.name = "seed",
     KM_FIELD(struct gen_opts, workload.seed),
     .arg = "N",
     .fallback = "0",
     .lo = 0,
     .hi = 4294967295.0,
     .help = "seed of the random numbers"},
    {.name = "output",
     .letter = 'o',
     KM_FIELD(struct gen_opts, out),
     .arg = "FILE.json",
     .help = "file to write the conversations to, in vLLM's format (default: only the statistics)"},
};

static int groups(void *options, struct km_option_group *out)
{
    struct gen_opts *o = options;
    out[0] = KM_OPTION_GROUP("Generation", rows, o);
    out[1] = wl_option_group(&o->workload);
    return 2;
}

static int run(const struct cmd_call *call)
{
    struct km_err err;
    struct gen_opts *o = call->options;
    struct tok *tok = NULL;
    struct wl_set *set = NULL;
    int rc = 0;
    if (call->args.n != 1)
        rc = km_fail(&err, KM_EINVAL, "gen takes one workload file, not %d; see kvmark help gen", call->args.n);
    else if (!o->tokenizer)
        rc = km_fail(&err, KM_EINVAL, "--tokenizer is missing; give a model folder or a tokenizer.json");
    if (rc)
        return cmd_error(&err, CMD_USAGE);
    rc = tok_open(&tok, o->tokenizer, &err);
    if (!rc)
        rc = generate_workload(&set, call->args.v[0], &o->workload, tok, &err);
    if (!rc && o->out)
        rc = wl_set_write(set, o->out, &err);
    if (!rc) {
        struct km_buf text = {0};
        wl_statistics_print(set, &text);
        fputs(km_buf_str(&text), stdout);
        km_buf_free(&text);
    }
    wl_set_free(set);
    tok_free(tok);
    return rc ? cmd_error(&err, CMD_FAILED) : CMD_OK;
}

const struct cmd cmd_gen = {
    .name = "gen",
    .usage = "WORKLOAD.json --tokenizer DIR [-o FILE.json] [OPTIONS]",
    .summary = "Generate the conversations or prompts of a workload, and print their statistics",
    .text =
        "WORKLOAD.json may be vLLM's generate_multi_turn.json, unchanged. The same seed, text and tokenizer give the "
        "conversations that vLLM's generator makes.",
    .options_size = sizeof(struct gen_opts),
    .groups = groups,
    .run = run,
};
