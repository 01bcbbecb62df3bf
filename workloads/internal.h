/* What the files of this room share and nobody else sees: the parsed spec, the text, and building a set. */
#ifndef WL_INTERNAL_H
#define WL_INTERNAL_H

#include "base/json.h"
#include "workloads/law.h"
#include "workloads/workload.h"

enum { WL_MAX_CONVS = 1000000, WL_MAX_TURNS = 100000 };

/* The data set "random" as vLLM has had it; random.c says how they differ. */
enum wl_random { WL_RANDOM_V010, WL_RANDOM_V011, WL_RANDOM_NEW };

struct wl_spec {
    enum wl_kind kind;
    char *name; /* base name without .json */
    char *dir;  /* the folder the file lies in */
    int n;      /* conversations or prompts */
    cJSON *json; /* the file: text_files, or the ready conversations */

    struct wl_law turns, common, prefix, input, output; /* WL_MULTI_TURN */

    enum wl_random random; /* WL_RANDOM */
    bool repeat_one; /* all requests are the first prompt */
    int64_t input_len, output_len, prefix_len;
    double range_ratio;
};

/* The source text as tokens. */
struct wl_text {
    struct tok_ids ids;
    char label[128];
};

/* Reads and tokenises the files of spec->json's "text_files", one after the other. */
int wl_text_files(struct wl_text *out, const struct wl_spec *s, const struct wl_gen_opts *o, const struct tok *t,
                  struct km_err *err);
/* Built-in text that comes to at least `need` tokens. */
int wl_text_builtin(struct wl_text *out, int64_t need, const struct tok *t, struct km_err *err);

/* Generators: each fills set->convs, whose n and array exist already, zeroed. */
int wl_make_multi_turn(struct wl_set *set, const struct wl_spec *s, const struct wl_gen_opts *o, const struct tok *t,
                       struct km_err *err);
int wl_make_random(struct wl_set *set, const struct wl_spec *s, const struct wl_gen_opts *o, const struct tok *t,
                   struct km_err *err);
int wl_make_conversations(struct wl_set *set, const struct wl_spec *s, const struct tok *t, struct km_err *err);

/* Is this array what wl_make_conversations accepts? Sets *n. */
int wl_check_conversations(const cJSON *array, int *n, struct km_err *err);

/* A copy of id, and msgs[n] with roles alternating from user, texts still NULL. */
int wl_conv_init(struct wl_conv *c, const char *id, int n, struct km_err *err);
/* Moves the buffer's text into the message. */
int wl_msg_take(struct wl_msg *m, struct km_buf *text, struct km_err *err);
/* m->n_tokens by the tokenizer; at least 1 for an answer. */
int wl_msg_count(struct wl_msg *m, const struct tok *t, struct km_err *err);

#endif
