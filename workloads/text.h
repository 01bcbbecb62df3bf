/* The source text that prompts are cut from, as one list of token ids. */
#ifndef WL_TEXT_H
#define WL_TEXT_H

#include "workloads/spec.h"
#include "workloads/workload.h"

struct wl_text {
    struct tok_ids ids; /* owned: km_free(ids.v) */
    char label[128];    /* file names, or "built-in text" */
};

/* Tokenizes the source text that o names: the files of s->json's "text_files", one after the other (KM_ENOENT if one is
 * missing), or the built-in text, of which it makes enough for `need` tokens. */
int wl_text_read(struct wl_text *out, const struct wl_spec *s, const struct wl_gen_opts *o, int64_t need,
                 const struct tok *t, struct km_err *err);

#endif
