/* How a load is sent: closed loop (simulated clients with conversations) or open loop (prompts at a rate).
 *
 * Options have the names and the meaning of vLLM's clients: benchmark_serving_multi_turn.py for conversations,
 * `vllm bench serve` for prompts. */
#ifndef LOAD_OPTS_H
#define LOAD_OPTS_H

#include "base/err.h"
#include "base/option.h"

#include <stdbool.h>
#include <stdint.h>

enum load_endpoint { LOAD_CHAT, LOAD_COMPLETIONS };
enum load_thinking { LOAD_THINKING_AUTO, LOAD_THINKING_ON, LOAD_THINKING_OFF };

struct load_opts {
    /* Closed loop: each client has one request in flight. */
    int64_t num_clients;              /* default 1 */
    int64_t max_active_conversations; /* open conversations, divided among the clients, rounded down; 0: num_clients */
    int64_t max_turns;                /* messages used of a conversation; 0: all */
    bool early_stop;                  /* the run ends when the first client runs out of work; default true */
    bool random_sampling;             /* a client picks its next conversation at random; else round robin */

    /* Open loop: each prompt has a send time of its own. */
    double burstiness;       /* gamma shape of the gaps between arrivals; 1 (default): Poisson */
    int64_t max_concurrency; /* requests in flight; 0: no limit */

    /* Both */
    double request_rate; /* prompts: arrivals per second; conversations: 1/mean pause of a client; 0 or inf: none */
    int64_t max_num_requests; /* 0: all */
    bool warmup_step;         /* before the clock starts: the first turn of every conversation, or every prompt once */
    double timeout_s;         /* of a request; at least 0.2 s per max_tokens; 0: conversations 120 s, prompts 6 h */
    uint64_t seed;            /* of pauses, arrivals and random sampling */

    /* The request body */
    enum load_endpoint endpoint;                /* default chat */
    bool stream;                                /* default true */
    int64_t limit_min_tokens, limit_max_tokens; /* 0: the workload's; < 0: not sent */
    bool ignore_eos;
    bool send_token_ids;         /* completions only: prompts as token ids; asks for the answer's ids too */
    bool fixed_history;          /* prompts hold the workload's answers, so that two runs send the same bytes */
    enum load_thinking thinking; /* chat_template_kwargs.enable_thinking; auto: not sent */
    const char *cache_salt;      /* NULL: none */
};
struct load_opts load_defaults(void);

/* The options as a table for command lines, without the seed, which other parts of a run share. */
struct km_option_group load_option_group(struct load_opts *l);
/* Checks what does not depend on the workload: ranges, and options that need or exclude each other. */
int load_check(const struct load_opts *l, struct km_err *err);

#endif
