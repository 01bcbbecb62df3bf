/* The client's options: one row per field of `struct load_opts`, with the names of vLLM's clients, and the rules that
 * several options share. */
#include "harness/client/load_opts.h"

#include <inttypes.h>
#include <math.h>

static const struct km_option rows[] = {
    {.name = "num-clients", .letter = 'p', KM_FIELD(struct load_opts, num_clients), .arg = "N", .fallback = "1",
     .lo = 1, .hi = 65536, .help = "concurrent clients; each has one request in flight"},
    {.name = "max-active-conversations", .letter = 'k', KM_FIELD(struct load_opts, max_active_conversations),
     .arg = "N", .lo = 1, .hi = 1 << 20,
     .help = "conversations that take turns, over all clients (default: num-clients)"},
    {.name = "max-num-requests", .letter = 'n', KM_FIELD(struct load_opts, max_num_requests), .arg = "N", .lo = 1,
     .hi = 1 << 30, .help = "most requests to send (default: all)"},
    {.name = "max-turns", KM_FIELD(struct load_opts, max_turns), .arg = "N", .lo = 1, .hi = 1 << 20,
     .help = "most messages to use of a conversation, answers included (default: all)"},
    {.name = "early-stop", KM_FIELD(struct load_opts, early_stop), .fallback = "true",
     .help = "end the run when the first client has no conversation left"},
    {.name = "warmup-step", KM_FIELD(struct load_opts, warmup_step),
     .help = "warm-up before the measured phase: the first turn of every conversation, or every prompt once"},
    {.name = "conversation-sampling", KM_FIELD_CHOICE(struct load_opts, random_sampling),
     .values = "round_robin|random", .fallback = "round_robin",
     .help = "how a client chooses its next conversation"},
    {.name = "request-rate", KM_FIELD(struct load_opts, request_rate), .arg = "R", .lo = 0, .hi = INFINITY,
     .help = "requests per second: of prompts, arrivals in all; of conversations, each client pauses 1/R s on average "
             "(default: no pauses, all prompts at once)"},
    {.name = "burstiness", KM_FIELD(struct load_opts, burstiness), .arg = "B", .fallback = "1", .lo = 0.001, .hi = 1e6,
     .help = "shape of the gamma distribution of the gaps between arrivals; 1 is Poisson"},
    {.name = "max-concurrency", KM_FIELD(struct load_opts, max_concurrency), .arg = "N", .lo = 1, .hi = 65536,
     .help = "most prompts in flight (default: no limit)"},
    {.name = "limit-min-tokens", KM_FIELD(struct load_opts, limit_min_tokens), .arg = "N", .fallback = "0", .lo = -1,
     .hi = 1 << 24, .help = "min_tokens of each request; 0: as the workload says, -1: not sent"},
    {.name = "limit-max-tokens", KM_FIELD(struct load_opts, limit_max_tokens), .arg = "N", .fallback = "0", .lo = -1,
     .hi = 1 << 24, .help = "max_tokens of each request; 0: as the workload says, -1: not sent"},
    {.name = "ignore-eos", KM_FIELD(struct load_opts, ignore_eos),
     .help = "ask the server to generate past the end token (an extension of vLLM)"},
    {.name = "stream", KM_FIELD(struct load_opts, stream), .fallback = "true", .help = "stream the answers"},
    {.name = "endpoint-type", KM_FIELD_CHOICE(struct load_opts, endpoint), .values = "chat|completions",
     .fallback = "chat", .help = "the API to call"},
    {.name = "send-token-ids", KM_FIELD(struct load_opts, send_token_ids),
     .help = "send prompts as token ids (completions only)"},
    {.name = "fixed-history", KM_FIELD(struct load_opts, fixed_history),
     .help = "send the workload's answers as history, not the model's, so that two runs send the same bytes"},
    {.name = "enable-thinking", KM_FIELD_CHOICE(struct load_opts, thinking), .values = "auto|on|off",
     .fallback = "auto", .help = "Qwen3's thinking mode; auto leaves it to the server"},
    {.name = "request-timeout-sec", KM_FIELD(struct load_opts, timeout_s), .arg = "S", .lo = 0.001, .hi = 1e6,
     .help = "time limit of a request in seconds, never below 0.2 s per token asked for (default: 120, for prompts "
             "21600)"},
    {.name = "cache-salt", KM_FIELD(struct load_opts, cache_salt), .arg = "SALT",
     .help = "cache_salt of each request: requests of different salts share no cached KV"},
};

struct km_option_group load_option_group(struct load_opts *l)
{
    return KM_OPTION_GROUP("Load", rows, l);
}

struct load_opts load_defaults(void)
{
    struct load_opts l = {0};
    struct km_option_group group = load_option_group(&l);
    km_options_default(&group, 1);
    return l;
}

int load_check(const struct load_opts *l, struct km_err *err)
{
    struct load_opts copy = *l;
    struct km_option_group group = load_option_group(&copy);
    int rc = km_options_check(&group, 1, err);
    if (rc)
        return rc;
    if (l->send_token_ids && l->endpoint == LOAD_CHAT)
        return km_fail(err, KM_EINVAL, "--send-token-ids needs --endpoint-type completions; chat messages are text");
    if ((l->limit_min_tokens > 0) != (l->limit_max_tokens > 0))
        return km_fail(err, KM_EINVAL, "--limit-min-tokens and --limit-max-tokens go together; %s is missing",
                       l->limit_min_tokens > 0 ? "--limit-max-tokens" : "--limit-min-tokens");
    if (l->limit_max_tokens > 0 && l->limit_min_tokens > l->limit_max_tokens)
        return km_fail(err, KM_EINVAL,
                       "--limit-min-tokens is %" PRId64 ", over --limit-max-tokens, which is %" PRId64,
                       l->limit_min_tokens, l->limit_max_tokens);
    if (l->max_active_conversations && l->max_active_conversations < l->num_clients)
        return km_fail(err, KM_EINVAL,
                       "--max-active-conversations is %" PRId64 "; with %" PRId64
                       " clients it must be at least %" PRId64,
                       l->max_active_conversations, l->num_clients, l->num_clients);
    return 0;
}
