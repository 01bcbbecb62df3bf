/* Client flags. */
#include "harness/cli/loadflags.h"

#include <math.h>
#include <string.h>

struct lf_opts lf_defaults(void)
{
    return (struct lf_opts){
        .load = load_defaults(), .sampling = "round_robin", .endpoint = "chat", .thinking = "auto"};
}

int lf_flags(struct lf_opts *o, struct km_flag *out, int max)
{
    struct load *l = &o->load;
    const struct km_flag table[] = {
        {"num-clients", 'p', KM_INT, &l->num_clients, "N", "clients, one request in flight each (default 1)", 1, 65536},
        {"max-active-conversations", 'k', KM_INT, &l->max_active_conversations, "N",
         "conversations in turn, over all clients (default: num-clients)", 1, 1 << 20},
        {"max-num-requests", 'n', KM_INT, &l->max_num_requests, "N", "requests in all (default: every one)", 1,
         1 << 30},
        {"max-turns", 0, KM_INT, &l->max_turns, "N", "messages of a conversation to use (default: all)", 1, 1 << 20},
        {"early-stop", 0, KM_BOOL, &l->early_stop, NULL,
         "end when the first client runs out of work (default on; --no-early-stop)", 0, 0},
        {"warmup-step", 0, KM_BOOL, &l->warmup_step, NULL, "first turn of every conversation before the clock starts",
         0, 0},
        {"conversation-sampling", 0, KM_STR, &o->sampling, "round_robin|random",
         "which active conversation is next (default round_robin)", 0, 0},
        {"request-rate", 0, KM_NUM, &l->request_rate, "R",
         "per second; conversations: pause per client, prompts: arrivals (default: no pause, all at once)", 0,
         INFINITY},
        {"burstiness", 0, KM_NUM, &l->burstiness, "B", "gamma shape of the arrivals, 1 is Poisson (default 1)", 0.001,
         1e6},
        {"max-concurrency", 0, KM_INT, &l->max_concurrency, "N", "prompts in flight (default: no cap)", 1, 65536},
        {"limit-min-tokens", 0, KM_INT, &l->limit_min_tokens, "N",
         "min_tokens: 0 as the workload says, <0 not sent (default 0)", -1, 1 << 24},
        {"limit-max-tokens", 0, KM_INT, &l->limit_max_tokens, "N", "max_tokens, likewise (default 0)", -1, 1 << 24},
        {"ignore-eos", 0, KM_BOOL, &l->ignore_eos, NULL, "generate past the end token (vLLM's extension)", 0, 0},
        {"stream", 0, KM_BOOL, &l->stream, NULL, "stream the answers (default on; --no-stream)", 0, 0},
        {"endpoint-type", 0, KM_STR, &o->endpoint, "chat|completions", "which API to call (default chat)", 0, 0},
        {"send-token-ids", 0, KM_BOOL, &l->send_token_ids, NULL, "prompts as token ids (completions only)", 0, 0},
        {"fixed-history", 0, KM_BOOL, &l->fixed_history, NULL,
         "feed back the workload's answers, so that two runs send the same bytes", 0, 0},
        {"enable-thinking", 0, KM_STR, &o->thinking, "auto|on|off",
         "Qwen3's thinking mode; auto leaves it to the server (default auto)", 0, 0},
        {"request-timeout-sec", 0, KM_NUM, &l->timeout_s, "S", "longest a request may take (default 120)", 0.001, 1e6},
        {"cache-salt", 0, KM_STR, &l->cache_salt, "SALT", "cache_salt of every request", 0, 0},
    };
    int n = (int)(sizeof table / sizeof *table);
    for (int i = 0; i < n && i < max; i++)
        out[i] = table[i];
    return n < max ? n : max;
}

int lf_resolve(struct lf_opts *o, struct km_err *err)
{
    struct load *l = &o->load;
    l->random_sampling = !strcmp(o->sampling, "random");
    l->endpoint = !strcmp(o->endpoint, "chat") ? LOAD_CHAT : LOAD_COMPLETIONS;
    l->enable_thinking_set = strcmp(o->thinking, "auto") != 0;
    l->enable_thinking = !strcmp(o->thinking, "on");
    if (l->send_token_ids && l->endpoint == LOAD_CHAT)
        return km_fail(err, KM_EINVAL, "--send-token-ids needs --endpoint-type completions; chat messages are text");
    if ((l->limit_min_tokens > 0) != (l->limit_max_tokens > 0))
        return km_fail(err, KM_EINVAL, "--limit-min-tokens and --limit-max-tokens go together; %s is missing",
                       l->limit_min_tokens > 0 ? "--limit-max-tokens" : "--limit-min-tokens");
    if (l->limit_min_tokens > l->limit_max_tokens && l->limit_max_tokens > 0)
        return km_fail(err, KM_EINVAL, "--limit-min-tokens is %d, over --limit-max-tokens, which is %d",
                       (int)l->limit_min_tokens, (int)l->limit_max_tokens);
    if (l->max_active_conversations && l->max_active_conversations < l->num_clients)
        return km_fail(err, KM_EINVAL, "--max-active-conversations is %d; with %d clients it must be at least %d",
                       (int)l->max_active_conversations, (int)l->num_clients, (int)l->num_clients);
    return 0;
}
