/* The source text that prompts are cut from, as one list of token ids. */
#ifndef WL_TEXT_H
#define WL_TEXT_H

#include "workloads/spec.h"
#include "workloads/workload.h"

struct wl_text {
    struct tok_ids ids; /* owned: km_free(ids.v) */
    char label[128];    /* file names, or "built-in text" */
};

/* Reads and tokenizes the files of spec->json's "text_files", one after the other. KM_ENOENT if one is missing. */
int wl_text_from_files(struct wl_text *out, const struct wl_spec *s, const struct wl_gen_opts *o, const struct tok *t,
                       struct km_err *err);
/* Tokenizes enough of the built-in text for `need` tokens (builtin_text.h). The text for a smaller need is a prefix of
 * the text for a larger one. */
int wl_text_from_builtin(struct wl_text *out, int64_t need, const struct tok *t, struct km_err *err);

#endif
