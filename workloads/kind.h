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
#define WL_KINDS(X)                                                                                                    \
    X(WL_MULTI_TURN, wl_multi_turn_kind)       /* conversations generated from a text */                               \
    X(WL_CONVERSATIONS, wl_conversations_kind) /* conversations that the file holds itself */                          \
    X(WL_RANDOM, wl_random_kind)               /* single prompts of random tokens */

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
    const char *filetype; /* "filetype" in a workload file; NULL: the file is a JSON array (one kind at most) */

    /* Traits. */
    bool open_loop;      /* requests arrive at a rate, whatever the server does; else clients wait for each answer */
    bool single_prompts; /* a request is one prompt with the body of `vllm bench serve`, and --num-prompts gives the
                            size; else requests are turns of conversations, and --num-conversations gives it */
    enum wl_seed_rules seed_rules;
    bool needs_tokenizer; /* to generate; else a set made without a tokenizer has n_tokens of -1 */

    /* Checks s->json and fills s->n, the limits in s, and s->params: params_size zeroed bytes that hold no pointers. */
    int (*read)(struct wl_spec *s, struct km_err *err);
    size_t params_size;
    /* Fills set->convs[set->n], which are zeroed. */
    int (*generate)(struct wl_set *set, const struct wl_spec *s, const struct wl_gen_opts *o, const struct tok *t,
                    struct km_err *err);
};

const struct wl_kind_ops *wl_kind_ops(enum wl_kind kind);
/* The kind that run.json calls `name`; WL_MULTI_TURN if no kind has that name or `name` is NULL. */
enum wl_kind wl_kind_named(const char *name);
/* Finds the kind of a file whose "filetype" is `filetype` (NULL: a JSON array). KM_EINVAL lists the ones accepted. */
int wl_kind_of_file(const char *filetype, enum wl_kind *out, struct km_err *err);

#endif
