/* The figures of a run: computed from a trace into a hz_summary, written to run.json, and read back.
 *
 * Figures cover the requests that succeeded. A figure that cannot be computed is NAN here and null with a reason in
 * run.json; it is never 0. The definitions use these terms:
 *   start        the request is passed to libcurl
 *   event        an SSE event, at its arrival time (harness/client/stamp.h)
 *   token event  an event with content, reasoning, a tool call or token ids
 *   T            from the start to the first token event
 *   output       number of output tokens of the request
 *   k            number of tokens in the first token event
 *
 * seed, conversations: as in vLLM's benchmark_serving_multi_turn.py
 *   E2E       from the start to [DONE]
 *   TPOT      (E2E - T) / (output - k); 0, and part of the statistic, if output is 1 or k
 *   TTFT      T - (k - 1) TPOT, but at least 0.1 ms; T if k is 0 or 1
 *   ITL       between two successive events with choices (the script has no ITL)
 *   input     tokens of all messages of the request, by the client's tokenizer
 *   output    tokens of the answer's content, by the client's tokenizer; the server's count if there is no content
 *   k         tokens of the first token event's content, by the client's tokenizer
 *   duration  from the first start to the end of the request that started last
 *   The script ignores reasoning. Here an event with reasoning ends T.
 *
 * seed, prompts: as in `vllm bench serve`
 *   TTFT      from the start to the first event with choices, even if the event has only a role
 *   E2E       from the start to the last event before [DONE]; on /v1/completions, to the last event with choices
 *   TPOT      (E2E - TTFT) / (output - 1); none if output is 1, or if the response was not streamed
 *   ITL       between two successive events with choices
 *   input     tokens of the prompt, as the data set counts them
 *   output    the server's usage.completion_tokens
 *   duration  of the measured phase, by the client's clock
 *
 * strict: kvmark's own definitions
 *   TTFT      T
 *   E2E       from the start to the last token event
 *   TPOT      (E2E - TTFT) / (output - k); none if output is k
 *   ITL       between two successive token events; an event of n tokens counts as n intervals, each an n-th of the time
 *   input     the server's usage.prompt_tokens, chat template included
 *   output    the server's usage.completion_tokens
 *   k         length of the event's token_ids or logprobs, else 1; instead of 1, the client's count if it is larger
 *   duration  from the first start to the last token event of all requests
 *
 * Every profile:
 *   response TTFT  TTFT from the planned send: adds the wait for the client and for a concurrency limit
 *   request_rate   number of requests that succeeded / duration
 *   input_tps      sum of their input / duration; output_tps and total_tps likewise
 *   prompt_tokens  sum of the server's usage.prompt_tokens, or of the client's counts where the server has none
 *   output_tokens  likewise, from usage.completion_tokens
 *   cached_tokens  sum of the server's usage.prompt_tokens_details.cached_tokens
 *   hit_rate       cached_tokens / sum of the server's usage.prompt_tokens
 *   percentiles    interpolated linearly (numpy.percentile, pandas); p99 from 100 values on
 *   std            with the divisor n - 1 (pandas); seed, prompts: n (numpy.std)
 * If one side (client, server) has no count for input, output or k, the other side's count replaces it. */
#ifndef HZ_SUMMARY_H
#define HZ_SUMMARY_H

#include "base/err.h"
#include "base/json.h"
#include "harness/run/metric.h"

/* Computes every figure and statistic. Without memory, all of them are NAN. */
void hz_summarize(const struct hz_trace *t, enum wl_kind kind, enum hz_profile profile, struct hz_summary *out);

/* Builds the "summary" object of run.json (cJSON_Delete). NAN becomes null, and "reasons" explains each null. */
cJSON *hz_summary_json(const struct hz_summary *s);
/* Reads such an object. Figures that it lacks are NAN. KM_EINVAL: it is not a summary. */
int hz_summary_from_json(const cJSON *v, struct hz_summary *out, struct km_err *err);

#endif
