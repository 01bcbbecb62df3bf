/* Workloads: the requests that a server is measured with, generated from a JSON file and a seed before a run starts.
 *
 * A `wl_spec` is a parsed workload file. A `wl_set` is what the file generates: conversations, each a list of user
 * messages with the number of output tokens to request for each. A single prompt is a conversation of one user
 * message. The caller owns both. The same file, seed, source text and tokenizer always give the same set, byte for
 * byte; the set's SHA-256 identifies it.
 *
 * wl_spec_read accepts these files (kind.h lists the kinds):
 * - vLLM's generate_multi_turn.json, unchanged: "filetype" is "generate_conversations".
 * - The data set of `vllm bench serve --dataset-name random`: "filetype" is "random", with "num_prompts", "input_len",
 *   "output_len", "range_ratio" and "prefix_len". "generator" names vLLM's version of it: "v0.10", "v0.11" (default;
 *   the write-up's) or "new". "repeat_one": true makes all num_prompts requests send the first prompt.
 * - A JSON array of finished conversations in the format that vLLM's generator writes. */
#ifndef WL_WORKLOAD_H
#define WL_WORKLOAD_H

#include "base/buf.h"
#include "base/err.h"
#include "base/option.h"
#include "tokenizer/tokenizer.h"
#include "workloads/kind.h"

#include <stdbool.h>
#include <stdint.h>

/* One message. The answers of a set are placeholders: the load client sends the server's own answers as history, unless
 * --fixed-history is set. */
struct wl_msg {
    bool assistant; /* an answer; else a user message */
    char *text;     /* [len + 1], ends in NUL */
    size_t len;     /* bytes */
    int n_tokens;   /* without the chat template; of an answer: output tokens to request; -1: not counted */
    int32_t *ids;   /* [n_tokens] token ids of text, for random prompts only; else NULL */
};

struct wl_conv {
    char *id;            /* CONV_ID_7 or PROMPT_7, or as the file says; unique in the set */
    struct wl_msg *msgs; /* [n] user messages and answers alternate, user first */
    int n;               /* even */
};

struct wl_set {
    char *name; /* base name of the workload file without .json */
    enum wl_kind kind;
    struct wl_conv *convs; /* [n] */
    int n;
    char sha256[65]; /* in hex, over ids, token counts and texts (set.c) */
    char text[128];  /* source text: "pg1184.txt", "built-in text", or "" for a kind that needs none */
    int n_requests;  /* user messages of all conversations */
};

/* Statistics of one column of numbers; NAN where n is too small. */
struct wl_column_stats {
    int n;
    double mean, std, min, p25, p50, p75, p90, p99, max; /* std is the sample's (n - 1), as in vLLM's own table */
};

struct wl_stats {
    struct wl_column_stats messages;      /* per conversation */
    struct wl_column_stats first_prompt;  /* tokens of each conversation's first user message */
    struct wl_column_stats user_tokens;   /* tokens of each user message */
    struct wl_column_stats answer_tokens; /* output tokens to request for each user message */
    struct wl_column_stats request_input; /* tokens of each request: the user message and all messages before it */
};

struct wl_spec;

/* Reads and checks a workload file. KM_EINVAL: a value in it is not valid. */
int wl_spec_read(struct wl_spec **out, const char *path, struct km_err *err);
void wl_spec_free(struct wl_spec *s);
enum wl_kind wl_spec_kind(const struct wl_spec *s);

/* The source text: the workload's text_files, the built-in text (builtin_text.h), or the files if they all exist and
 * else the built-in text. */
enum wl_text_source { WL_TEXT_FILE, WL_TEXT_BUILTIN, WL_TEXT_AUTO };

/* A zeroed struct holds the defaults; the rows of options.c have the ranges. Text files are searched in text_dir (if
 * not NULL), the workload file's folder, "." and "data", in this order. */
struct wl_gen_opts {
    uint64_t seed;
    const char *text_dir;
    enum wl_text_source text;
    int num_conversations; /* 0: as many as the file says; not for kinds with single_prompts */
    int num_prompts;       /* 0: as many as the file says; only for kinds with single_prompts */
};

/* The options as a table for command lines, without the seed, which other parts of a run use too. */
struct km_option_group wl_option_group(struct wl_gen_opts *o);

/* Generates the set. t may be NULL for a kind without needs_tokenizer (kind.h). Errors: KM_ENOENT for a missing text
 * file, KM_EINVAL for a text that is too short or an option that does not suit the file, KM_ELIMIT. */
int wl_generate(struct wl_set **out, const struct wl_spec *s, const struct wl_gen_opts *o, const struct tok *t,
                struct km_err *err);
void wl_set_free(struct wl_set *s);

/* Writes the set as vLLM's generator does, indented by 4: [{"id":..., "messages":[{"role":..., "content":...}]}]. */
int wl_set_write(const struct wl_set *s, const char *path, struct km_err *err);

/* Computes the statistics of the messages that are counted. Without memory, every column is empty. */
void wl_statistics(const struct wl_set *s, struct wl_stats *out);
/* Appends the statistics as an aligned table for a terminal. */
void wl_statistics_print(const struct wl_set *s, struct km_buf *out);

#endif
