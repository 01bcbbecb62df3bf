/* Workload kinds: what a workload file can hold, and what the load client and the results must know about it.
 *
 * A kind is one source file that ends in a constant `struct wl_kind_ops`: two functions, which read a workload file
 * (`wl_spec`) and generate its requests (`wl_set`), and the traits that the rest of the program asks for. No code
 * outside workloads/ compares kinds. To add a kind, write such a file and add its line to WL_KINDS. */
#ifndef WL_KIND_H
#define WL_KIND_H

#include "base/err.h"
#include "tokenizer/tokenizer.h"

#include <stdbool.h>
#include <stddef.h>

/* The registry. A line is a kind's enumerator and the `wl_kind_ops` that its source file defines. */
/* clang-format off */
#define WL_KINDS(X)                                                                           \
    X(WL_MULTI_TURN, wl_multi_turn_kind)       /* conversations cut from a source text */     \
    X(WL_CONVERSATIONS, wl_conversations_kind) /* conversations that the file itself holds */ \
    X(WL_RANDOM, wl_random_kind)               /* single prompts of random tokens */
/* clang-format on */

#define WL_KIND_ENUMERATOR(kind, ops) kind,
enum wl_kind { WL_KINDS(WL_KIND_ENUMERATOR) };
#undef WL_KIND_ENUMERATOR

/* The vLLM tool whose definitions the `seed` profile applies: benchmark_serving_multi_turn.py or `vllm bench serve`. */
enum wl_seed_rules { WL_RULES_MULTI_TURN, WL_RULES_BENCH_SERVE };

struct wl_spec;
struct wl_set;
struct wl_gen_opts;

struct wl_kind_ops {
    const char *name;     /* "workload.kind" in run.json */
    const char *filetype; /* "filetype" of the workload file; NULL: the file is a JSON array (one kind at most) */

    /* Requests are sent at --request-rate (0: all at once), whether earlier ones are answered or not. Else the loop is
     * closed: each client waits for an answer before it sends its next request. */
    bool open_loop;
    /* Each request is one prompt, with a body as `vllm bench serve` sends it, and --num-prompts sets the size. Else
     * requests are turns of conversations, with bodies as benchmark_serving_multi_turn.py sends them, and
     * --num-conversations sets the size. */
    bool single_prompts;
    enum wl_seed_rules seed_rules;
    /* The kind cannot be generated without a tokenizer. Else a set that is made without one has token counts of -1. */
    bool needs_tokenizer;

    /* Checks s->json; sets s->n, the parameters in s->params (params_size zeroed bytes; they must not own memory), and
     * s->n_max and s->seed_max where the kind has a lower limit. */
    int (*read)(struct wl_spec *s, struct km_err *err);
    size_t params_size;

    /* Fills the conversations set->convs[0 .. set->n), which are zeroed. */
    int (*generate)(struct wl_set *set, const struct wl_spec *s, const struct wl_gen_opts *o, const struct tok *t,
                    struct km_err *err);
};

const struct wl_kind_ops *wl_kind_ops(enum wl_kind kind);

/* The kind that run.json calls `name`; WL_MULTI_TURN if `name` is NULL or no kind has that name. */
enum wl_kind wl_kind_named(const char *name);

/* Finds the kind of a workload file by its "filetype" (NULL: a JSON array). KM_EINVAL lists the accepted ones. */
int wl_kind_of_file(const char *filetype, enum wl_kind *out, struct km_err *err);

#endif
