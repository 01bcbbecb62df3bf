/* The figures of a run: from a trace to a hz_summary, and from there to run.json and back.
 *
 * Only requests that succeeded are in a figure. A figure that cannot be computed is NAN here, and null with a reason in
 * files; it is never 0. Definitions, where the profiles or the kinds of workload differ:
 *
 *            seed, conversations               seed, prompts               strict
 *            (benchmark_serving_multi_turn.py) (vllm bench serve)
 *  TTFT      start to first token, less the    start to first event with   start to first event with a
 *            TPOT of all but one token in      choices, role-only or not   token
 *            the first event
 *  E2E       start to [DONE]                   start to last event         start to last event with a token
 *  TPOT      (E2E - first event) / (output -   (E2E - TTFT) / (output -    (last - first token event) /
 *            tokens of the first event); 0     1); none with one token     (output - tokens of the first
 *            with one token, and averaged in                               event); none with one token
 *  ITL       between events with choices       the same                    between token events; an event
 *                                                                          of k tokens is k intervals
 *  input     client's tokenizer                the data set's count        server's usage
 *  output    client's tokenizer                server's usage              server's usage
 *  duration  first start to the end of the     the client's clock around   first start to last token
 *            request that started last         the whole run
 *
 * For both profiles:
 *  response TTFT  TTFT from the planned send: includes the time that a request waited for the client
 *  request_rate   requests / duration
 *  input_tps      input tokens / duration; output_tps and total_tps likewise
 *  prompt_tokens  sum of the server's prompt_tokens (the client's count where it has none); output_tokens likewise
 *  cached_tokens  sum of the server's prompt_tokens_details.cached_tokens
 *  hit_rate       cached_tokens / prompt tokens by the server's count
 *  std            divides by n - 1 (pandas); seed, prompts: by n (numpy) */
#ifndef HZ_SUMMARY_H
#define HZ_SUMMARY_H

#include "base/err.h"
#include "base/json.h"
#include "harness/run/metric.h"

void hz_summarize(const struct hz_trace *t, enum wl_kind kind, enum hz_profile profile, struct hz_summary *out);

/* The "summary" object of run.json (cJSON_Delete): NAN is null, and "reasons" says why. */
cJSON *hz_summary_json(const struct hz_summary *s);
/* Figures that the object does not have are NAN. */
int hz_summary_from_json(const cJSON *v, struct hz_summary *out, struct km_err *err);

#endif
