/* Workloads: what is asked of a server, made from a JSON file and a seed, before any clock runs.
 *
 * A `wl_spec` is a parsed workload file; a `wl_set` is what it generates: conversations, each a list of
 * user messages with the number of tokens wanted in answer. A single prompt is a conversation of one
 * turn. The same file, seed, text and tokenizer give the same set, byte for byte, and its SHA-256 says so.
 *
 * Files accepted (wl_spec_read): vLLM's generate_multi_turn.json ("filetype": "generate_conversations"),
 * unchanged; a JSON array of ready conversations in its format; and ours, "filetype": "random" with
 * "input_len", "output_len", "num_prompts", "range_ratio", "prefix_len" (the data set of `vllm bench serve
 * --dataset-name random`), "generator": "v0.10", "v0.11" (default, the write-up's) or "new", and "repeat_one":
 * true for num_prompts requests that all share the first prompt. */
#ifndef WL_WORKLOAD_H
#define WL_WORKLOAD_H

#include "base/buf.h"
#include "base/err.h"
#include "tokenizer/tokenizer.h"
#include "workloads/kind.h"

#include <stdbool.h>
#include <stdint.h>

struct wl_msg {
    bool assistant;
    char *text;      /* assistant: the placeholder answer, whose length is what matters */
    size_t len;
    int n_tokens;    /* by the tokenizer, without the chat template; assistant: the tokens to ask for */
    int32_t *ids;    /* random prompts only: the token ids behind text, [n_tokens]; else NULL */
};

struct wl_conv {
    char *id;        /* CONV_ID_7 */
    struct wl_msg *msgs; /* [n], user first, alternating; n is even */
    int n;
};

struct wl_set {
    char *name;      /* the file's base name without .json */
    enum wl_kind kind;
    struct wl_conv *convs; /* [n] */
    int n;
    char sha256[65]; /* over ids, texts and token counts */
    char text[128];  /* where the words came from: "pg1184.txt", "built-in text", "" */
    int n_requests;  /* user messages in all */
};

/* One column of the statistics. */
struct wl_column_stats {
    int n;
    double mean, std, min, p25, p50, p75, p90, p99, max;
};
struct wl_stats {
    struct wl_column_stats turns, first_prompt, user_tokens, answer_tokens, request_input; /* request_input: history and message, a request */
    double mean_request_input, mean_request_output;
};

struct wl_spec;

int wl_spec_read(struct wl_spec **out, const char *path, struct km_err *err);
void wl_spec_free(struct wl_spec *s);
enum wl_kind wl_spec_kind(const struct wl_spec *s);

struct wl_gen_opts {
    uint64_t seed;           /* 0 */
    const char *text_dir;    /* where text_files are looked for first; NULL: beside the workload file, then "." and "data" */
    bool builtin_text;       /* no text file needed: words from a seeded grammar, labelled as such */
    int num_conversations;   /* >0: instead of the file's (or num_prompts) */
};

/* Generates. Errors: a text too short (says how many tokens are there and how many are needed), a missing text
 * file (says how to get it), lengths the tokenizer cannot make. t is needed except for ready conversations,
 * where NULL leaves n_tokens at -1. */
int wl_generate(struct wl_set **out, const struct wl_spec *s, const struct wl_gen_opts *o, const struct tok *t,
                struct km_err *err);
void wl_set_free(struct wl_set *s);

/* vLLM's conversation array: [{"id":..., "messages":[{"role":..., "content":...}]}], indent 4. */
int wl_set_write(const struct wl_set *s, const char *path, struct km_err *err);

void wl_statistics(const struct wl_set *s, struct wl_stats *out);
/* The statistics as an aligned table for a terminal. */
void wl_statistics_print(const struct wl_set *s, struct km_buf *out);

#endif
