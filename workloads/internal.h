/* What the files of this room share and nobody else sees: the parsed spec, the text, and building a set. */
#ifndef WL_INTERNAL_H
#define WL_INTERNAL_H

#include "base/json.h"
#include "workloads/workload.h"

enum { WL_MAX_CONVS = 1000000, WL_MAX_TURNS = 100000 };

struct wl_spec {
    enum wl_kind kind;
    char *name; /* base name without .json */
    char *dir;  /* the folder the file lies in */
    int n;      /* conversations or prompts */
    int n_max;  /* the most that can be generated */
    uint64_t seed_max; /* the largest seed that the generator takes */
    cJSON *json; /* the file: text_files, or the ready conversations */
    void *params; /* the kind's own: a struct of wl_kind_ops.params_size bytes; NULL: none */
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

/* A copy of id, and msgs[n] with roles alternating from user, texts still NULL. */
int wl_conv_init(struct wl_conv *c, const char *id, int n, struct km_err *err);
/* Moves the buffer's text into the message. */
int wl_msg_take(struct wl_msg *m, struct km_buf *text, struct km_err *err);
/* m->n_tokens by the tokenizer; at least 1 for an answer. */
int wl_msg_count(struct wl_msg *m, const struct tok *t, struct km_err *err);

#endif
