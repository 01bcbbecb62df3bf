/* kvmark gen. */
#include "base/log.h"
#include "base/mem.h"
#include "harness/cli/cmd.h"
#include "harness/cli/wlflags.h"

#include <stdio.h>

struct gen_opts {
    struct wlf_opts w;
    const char *out;
};

static int gen_flags(struct gen_opts *o, struct km_flag *out, int max)
{
    int n = wlf_flags(&o->w, out, max);
    const struct km_flag mine[] = {
        {"tokenizer", 't', KM_STR, &o->w.tokenizer, "DIR", "folder or tokenizer.json to count tokens with (needed)", 0,
         0},
        {"seed", 0, KM_INT, &o->w.seed, "N", "of the random draws (default 0)", 0, 4294967295.0},
        {"output", 'o', KM_STR, &o->out, "FILE.json", "write the conversations here, in vLLM's format", 0, 0},
    };
    for (int i = 0; i < 3 && n < max; i++)
        out[n++] = mine[i];
    return n;
}

static struct gen_opts shown;

static int flags(struct km_flag *out, int max)
{
    shown = (struct gen_opts){.w = wlf_defaults()};
    return gen_flags(&shown, out, max);
}

static int run(int argc, char **argv)
{
    struct gen_opts o = {.w = wlf_defaults()};
    struct km_flag table[32];
    struct km_strs pos = {0};
    struct km_err err = {0};
    struct tok *tok = NULL;
    struct wl_set *set = NULL;
    bool help;
    int rc = km_args_parse(table, gen_flags(&o, table, 32), argc, argv, &pos, &help, &err);
    if (!rc && pos.n != 1)
        rc = km_fail(&err, KM_EINVAL, "gen takes one workload file, not %d; see kvmark help gen", pos.n);
    if (!rc && !o.w.tokenizer)
        rc = km_fail(&err, KM_EINVAL, "--tokenizer is missing; give a model folder or a tokenizer.json");
    int status = rc ? CMD_USAGE : CMD_FAILED;
    if (!rc)
        rc = tok_open(&tok, o.w.tokenizer, &err);
    if (!rc)
        rc = wlf_generate(&o.w, pos.v[0], tok, &set, &err);
    if (!rc && o.out)
        rc = wl_set_write(set, o.out, &err);
    if (!rc) {
        struct km_buf text = {0};
        wl_statistics_print(set, &text);
        fputs(km_buf_str(&text), stdout);
        km_buf_free(&text);
        status = CMD_OK;
    } else {
        km_log(KM_LOG_ERROR, "%s", err.msg);
    }
    wl_set_free(set);
    tok_free(tok);
    km_free(pos.v);
    return status;
}

const struct cmd cmd_gen = {
    .name = "gen",
    .usage = "WORKLOAD.json --tokenizer DIR [--seed N] [-o conversations.json]",
    .summary = "Make the conversations or prompts of a workload, and print their statistics",
    .text = "WORKLOAD.json may be vLLM's generate_multi_turn.json, unchanged: the same seed, text and tokenizer give "
            "the same\n"
            "conversations, draw for draw.",
    .run = run,
    .flags = flags,
};
